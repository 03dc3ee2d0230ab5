"""A chain in memory, for tests of what stands above it. The neurons never see it: they talk to a real node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from compute.base.errors import ChainError, ExtrinsicRefused, NotRegistered
from compute.chain.subtensor import ChainRules, Metagraph, Neuron
from compute.incentive.weights import WeightRules

FREE_RULES = ChainRules(weights_rate_limit=0, commit_reveal=False, weights=WeightRules())


class FakeChain:
    """Holds neurons and weights; ``fail_next`` raises in the next call of the method named.

    Unless it ``keeps``, weights that are set have no effect. Those that are committed stay in ``commits``: a test
    reveals them.
    """

    def __init__(self, own_hotkey: str, netuid: int = 27, rules: ChainRules = FREE_RULES) -> None:
        self.own_hotkey = own_hotkey
        self.netuid = netuid
        self.height = 100
        self.neurons: list[Neuron] = []
        self.weights: dict[int, dict[int, int]] = {}
        self.current_rules = rules
        self.keeps = True
        self.commits: list[int] = []
        self.submissions = 0
        self.announced: list[int] = []
        self._failures: dict[str, ChainError] = {}

    def add(self, hotkey: str, **changes: Any) -> Neuron:
        """Register a neuron at the next uid; ``changes`` are fields of ``Neuron``."""
        neuron = Neuron(
            uid=len(self.neurons),
            hotkey=hotkey,
            coldkey=f"cold-{hotkey}",
            ip=f"127.0.1.{len(self.neurons) + 1}",
            port=8091,
            version=200,
            stake=0.0,
            validator_permit=False,
            last_update=0,
            registered_at=0,
            incentive=0.0,
            dividends=0.0,
        )
        neuron = replace(neuron, **changes)
        self.neurons.append(neuron)
        return neuron

    def fail_next(self, method: str, error: ChainError) -> None:
        """Make the next call of ``method`` raise."""
        self._failures[method] = error

    def _enter(self, method: str) -> None:
        if method in self._failures:
            raise self._failures.pop(method)

    def _own(self) -> Neuron:
        for neuron in self.neurons:
            if neuron.hotkey == self.own_hotkey:
                return neuron
        raise NotRegistered(f"hotkey {self.own_hotkey} has no uid on netuid {self.netuid}")

    async def block(self) -> int:
        self._enter("block")
        return self.height

    async def metagraph(self) -> Metagraph:
        self._enter("metagraph")
        return Metagraph(self.netuid, self.height, tuple(self.neurons))

    async def rules(self) -> ChainRules:
        self._enter("rules")
        return self.current_rules

    async def held_weights(self, uid: int) -> dict[int, int]:
        self._enter("held_weights")
        return dict(self.weights.get(uid, {}))

    async def open_commits(self) -> tuple[int, ...]:
        self._enter("open_commits")
        return tuple(self.commits)

    async def set_weights(self, weights: Mapping[int, int]) -> None:
        self._enter("set_weights")
        own = self._own()
        if self.height - own.last_update <= self.current_rules.weights_rate_limit:
            raise ExtrinsicRefused("SettingWeightsTooFast", "too early")
        self.submissions += 1
        if self.current_rules.commit_reveal:
            self.commits.append(self.height + 1)  # in the next block
        elif self.keeps:
            self.weights[own.uid] = dict(weights)
        self.neurons[own.uid] = replace(own, last_update=self.height)
        self._enter("after_set_weights")

    async def serve(self, ip: str, port: int, version: int) -> bool:
        self._enter("serve")
        own = self._own()
        if (own.ip, own.port, own.version) == (ip, port, version):
            return False
        self.neurons[own.uid] = replace(own, ip=ip, port=port, version=version)
        return True

    async def announce_version(self, version: int, ip: str, port: int, *, force: bool = False) -> bool:
        self._enter("announce_version")
        own = self._own()
        self.announced.append(version)
        changed = force or own.version != version
        self.neurons[own.uid] = replace(own, version=version)
        return changed

    async def close(self) -> None:
        """Nothing to close."""
