import asyncio
import os
import signal
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compute.base import tasks as duty
from compute.base.clock import ManualClock
from compute.base.process import EXIT_OK, EXIT_RESTART, StartAnew, run_neuron
from compute.miner.options import parse_miner
from compute.update import guard, self_update
from compute.update import trial as trials
from compute.update.check import Release
from compute.update.decision import Offer, Relation, Take
from compute.update.self_update import LOCAL, Pace, SelfUpdate
from compute.update.trial import Trial


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(trials, "ROOT", tmp_path)
    monkeypatch.setattr(duty, "unexpected", Counter())
    monkeypatch.setattr(guard, "_confirmed", asyncio.Event())
    return tmp_path


def update_of(clock: ManualClock, *argv: str) -> SelfUpdate:
    return SelfUpdate("miner", parse_miner(argv, {}), clock, pace=Pace(look=600.0, up=60.0, calm=10.0))


async def passes(clock: ManualClock, seconds: int) -> None:
    for _ in range(seconds):
        for _ in range(5):
            await asyncio.sleep(0)
        clock.advance(1.0)


async def never() -> None:
    await asyncio.Event().wait()


def test_a_localnet_is_quicker_and_asks_the_remote_no_more_often() -> None:
    clock = ManualClock()
    local = SelfUpdate("miner", parse_miner(["--subtensor.network", "local"], {}), clock)
    assert local._pace == LOCAL
    assert LOCAL.look == Pace().look
    assert LOCAL.up < Pace().up


async def test_what_the_service_raises_comes_through(clone: Path) -> None:
    async def failing() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await update_of(ManualClock()).beside(failing(), up=asyncio.Event(), safe=never)


async def test_a_service_that_ends_is_the_end(clone: Path) -> None:
    async def done() -> None:
        pass

    await update_of(ManualClock()).beside(done(), up=asyncio.Event(), safe=never)


async def test_a_failure_of_the_update_is_not_the_neurons(
    clone: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def failing(work: Any) -> bool:
        raise ZeroDivisionError

    update, up, ended = update_of(ManualClock()), asyncio.Event(), asyncio.Event()
    monkeypatch.setattr(update, "_in_thread", failing)
    up.set()

    async def service() -> None:
        await ended.wait()

    running = asyncio.create_task(update.beside(service(), up=up, safe=never))
    deadline = time.monotonic() + 20
    while "ZeroDivisionError" not in caplog.text:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)
    assert not running.done()
    ended.set()
    await asyncio.wait_for(running, 10)


async def test_a_new_commit_is_confirmed_after_a_calm_while(clone: Path) -> None:
    clock, up = ManualClock(), asyncio.Event()
    trials.save(Trial("a", "b", "refs/heads/main", "a"))
    running = asyncio.create_task(update_of(clock, "--no-auto_update").beside(never(), up=up, safe=never))
    await passes(clock, 100)
    assert trials.load() is not None, "not before the neuron is up"
    up.set()
    await passes(clock, 9)
    assert trials.load() is not None
    duty.unexpected["proof"] += 1
    await passes(clock, 9)
    assert trials.load() is not None, "a duty has met a bug"
    await passes(clock, 15)
    assert trials.load() is None
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_the_restart_waits_for_a_safe_moment_and_the_service_has_ended(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, up, quiet = ManualClock(), asyncio.Event(), asyncio.Event()
    update, ended = update_of(clock), []
    up.set()

    async def service() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(clock.now())

    async def at_once(work: Any) -> bool:
        if work == update._look:
            update._release = Release("a", Offer("refs/heads/main", "b", "b", Relation.DESCENDANT))
        return True

    monkeypatch.setattr(update, "_in_thread", at_once)
    running = asyncio.create_task(update.beside(service(), up=up, safe=quiet.wait))
    await passes(clock, 1000)
    assert not running.done()
    assert ended == []
    quiet.set()
    await passes(clock, 2)
    with pytest.raises(StartAnew):
        await asyncio.wait_for(running, 10)
    assert len(ended) == 1


def test_a_neuron_that_is_to_start_anew_says_so_and_a_signal_wins() -> None:
    async def anew() -> None:
        raise StartAnew

    async def stopped_meanwhile() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.sleep(60)
        finally:
            raise StartAnew

    assert run_neuron(anew) == EXIT_RESTART
    assert run_neuron(stopped_meanwhile) == EXIT_OK


def test_without_a_release_the_end_is_the_end(clone: Path) -> None:
    assert update_of(ManualClock()).finish(0) == 0
    assert update_of(ManualClock()).finish(3) == 3


def test_who_has_found_a_release_keeps_its_turn_until_it_has_switched_or_ended(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer = Offer("refs/heads/main", "b" * 40, "b" * 40, Relation.DESCENDANT)
    there: Any = SimpleNamespace(state=clone / "state", look=lambda: None)
    monkeypatch.setattr(self_update, "decide", lambda look: Take(offer))
    monkeypatch.setattr(self_update, "check", lambda *_: Release("a" * 40, offer))
    one, two = (update_of(ManualClock()) for _ in range(2))
    one._clone = two._clone = there
    assert one._look()
    # It waits for a safe moment, and ends its service: its trial is not written yet.
    assert not two._look()
    assert one.finish(EXIT_OK) == EXIT_OK
    assert two._look()
