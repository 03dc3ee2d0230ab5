"""The validator dies at every step of setting weights: the next one makes the chain hold what the scores say, once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compute.base.store import Database
from compute.testing.chain import FREE_RULES, FakeChain
from compute.testing.clock import ManualClock
from compute.validator.store import FactStore, WeightsState
from compute.validator.weight_setter import Outcome, WeightSetter

SCORES = {1: 1.0, 2: 2.0}
WEIGHTS = {1: 32768, 2: 65535}


class Killed(BaseException):
    """As by SIGKILL: nobody handles it."""


class Fuse:
    """Burns down by one before and after each call of what it is ``laid`` around."""

    def __init__(self, length: int) -> None:
        self._left = length

    def burn(self) -> None:
        if self._left == 0:
            raise Killed
        self._left -= 1

    def laid(self, inner: Any) -> Any:
        return _Fused(inner, self.burn)


class _Fused:
    def __init__(self, inner: object, burn: Callable[[], None]) -> None:
        self._inner = inner
        self._burn = burn

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        def call(*arguments: object, **named: object) -> object:
            self._burn()
            found = method(*arguments, **named)
            self._burn()
            return found

        async def call_async(*arguments: object, **named: object) -> object:
            self._burn()
            found = await method(*arguments, **named)
            self._burn()
            return found

        return call_async if inspect.iscoroutinefunction(method) else call


class Subnet:
    """A chain that outlives the validator at uid 0, and the file of its database."""

    def __init__(self, path: Path, *, commit_reveal: bool) -> None:
        self._path = path
        self.chain = FakeChain(
            "validator", rules=replace(FREE_RULES, commit_reveal=commit_reveal, weights_rate_limit=8)
        )
        for hotkey in ("validator", "one", "two"):
            self.chain.add(hotkey)

    async def set(self, steps: int = 10_000) -> Outcome | None:
        """Let a new process set weights; None where it dies after ``steps`` steps."""
        fuse = Fuse(steps)
        self.chain.height += 1
        own = self.chain.neurons[0]
        with closing(Database(self._path)) as database:
            setter = WeightSetter(fuse.laid(self.chain), fuse.laid(FactStore(database)), ManualClock())
            try:
                return (await setter.set(SCORES, own, uids=3, block=self.chain.height)).outcome
            except Killed:
                return None

    def state(self) -> WeightsState | None:
        with closing(Database(self._path)) as database:
            entry = FactStore(database).last_weights()
        return entry.state if entry is not None else None

    def reveal(self) -> None:
        if self.chain.commits:
            self.chain.commits.clear()
            self.chain.weights[0] = dict(WEIGHTS)


async def dying(folder: Path, *, commit_reveal: bool) -> list[Subnet]:
    """A subnet for each step after which the validator can die."""
    died = []
    while True:
        subnet = Subnet(folder / f"{len(died)}.db", commit_reveal=commit_reveal)
        if await subnet.set(len(died)) is not None:
            return died
        died.append(subnet)


async def test_weights_reach_the_chain_once_wherever_the_validator_dies(tmp_path: Path) -> None:
    died = await dying(tmp_path, commit_reveal=False)
    assert {subnet.state() for subnet in died} == {
        None,
        WeightsState.INTENT,
        WeightsState.SUBMITTED,
        WeightsState.CONFIRMED,
    }
    for subnet in died:
        held = subnet.chain.weights.get(0)
        assert held == WEIGHTS or subnet.state() in (None, WeightsState.INTENT)
        was_confirmed = subnet.state() is WeightsState.CONFIRMED
        assert await subnet.set() is (Outcome.TOO_EARLY if was_confirmed else Outcome.CONFIRMED)
        assert subnet.state() is WeightsState.CONFIRMED
        assert subnet.chain.weights == {0: WEIGHTS}
        assert subnet.chain.submissions == 1


@pytest.mark.parametrize("revealed_meanwhile", [False, True])
async def test_a_commit_is_made_once_wherever_the_validator_dies(tmp_path: Path, revealed_meanwhile: bool) -> None:
    died = await dying(tmp_path, commit_reveal=True)
    assert {subnet.state() for subnet in died} == {None, WeightsState.INTENT, WeightsState.SUBMITTED}
    for subnet in died:
        was_committed = bool(subnet.chain.commits)
        if revealed_meanwhile:
            subnet.reveal()
        waits = not (revealed_meanwhile and was_committed)
        assert await subnet.set() is (Outcome.PENDING if waits else Outcome.CONFIRMED)
        assert subnet.state() is (WeightsState.SUBMITTED if waits else WeightsState.CONFIRMED)
        subnet.reveal()
        assert await subnet.set() is (Outcome.CONFIRMED if waits else Outcome.TOO_EARLY)
        assert subnet.state() is WeightsState.CONFIRMED
        assert subnet.chain.weights == {0: WEIGHTS}
        assert subnet.chain.submissions == 1
