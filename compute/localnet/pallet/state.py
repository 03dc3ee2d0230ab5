"""The chain's state at one block, as immutable values.

A call or an epoch makes a new :class:`State` that shares with the old one all that did not change. So a refused call
needs no rollback, and the states of hundreds of recent blocks cost little more than one.

Accounts are named by their ss58 address. Amounts are in rao. Proportions (``incentive``, weights, bonds, …) are the
chain's 16-bit integers, 65535 being one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

U16_MAX = 65_535
U64_MAX = 2**64 - 1
Row = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Hyperparameters:
    """A subnet's settings, under the chain's names. Block counts, 16-bit proportions, rao.

    ``stake_threshold`` (rao of stake below which a hotkey can neither validate nor set weights) is one for all subnets
    on the real chain; ``burn_increase_percent`` is ``BurnIncreaseMult`` there (126 means times 1.26).
    """

    tempo: int = 20
    weights_rate_limit: int = 5
    weights_version: int = 0
    min_allowed_weights: int = 1
    max_weights_limit: int = U16_MAX
    commit_reveal_weights_enabled: bool = False
    commit_reveal_period: int = 1
    stake_threshold: int = 1_000_000_000_000
    max_validators: int = 64
    max_allowed_uids: int = 256
    min_non_immune_uids: int = 10
    immunity_period: int = 4096
    registration_allowed: bool = True
    min_burn: int = 500_000
    max_burn: int = 100_000_000_000
    burn_half_life: int = 360
    burn_increase_percent: int = 126
    serving_rate_limit: int = 5
    activity_cutoff: int = 5000
    kappa: int = 32_767
    bonds_moving_avg: int = 900_000
    bonds_penalty: int = U16_MAX
    liquid_alpha_enabled: bool = False
    alpha_low: int = 45_875
    alpha_high: int = 58_982
    alpha_sigmoid_steepness: int = 1000

    def with_value(self, name: str, value: object) -> Hyperparameters:
        """A copy with one setting changed.

        Raises:
            ValueError: no such setting, or the value is of the wrong type or out of range.
        """
        if name not in _RANGES:
            raise ValueError(f"unknown hyperparameter {name!r}: the names are {', '.join(sorted(_RANGES))}")
        low, high = _RANGES[name]
        if isinstance(getattr(self, name), bool):
            if not isinstance(value, bool):
                raise ValueError(f"hyperparameter {name} is true or false, not {value!r}")
        elif isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"hyperparameter {name} is an integer from {low} to {high}, not {value!r}")
        changed: dict[str, Any] = {name: value}
        return replace(self, **changed)


_RANGES: Mapping[str, tuple[int, int]] = {
    "tempo": (1, U16_MAX),
    "weights_rate_limit": (0, U64_MAX),
    "weights_version": (0, U64_MAX),
    "min_allowed_weights": (0, U16_MAX),
    "max_weights_limit": (1, U16_MAX),
    "commit_reveal_weights_enabled": (0, 1),
    "commit_reveal_period": (1, 100),
    "stake_threshold": (0, U64_MAX),
    "max_validators": (1, 256),
    "max_allowed_uids": (1, 256),
    "min_non_immune_uids": (0, 256),
    "immunity_period": (0, U16_MAX),
    "registration_allowed": (0, 1),
    "min_burn": (0, U64_MAX),
    "max_burn": (0, U64_MAX),
    "burn_half_life": (0, U16_MAX),
    "burn_increase_percent": (100, 1000),
    "serving_rate_limit": (0, U64_MAX),
    "activity_cutoff": (1, U16_MAX),
    "kappa": (0, U16_MAX),
    "bonds_moving_avg": (0, 1_000_000),
    "bonds_penalty": (0, U16_MAX),
    "liquid_alpha_enabled": (0, 1),
    "alpha_low": (0, U16_MAX),
    "alpha_high": (0, U16_MAX),
    "alpha_sigmoid_steepness": (0, 10_000),
}


@dataclass(frozen=True)
class Axon:
    """Where a neuron serves; all zero before it does. ``ip`` is the address as an integer."""

    block: int = 0
    version: int = 0
    ip: int = 0
    port: int = 0
    ip_type: int = 0
    protocol: int = 0
    placeholder1: int = 0
    placeholder2: int = 0


@dataclass(frozen=True)
class Prometheus:
    """Where a neuron serves its metrics; all zero before it does."""

    block: int = 0
    version: int = 0
    ip: int = 0
    port: int = 0
    ip_type: int = 0


@dataclass(frozen=True)
class Neuron:
    """One uid. ``weights`` and ``bonds`` are rows of ``(uid, value)``; the scores are those of the last epoch."""

    hotkey: str
    coldkey: str
    registered_at: int
    last_update: int
    axon: Axon = Axon()
    prometheus: Prometheus = Prometheus()
    active: bool = True
    validator_permit: bool = False
    stake_weight: int = 0
    consensus: int = 0
    incentive: int = 0
    dividends: int = 0
    validator_trust: int = 0
    emission: int = 0
    weights: Row = ()
    bonds: Row = ()


@dataclass(frozen=True)
class Commit:
    """Weights committed under a time lock, by ``hotkey`` at ``block``; ``epoch`` is the subnet's epoch index then."""

    hotkey: str
    epoch: int
    block: int
    ciphertext: bytes
    reveal_round: int


@dataclass(frozen=True)
class Subnet:
    """One subnet. ``stakes`` holds, for each hotkey, what each coldkey has staked to it."""

    registered_at: int
    hyperparameters: Hyperparameters
    burn: int
    last_epoch_block: int
    epoch_index: int = 0
    neurons: tuple[Neuron, ...] = ()
    stakes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    commits: tuple[Commit, ...] = ()

    def uid_of(self, hotkey: str) -> int | None:
        """The uid of a hotkey, or None if it is not registered."""
        return next((uid for uid, neuron in enumerate(self.neurons) if neuron.hotkey == hotkey), None)

    def stake_of(self, hotkey: str) -> int:
        """All that is staked to a hotkey, in rao."""
        return sum(self.stakes.get(hotkey, {}).values())

    def epoch_is_due(self, block: int) -> bool:
        """Whether the block is the one that ends the epoch."""
        return block - self.last_epoch_block >= self.hyperparameters.tempo

    def with_neuron(self, uid: int, neuron: Neuron) -> Subnet:
        """A copy with one neuron replaced."""
        return replace(self, neurons=(*self.neurons[:uid], neuron, *self.neurons[uid + 1 :]))

    def without_commit(self, commit: Commit) -> Subnet:
        """A copy without one of the commits."""
        return replace(self, commits=tuple(other for other in self.commits if other is not commit))

    def with_stake(self, hotkey: str, coldkey: str, rao: int) -> Subnet:
        """A copy with ``rao`` more staked by ``coldkey`` to ``hotkey``."""
        staked = dict(self.stakes.get(hotkey, {}))
        staked[coldkey] = staked.get(coldkey, 0) + rao
        return replace(self, stakes={**self.stakes, hotkey: staked})


@dataclass(frozen=True)
class Account:
    """A coldkey's or hotkey's nonce and free balance."""

    nonce: int = 0
    free: int = 0


@dataclass(frozen=True)
class State:
    """Everything that clients can ask of a block. ``owners`` names the coldkey of each hotkey ever registered."""

    number: int = 0
    timestamp_milliseconds: int = 0
    accounts: Mapping[str, Account] = field(default_factory=dict)
    owners: Mapping[str, str] = field(default_factory=dict)
    subnets: Mapping[int, Subnet] = field(default_factory=dict)
    events: tuple[Mapping[str, Any], ...] = ()

    def account(self, address: str) -> Account:
        """The account, empty if it was never used."""
        return self.accounts.get(address, Account())

    def with_account(self, address: str, account: Account) -> State:
        """A copy with one account changed."""
        return replace(self, accounts={**self.accounts, address: account})

    def with_subnet(self, netuid: int, subnet: Subnet) -> State:
        """A copy with one subnet changed."""
        return replace(self, subnets={**self.subnets, netuid: subnet})

    def with_owner(self, hotkey: str, coldkey: str) -> State:
        """A copy in which ``coldkey`` owns ``hotkey``."""
        return replace(self, owners={**self.owners, hotkey: coldkey})

    def with_event(self, phase: Mapping[str, Any] | str, pallet: str, name: str, fields: Any) -> State:
        """A copy with one more event."""
        record: dict[str, Any] = {"phase": phase, "event": {pallet: {name: fields}}, "topics": []}
        return replace(self, events=(*self.events, record))
