"""The tests' one wait: it ends as soon as its condition holds, and its failure shows what was seen."""

from __future__ import annotations

import pytest

from compute.testing.clock import ManualClock
from tests import waiting
from tests.waiting import until, until_async


def test_it_returns_what_the_condition_found() -> None:
    looks = iter([[], None, ["it"]])
    assert until(lambda: next(looks)) == ["it"]


async def test_the_clock_moves_at_each_look_and_a_condition_may_be_a_coroutine() -> None:
    clock = ManualClock(0.0)

    async def late() -> bool:
        return clock.now() >= 6

    assert await until_async(late, passing=clock, step=2.0)
    assert clock.now() == 6


async def test_a_failure_says_what_was_awaited_and_what_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "DEADLINE_SECONDS", 0.0)
    expected = "not within 0 s: the machine is up; its last value was 0\nthe end of its log"
    with pytest.raises(AssertionError) as failure:
        until(lambda: 0, "the machine is up", dump=lambda: "the end of its log")
    assert str(failure.value) == expected
    with pytest.raises(AssertionError) as failure:
        await until_async(lambda: 0, "the machine is up", dump=lambda: "the end of its log")
    assert str(failure.value) == expected
