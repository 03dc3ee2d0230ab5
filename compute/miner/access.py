"""Who may call a miner, in which order callers are answered, and how often. Pure: no chain, no log, no argv.

The order of the rules is the interface: the first that matches decides.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from compute.base.clock import Clock
from compute.base.reasons import AccessReason
from compute.chain.access_lists import MINIMAL_STAKE, AccessLists

if TYPE_CHECKING:
    from compute.miner.options import MinerOptions


# A caller who waits exactly as long as it was told must not be a rounding error short of a whole token.
_ROUNDING = 1e-9
_PRIORITIES = {"Allocate": 3.0, "Challenge": 2.0, "Specs": 1.0}


@dataclass(frozen=True)
class AccessPolicy:
    """What a miner's operator decided."""

    lists: AccessLists = field(default_factory=AccessLists)
    allow_not_enough_stake: bool = False
    allow_not_updated: bool = False
    updated_threshold_percent: int = 60
    minimal_stake: float = MINIMAL_STAKE

    @classmethod
    def from_options(cls, options: MinerOptions) -> AccessPolicy:
        """The policy of a miner's command line."""
        return cls(
            lists=AccessLists.from_options(options.lists),
            allow_not_enough_stake=options.whitelist_not_enough_stake,
            allow_not_updated=options.whitelist_not_updated,
            updated_threshold_percent=options.updated_threshold_percent,
        )


class CallerNeuron(Protocol):
    """What the chain says of a caller; ``compute.chain.subtensor.Neuron`` is one."""

    @property
    def coldkey(self) -> str:
        """ss58 address of its owner."""

    @property
    def stake(self) -> float:
        """In alpha."""

    @property
    def validator_permit(self) -> bool:
        """Whether it may set weights."""

    @property
    def version(self) -> int:
        """The integer form of the version that it publishes; 0 if it publishes none."""


@dataclass(frozen=True)
class AccessDecision:
    """Whether a caller is answered, and the rule that decided."""

    allowed: bool
    reason: AccessReason


def decide(
    hotkey: str,
    neuron: CallerNeuron | None,
    *,
    policy: AccessPolicy,
    enforced_version: int,
    metagraph_known: bool = True,
) -> AccessDecision:
    """Decide on one caller.

    Args:
        hotkey: who the caller says it is. An axon asks before it has verified the signature: refuse by this answer,
            but keep no record of the hotkey from it.
        neuron: its row of the metagraph; None if it has none.
        enforced_version: what a validator must have reached by now; see the function of that name.
        metagraph_known: False until the first metagraph has been read; then only the lists can allow.
    """
    coldkey = neuron.coldkey if neuron is not None else None
    black = policy.lists.blacklisted(hotkey, coldkey)
    if black is not None:
        return AccessDecision(False, black)
    white = policy.lists.whitelisted(hotkey, coldkey)
    if white is not None:
        return AccessDecision(True, white)
    if neuron is None:
        return AccessDecision(False, AccessReason.NOT_REGISTERED if metagraph_known else AccessReason.METAGRAPH_UNKNOWN)
    if not policy.allow_not_enough_stake:
        # Not "stake < minimal": NaN must not pass.
        if not neuron.stake >= policy.minimal_stake:
            return AccessDecision(False, AccessReason.NOT_ENOUGH_STAKE)
        if not neuron.validator_permit:
            return AccessDecision(False, AccessReason.NO_PERMIT)
    if neuron.version < enforced_version and not policy.allow_not_updated:
        return AccessDecision(False, AccessReason.OLD_VERSION)
    return AccessDecision(True, AccessReason.ALLOWED)


def priority(stake: float, synapse: str) -> float:
    """Rank of a request: the caller's stake, plus 3 for ``Allocate``, 2 for ``Challenge``, 1 for ``Specs``."""
    return stake + _PRIORITIES.get(synapse, 0.0)


class RateLimiter:
    """A token bucket per hotkey: ``burst`` requests at once, then ``per_second``.

    Ask it only once the caller's signature is verified, or anyone can use up another's allowance. At most ``capacity``
    hotkeys are remembered; beyond that the one that has been quiet for longest is forgotten, and so starts anew.
    """

    def __init__(self, clock: Clock, *, per_second: float, burst: int, capacity: int = 4096) -> None:
        if per_second <= 0 or burst < 1 or capacity < 1:
            raise ValueError(f"rate {per_second}/s, burst {burst}, capacity {capacity}: all must be positive")
        self._clock = clock
        self._per_second = per_second
        self._burst = burst
        self._capacity = capacity
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, hotkey: str) -> float:
        """Take one token. Returns 0.0 if there was one, else the seconds until there is (and takes nothing)."""
        now = self._clock.monotonic()
        tokens, since = self._buckets.get(hotkey, (float(self._burst), now))
        tokens = min(float(self._burst), tokens + (now - since) * self._per_second)
        allowed = tokens >= 1.0 - _ROUNDING
        self._buckets[hotkey] = (max(0.0, tokens - 1.0) if allowed else tokens, now)
        self._buckets.move_to_end(hotkey)
        while len(self._buckets) > self._capacity:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1.0 - tokens) / self._per_second
