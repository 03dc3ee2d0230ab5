from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from compute.base.channel import Channel
from compute.base.errors import (
    CallUnreachable,
    HostKeyMismatch,
    LeaseError,
    ProofError,
    SshError,
    SshTimeout,
    SshUnreachable,
)
from compute.base.reasons import ProofReason, Refusal
from compute.proof import session
from compute.proof.models import Claim, MachineVerdict, ProofSettings
from compute.proof.session import Target
from compute.proof.statement import Dims
from compute.proof.verifier import draw_projection, verify_device
from compute.testing.clock import ManualClock
from compute.testing.proof import FakeMachine
from tests.waiting import DEADLINE_SECONDS

RATES: dict[str, Any] = {"tflops16": 5e-6, "bandwidth_gbs": 1e-3}


def target(machine: FakeMachine, hotkey: str = "miner") -> Target:
    return Target(hotkey, Claim("Card", machine.count), machine.connect)


async def _no_time(seconds: float) -> None:
    """For machines side by side, whose times would add up on their common clock."""


async def settle() -> None:
    """Let everything that can go on without the outside world go on."""
    for _ in range(200):
        await asyncio.sleep(0)


class HeldExecutor(Executor):
    """Runs nothing until it is told to."""

    def __init__(self) -> None:
        self.held: list[Callable[[], None]] = []
        self.names: list[str] = []
        self.open = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.names.append(fn.__name__)

        def work() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except Exception as error:
                future.set_exception(error)

        if self.open:
            work()
        else:
            self.held.append(work)
        return future

    def release(self) -> None:
        self.open = True
        for work in self.held:
            work()


async def test_all_arithmetic_is_done_in_the_executor(prove: Any, clock: ManualClock) -> None:
    executor = HeldExecutor()
    executor.release()
    (verdict,) = await prove([target(FakeMachine(clock, devices=3, **RATES))], executor=executor)
    assert verdict.ok
    assert executor.names == ["draw_projection", "verify_device", "verify_device", "verify_device"]


async def test_a_batch_of_sixteen_does_its_arithmetic_beside_the_loop(
    prove: Any, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not timed: while a verification is held up in its thread, the loop takes every other machine to its opening."""
    threads: list[str] = []
    first, go_on = threading.Event(), threading.Event()

    def noted(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            threads.append(threading.current_thread().name)
            if work is verify_device:
                first.set()
                assert go_on.wait(DEADLINE_SECONDS)
            return work(*args)

        return run

    monkeypatch.setattr(session, "verify_device", noted(verify_device))
    monkeypatch.setattr(session, "draw_projection", noted(draw_projection))
    machines = [FakeMachine(clock, spend=_no_time) for _ in range(16)]
    targets = [target(machine, f"miner-{number}") for number, machine in enumerate(machines)]
    with ThreadPoolExecutor(1, "arithmetic") as executor:
        proof = asyncio.create_task(prove(targets, executor=executor))
        while not first.is_set() or any(machine.log[-1:] != ["open"] for machine in machines):
            await asyncio.sleep(0)
        go_on.set()
        verdicts = await proof
    assert all(verdict.ok for verdict in verdicts)
    assert len(threads) == 17
    assert {name.rpartition("_")[0] for name in threads} == {"arithmetic"}


def test_questions_are_without_repetition_even_and_of_one_call_of_the_systems_generator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def randbits(bits: int) -> int:
        calls.append(bits)
        return random.getrandbits(bits)

    random = Random(7)
    monkeypatch.setattr(session.secrets, "randbits", randbits)
    dims, settings = Dims(rows=50, k=2, columns=2, passes=5, tile_rows=50), ProofSettings()
    rows: Counter[int] = Counter()
    passes: Counter[int] = Counter()
    for _ in range(2000):
        question = session.draw_question(dims, settings)
        assert len(set(question.rows)) == 24
        assert all(len(set(asked)) == 3 for asked in question.passes)
        rows.update(question.rows)
        passes.update(number for asked in question.passes for number in asked)
    assert len(calls) == 2000
    assert set(rows) == set(range(50))
    assert set(passes) == set(range(1, 6))
    # 960 of each row, deviation 22; 28800 of each pass, deviation 107.
    assert all(abs(count - 960) < 6 * 22 for count in rows.values())
    assert all(abs(count - 28800) < 6 * 107 for count in passes.values())


def test_a_question_asks_for_every_row_where_there_are_few() -> None:
    question = session.draw_question(Dims(rows=5, k=2, columns=2, passes=3, tile_rows=5), ProofSettings())
    assert sorted(question.rows) == [0, 1, 2, 3, 4]
    assert all(sorted(asked) == [1, 2, 3] for asked in question.passes)


async def test_the_nonce_waits_for_u(prove: Any, clock: ManualClock) -> None:
    machine, executor = FakeMachine(clock, **RATES), HeldExecutor()
    proof = asyncio.create_task(prove([target(machine)], executor=executor))
    await settle()
    assert machine.log == ["hello", "prepare"]
    executor.release()
    (verdict,) = await proof
    assert verdict.ok
    assert machine.log == ["hello", "prepare", "compute", "rehash", "open"]


class Waits(FakeMachine):
    """Answers one kind of frame only when it is told to."""

    def __init__(self, clock: ManualClock, kind: str) -> None:
        super().__init__(clock, spend=_no_time)
        self.kind = kind
        self.go = asyncio.Event()

    async def _answer(self, header: dict[str, Any]) -> None:
        if header["type"] == self.kind:
            await self.go.wait()
        await super()._answer(header)


@pytest.mark.parametrize(
    ("slow_at", "the_other_waits_after"), [("prepare", "prepare"), ("compute", "rehash"), ("rehash", "rehash")]
)
async def test_machines_pass_the_gates_together(
    slow_at: str, the_other_waits_after: str, prove: Any, clock: ManualClock
) -> None:
    slow, quick = Waits(clock, slow_at), FakeMachine(clock, spend=_no_time)
    executor = HeldExecutor()
    executor.release()
    proof = asyncio.create_task(prove([target(slow, "slow"), target(quick, "quick")], executor=executor))
    await settle()
    assert slow.log[-1] == slow_at
    assert quick.log[-1] == the_other_waits_after
    slow.go.set()
    verdicts = await proof
    assert quick.log[-1] == "open"
    assert [verdict.reason for verdict in verdicts] == [ProofReason.OK, ProofReason.OK]


async def test_a_machine_past_its_deadline_holds_nobody_up(prove: Any, clock: ManualClock) -> None:
    slow, quick = Waits(clock, "compute"), FakeMachine(clock, spend=_no_time)
    executor = HeldExecutor()
    executor.release()
    proof = asyncio.create_task(prove([target(slow, "slow"), target(quick, "quick")], executor=executor))
    await settle()
    assert "open" not in quick.log
    clock.advance(1000.0)
    assert [verdict.reason for verdict in await proof] == [ProofReason.TIMEOUT, ProofReason.OK]


async def test_every_batch_has_its_own_nonce(prove: Any, clock: ManualClock) -> None:
    first, second, third = (FakeMachine(clock, spend=_no_time) for _ in range(3))
    await prove([target(first, "a"), target(second, "b")])
    await prove([target(third)])
    assert first.nonces == second.nonces
    assert first.nonces != third.nonces


async def test_a_verdict_is_published_when_it_is_known(prove: Any, clock: ManualClock) -> None:
    slow, dead = Waits(clock, "prepare"), FakeMachine(clock, **RATES)
    published: list[str] = []

    async def publish(target: Target, verdict: MachineVerdict) -> None:
        await asyncio.sleep(0)
        published.append(target.hotkey)

    wrong = Target("wrong", Claim("Toaster", 1), dead.connect)
    proof = asyncio.create_task(prove([target(slow, "slow"), wrong], on_verdict=publish))
    await settle()
    assert published == ["wrong"]
    slow.go.set()
    verdicts = await proof
    assert published == ["wrong", "slow"]
    assert [verdict.reason for verdict in verdicts] == [ProofReason.OK, ProofReason.UNKNOWN_MODEL]


async def test_no_machine_waits_for_the_publication_of_another(prove: Any, clock: ManualClock) -> None:
    machine, stuck = FakeMachine(clock, spend=_no_time), asyncio.Event()

    async def publish(target: Target, verdict: MachineVerdict) -> None:
        if target.hotkey == "wrong":
            await stuck.wait()

    executor = HeldExecutor()
    executor.release()
    wrong = Target("wrong", Claim("Toaster", 1), machine.connect)
    proof = asyncio.create_task(prove([wrong, target(machine)], on_verdict=publish, executor=executor))
    await settle()
    assert machine.log[-1] == "open"
    stuck.set()
    await proof


async def test_the_time_of_verification_is_not_the_machines(prove: Any, clock: ManualClock) -> None:
    class Slow(HeldExecutor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            clock.advance(45.0 if fn.__name__ == "verify_device" else 0.0)
            return super().submit(fn, *args, **kwargs)

    executor = Slow()
    executor.release()
    (verdict,) = await prove([target(FakeMachine(clock, devices=3, **RATES))], executor=executor)
    assert (verdict.reason, verdict.count) == (ProofReason.OK, 3)


def failing(error: BaseException) -> Target:
    @asynccontextmanager
    async def connect() -> AsyncIterator[Channel]:
        raise error
        yield

    return Target("miner", Claim("Card", 1), connect)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SshUnreachable("no banner"), ProofReason.UNREACHABLE),
        (SshError("channel"), ProofReason.UNREACHABLE),
        (SshTimeout("slow"), ProofReason.TIMEOUT),
        (HostKeyMismatch("other key"), ProofReason.HOST_KEY_MISMATCH),
        (LeaseError(Refusal.BUSY, "busy"), ProofReason.REFUSED),
        (CallUnreachable("no axon"), ProofReason.UNREACHABLE),
        (ProofError(ProofReason.RENTED, "rented"), ProofReason.RENTED),
    ],
)
async def test_a_connection_that_fails_is_a_verdict(error: Exception, reason: ProofReason, prove: Any) -> None:
    (verdict,) = await prove([failing(error)])
    assert (verdict.reason, verdict.detail) == (reason, str(error))


async def test_a_bug_on_this_side_is_logged_and_no_verdict_on_the_machine(
    prove: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (verdict,) = await prove([failing(ZeroDivisionError("bug"))])
    assert verdict.reason is ProofReason.INTERNAL_ERROR
    assert "ZeroDivisionError: bug" in caplog.text


async def test_a_connection_that_never_comes_times_out(prove: Any, clock: ManualClock) -> None:
    cancelled = asyncio.Event()

    @asynccontextmanager
    async def connect() -> AsyncIterator[Channel]:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        yield FakeMachine(clock).channel

    (verdict,) = await prove([Target("miner", Claim("Card", 1), connect)], connect_seconds=0.01)
    assert verdict.reason is ProofReason.TIMEOUT
    assert cancelled.is_set()


async def test_a_connection_that_fails_to_close_keeps_its_verdict(
    prove: Any, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    machine = FakeMachine(clock, **RATES)

    @asynccontextmanager
    async def connect() -> AsyncIterator[Channel]:
        async with machine.connect() as channel:
            yield channel
        raise SshError("deallocation failed")

    (verdict,) = await prove([Target("miner", Claim("Card", 1), connect)])
    assert verdict.ok
    assert caplog.records[-1].levelno == logging.ERROR
    assert "deallocation failed" in caplog.text


@pytest.mark.parametrize("phase", ["hello", "prepare", "compute", "rehash", "open"])
async def test_cancellation_closes_every_connection(phase: str, prove: Any, clock: ManualClock) -> None:
    machines = [Waits(clock, phase), Waits(clock, phase)]
    executor = HeldExecutor()
    executor.release()
    proof = asyncio.create_task(prove([target(machine) for machine in machines], executor=executor))
    await settle()
    assert [machine.log[-1] for machine in machines] == [phase, phase]
    proof.cancel()
    with pytest.raises(asyncio.CancelledError):
        await proof
    assert all(machine.channel.closed for machine in machines)


async def test_an_error_of_the_publisher_is_raised_and_ends_the_batch(prove: Any, clock: ManualClock) -> None:
    machine = Waits(clock, "prepare")

    def publish(target: Target, verdict: MachineVerdict) -> None:
        raise RuntimeError("the store is full")

    wrong = Target("wrong", Claim("Toaster", 1), machine.connect)
    with pytest.raises(RuntimeError, match="the store is full"):
        await prove([target(machine), wrong], on_verdict=publish)
    assert machine.channel.closed


async def test_an_empty_batch_is_done(prove: Any) -> None:
    assert await prove([]) == []


async def test_a_failed_machine_keeps_the_numbers_that_it_showed(prove: Any, clock: ManualClock) -> None:
    class DiesInRehash(FakeMachine):
        async def on_rehash(self, key: bytes, passes: int) -> None:
            raise EOFError

    (verdict,) = await prove([target(DiesInRehash(clock, **RATES))])
    assert verdict.reason is ProofReason.WORKER_FAILED
    assert verdict.devices[0].tflops16 == pytest.approx(5e-6)
    assert verdict.devices[0].reason is ProofReason.WORKER_FAILED
