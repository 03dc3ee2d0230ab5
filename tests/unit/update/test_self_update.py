import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from compute.base import tasks
from compute.base.process import EXIT_OK, EXIT_RESTART, StartAnew, run_neuron
from compute.miner.options import parse_miner
from compute.testing.clock import ManualClock
from compute.update import self_update
from compute.update import trial as trials
from compute.update.check import Release
from compute.update.self_update import LOCAL, Pace, SelfUpdate
from compute.update.trial import Trial
from tests.waiting import until_async

from .conftest import Repositories


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
    await until_async(lambda: "ZeroDivisionError" in caplog.text)
    assert not running.done()
    ended.set()
    await asyncio.wait_for(running, 10)


async def test_a_new_commit_is_confirmed_after_a_calm_while(clone: Path) -> None:
    clock, up = ManualClock(), asyncio.Event()
    trials.save(Trial("a", "b", "refs/heads/main"))
    running = asyncio.create_task(update_of(clock, "--no-auto_update").beside(never(), up=up, safe=never))
    await passes(clock, 100)
    assert trials.load() is not None, "not before the neuron is up"
    up.set()
    await passes(clock, 9)
    assert trials.load() is not None
    tasks.unexpected["proof"] += 1
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
            update._release = Release("a", "b")
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
    monkeypatch.setattr(self_update.clone, "look", lambda running: "b" * 40)
    monkeypatch.setattr(self_update, "check", lambda *_: Release("a" * 40, "b" * 40))
    one, two = (update_of(ManualClock()) for _ in range(2))
    assert one._look()
    # It waits for a safe moment, and ends its service: its trial is not written yet.
    assert not two._look()
    assert one.finish(EXIT_OK) == EXIT_OK
    assert two._look()


def test_no_neuron_looks_while_another_one_has_a_commit_on_trial(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_update.clone, "look", lambda running: "b" * 40)
    monkeypatch.setattr(self_update, "check", lambda *_: Release("a" * 40, "b" * 40))
    trials.save(Trial("a", "b", "refs/heads/main", neuron="another"))
    assert not update_of(ManualClock())._look()
    assert trials.load() is not None
    # One that nobody has started again for an hour is forgotten.
    os.utime(clone / ".git" / "compute-update" / "trial", (0, 0))
    update = update_of(ManualClock())
    assert update._look()
    assert trials.load() is None
    update.finish(EXIT_OK)


async def test_switched_off_it_asks_nobody_and_writes_nothing(
    there: Repositories, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    there.release()
    before = sorted((there.root / ".git").rglob("*"))
    clock, up = ManualClock(), asyncio.Event()
    up.set()
    monkeypatch.setattr(trials, "run", None)  # called, it would be an error
    running = asyncio.create_task(update_of(clock, "--auto_update", "false").beside(never(), up=up, safe=never))
    await passes(clock, 5000)
    assert "auto-update is off" in caplog.text
    assert "has failed" not in caplog.text
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert sorted((there.root / ".git").rglob("*")) == before


@pytest.mark.parametrize(("missing", "reason"), [("the clone", "not_a_clone"), ("git", "no_git")])
async def test_where_there_is_nothing_to_update_it_says_so_once_and_runs(
    clone: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, missing: str, reason: str
) -> None:
    if missing == "git":
        monkeypatch.setenv("PATH", str(clone))
    else:
        (clone / ".git").rmdir()
    up = asyncio.Event()
    up.set()
    running = asyncio.create_task(update_of(ManualClock()).beside(never(), up=up, safe=never))
    await until_async(lambda: caplog.records)
    assert [record.reason for record in caplog.records] == [reason]  # type: ignore[attr-defined]
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
