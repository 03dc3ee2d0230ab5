"""Whole conversations made of hostile bytes: always a verdict with a reason, in bounded memory and bounded time."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compute.base.reasons import ProofReason
from compute.proof import frames
from compute.proof.models import Claim, GpuModel, MachineVerdict, ProofSettings
from compute.proof.session import Target, prove_batch
from compute.proof.statement import compute_deadline_seconds, dims_for, rehash_deadline_seconds
from compute.testing.clock import ManualClock
from compute.testing.proof import FakeMachine
from tests.waiting import DEADLINE_SECONDS

CARD = GpuModel("Card", tflops16=4e-7, vram_gb=1.0, bandwidth_gbs=1e-4)
SETTINGS = ProofSettings(device="cpu", rows=1100, k=16, columns=16, tile_rows=512, min_passes=4, max_passes=4)
DIMS = dims_for(CARD, SETTINGS)
DEVICES = 2
FLOOD_BYTES = 200_000
# Every deadline of a conversation in a row, and the goodbye.
MOST_SECONDS = 10.0 + sum(
    (
        SETTINGS.hello_seconds,
        SETTINGS.prepare_seconds,
        compute_deadline_seconds(DIMS, CARD, SETTINGS),
        rehash_deadline_seconds(DIMS, CARD, SETTINGS),
        SETTINGS.open_seconds,
    )
)
# What a conversation may say of a machine; never that this side failed.
REASONS = {
    ProofReason.OK,
    ProofReason.SLOWER_THAN_CLAIMED,
    ProofReason.NOT_RESIDENT,
    ProofReason.WRONG_ROW,
    ProofReason.BAD_OPENING,
    ProofReason.DEVICE_COUNT_MISMATCH,
    ProofReason.SHARED_DEVICE,
    ProofReason.TIMEOUT,
    ProofReason.OVERSIZED_FRAME,
    ProofReason.BAD_FRAME,
    ProofReason.WORKER_FAILED,
}


class Simulation(ManualClock):
    """A clock that goes straight to the next moment at which anybody wants to be woken."""

    def __init__(self) -> None:
        super().__init__()
        self._ends: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self._ends.append(self.monotonic() + seconds)
        await super().sleep(seconds)

    async def run(self, work: asyncio.Task[list[MachineVerdict]]) -> list[MachineVerdict]:
        """``work``, with time moving on whenever nothing else happens. Its end is a deadline on real time, for bugs."""
        while not work.done():
            for _ in range(20):
                await asyncio.sleep(0)
            due = [end for end in self._ends if end > self.monotonic()]
            self._ends = due
            if due and not work.done():
                # A little further, past the comparison with a deadline.
                self.advance(min(due) - self.monotonic() + 1e-6)
        return await work


class Inline(Executor):
    """Does the arithmetic at once, so that a run depends on its seed alone."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Scripted(FakeMachine):
    """Answers ``kind`` with the given bytes instead of its own, and goes on."""

    def __init__(self, clock: ManualClock, kind: str = "", words: bytes = b"", **options: Any) -> None:
        super().__init__(clock, **{"devices": DEVICES, "spend": clock.sleep, **RATES, **options})
        self.kind = kind
        self.words = words

    async def _answer(self, header: dict[str, Any]) -> None:
        if header["type"] == self.kind:
            self.channel.to_validator.write(self.words)
        else:
            await super()._answer(header)


RATES = {"tflops16": CARD.tflops16, "bandwidth_gbs": CARD.bandwidth_gbs}


class Mutates(Scripted):
    """Speaks honestly, but something happens to a few of its frames on their way."""

    def __init__(self, clock: ManualClock, seed: int) -> None:
        super().__init__(clock)
        self.random = random.Random(seed)
        # About 15 frames make a conversation.
        self.chance = self.random.choice([0.05, 0.1, 0.3, 1.0])
        self.held: list[bytes] = []
        self.sent: list[bytes] = []
        self.done: list[str] = []
        self.drips: list[asyncio.Task[None]] = []

    def send(self, header: dict[str, object], payload: bytes = b"") -> None:
        frame = frames.encode(header, payload)
        self.sent.append(frame)
        if self.random.random() < self.chance:
            mutation = self.random.choice(MUTATIONS)
            self.done.append(mutation.__name__)
            frame = mutation(self, frame)
        if frame:
            self.channel.to_validator.write(frame + b"".join(self.held))
            self.held.clear()


def flips_bits(machine: Mutates, frame: bytes) -> bytes:
    changed = bytearray(frame)
    for _ in range(machine.random.choice([1, 1, 2, 8])):
        changed[machine.random.randrange(len(changed))] ^= 1 << machine.random.randrange(8)
    return bytes(changed)


def flips_a_bit_of_the_header(machine: Mutates, frame: bytes) -> bytes:
    changed = bytearray(frame)
    changed[machine.random.randrange(4 + int.from_bytes(frame[:4], "little"))] ^= 1 << machine.random.randrange(8)
    return bytes(changed)


def truncates(machine: Mutates, frame: bytes) -> bytes:
    return frame[: machine.random.randrange(1, len(frame))]


def cuts_bytes_out(machine: Mutates, frame: bytes) -> bytes:
    place = machine.random.randrange(len(frame))
    return frame[:place] + frame[place + machine.random.choice([1, 4, 32, 1000]) :] or b"\x00"


def inserts_bytes(machine: Mutates, frame: bytes) -> bytes:
    place = machine.random.randrange(len(frame) + 1)
    return frame[:place] + machine.random.randbytes(machine.random.choice([1, 4, 32, 1000])) + frame[place:]


def sends_twice(machine: Mutates, frame: bytes) -> bytes:
    return frame + frame


def repeats_an_old_one(machine: Mutates, frame: bytes) -> bytes:
    return machine.random.choice(machine.sent) + frame


def replaces_by_an_old_one(machine: Mutates, frame: bytes) -> bytes:
    return machine.random.choice(machine.sent)


def holds_back(machine: Mutates, frame: bytes) -> bytes:
    machine.held.append(frame)
    return b""


def drops(machine: Mutates, frame: bytes) -> bytes:
    return b""


def announces_too_much(machine: Mutates, frame: bytes) -> bytes:
    return machine.random.choice([4097, 2**16, 2**31, 2**32 - 1]).to_bytes(4, "little") + frame[4:]


def announces_another_length(machine: Mutates, frame: bytes) -> bytes:
    return machine.random.randrange(4097).to_bytes(4, "little") + frame[4:]


def floods(machine: Mutates, frame: bytes) -> bytes:
    return frame + machine.random.randbytes(FLOOD_BYTES)


def changes_a_field(machine: Mutates, frame: bytes) -> bytes:
    length = int.from_bytes(frame[:4], "little")
    header = json.loads(frame[4 : 4 + length])
    key = machine.random.choice([*header, "new"])
    values = [None, True, -1, 0, 1, 15, 16, 2**53, 2**64, 1.5, "", "root", "opened", "x" * 300, [], [[[[[]]]]], {}]
    header[key] = machine.random.choice(values)
    text = json.dumps(header).encode()
    return len(text).to_bytes(4, "little") + text + frame[4 + length :]


def drips(machine: Mutates, frame: bytes) -> bytes:
    """A byte a second, beside whatever else is sent meanwhile."""
    pipe = machine.channel.to_validator

    async def drip() -> None:
        for place in range(min(len(frame), 400)):
            await machine.clock.sleep(1.0)
            pipe.write(frame[place : place + 1])

    machine.drips.append(asyncio.ensure_future(drip()))
    return b""


def hangs_up(machine: Mutates, frame: bytes) -> bytes:
    machine.channel.to_validator.end()
    return frame[: machine.random.randrange(len(frame))] or b"\x00"


MUTATIONS: Sequence[Callable[[Mutates, bytes], bytes]] = (
    flips_bits,
    flips_a_bit_of_the_header,
    truncates,
    cuts_bytes_out,
    inserts_bytes,
    sends_twice,
    repeats_an_old_one,
    replaces_by_an_old_one,
    holds_back,
    drops,
    announces_too_much,
    announces_another_length,
    floods,
    changes_a_field,
    drips,
    hangs_up,
)


async def converse(*machines: Scripted) -> list[MachineVerdict]:
    """The verdicts of one batch on ``machines``; they share its clock."""
    clock = machines[0].clock
    assert isinstance(clock, Simulation)
    start = clock.monotonic()
    batch = prove_batch(
        [Target(f"miner-{number}", Claim("Card", DEVICES), machine.connect) for number, machine in enumerate(machines)],
        validator_hotkey="validator",
        models={"Card": CARD},
        tolerance_pairs=[],
        settings=SETTINGS,
        on_verdict=lambda target, verdict: None,
        executor=Inline(),
        clock=clock,
    )
    verdicts = await asyncio.wait_for(clock.run(asyncio.create_task(batch)), timeout=DEADLINE_SECONDS)
    assert clock.monotonic() - start < MOST_SECONDS
    assert len(verdicts) == len(machines)
    for machine, verdict in zip(machines, verdicts, strict=True):
        assert machine.channel.closed
        assert verdict.reason in REASONS
        assert verdict.ok == (verdict.count == DEVICES)
    for machine in machines:
        for task in getattr(machine, "drips", []):
            task.cancel()
    return verdicts


async def test_an_honest_conversation_of_the_fuzzer_is_ok() -> None:
    (verdict,) = await converse(Scripted(Simulation()))
    assert (verdict.reason, verdict.count) == (ProofReason.OK, DEVICES)


@pytest.mark.parametrize("start", [0, 50])
async def test_a_mutated_conversation_is_a_verdict(
    start: int, caplog: pytest.LogCaptureFixture, record_property: Callable[[str, object], None]
) -> None:
    reasons: Counter[str] = Counter()
    for seed in range(start, start + 50):
        machine = Mutates(Simulation(), seed)
        (verdict,) = await converse(machine)
        reasons[str(verdict.reason)] += 1
        if not machine.done:
            assert verdict.ok, seed
    assert not [record for record in caplog.records if record.exc_info]
    # The fuzzer reaches every part of the conversation, or it would not be worth its time.
    assert len(reasons) >= 5
    record_property("rate", ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()))


async def test_mutated_machines_do_not_disturb_an_honest_one_in_their_batch() -> None:
    for seed in range(1000, 1010):
        clock = Simulation()
        *_, honest = await converse(Mutates(clock, seed), Mutates(clock, seed + 500), Scripted(clock))
        assert honest.ok, seed


async def test_hostile_bytes_take_no_memory() -> None:
    await converse(Mutates(Simulation(), 0))
    gc.collect()
    tracemalloc.start()
    try:
        peaks = []
        for seed in range(2000, 2012):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            await converse(Mutates(Simulation(), seed))
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
        # An exception, its traceback and its future are a circle.
        gc.collect()
        left = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    # The machine is in this process too: its C, its frames of 0.8 MB, what it floods the pipe with, and of all that
    # what has not been collected yet, which is more where the heap is large. It announces up to 4 GB a frame.
    assert max(peaks) < 15 * FLOOD_BYTES + 30_000_000
    assert left - before < 1_000_000


HEADERS = st.fixed_dictionaries(
    {"type": st.sampled_from(["hello", "prepared", "root", "opened", "failed", "bye"])},
    optional={
        "device": st.integers(-1, 17) | st.none(),
        "pass": st.integers(-1, 6) | st.none(),
        "devices": st.lists(
            st.fixed_dictionaries({"name": st.text(max_size=5), "uuid": st.none(), "memory_bytes": st.integers(0, 9)}),
            max_size=3,
        ),
        "torch": st.text(max_size=5),
        "code": st.sampled_from(["devices", "memory", "internal", "other"]),
        "message": st.text(max_size=300),
    },
)
HARMLESS = {"hello": frames.Hello, "prepare": frames.Prepared}
NOBODYS_DEVICE = {"name": "", "uuid": None, "memory_bytes": 0}
CHUNKS = st.one_of(
    st.binary(max_size=64),
    st.builds(frames.encode, HEADERS, st.binary(max_size=40)),
    st.builds(lambda header: frames.encode(header, bytes(32)), HEADERS),
    st.integers(0, 2**32 - 1).map(lambda length: length.to_bytes(4, "little")),
)


def first_answer(data: bytes) -> frames.Answer:
    header, rest = data[: frames.LENGTH_BYTES], data[frames.LENGTH_BYTES :]
    return frames.parse_answer(rest[: frames.parse_length(header)])


@settings(max_examples=40)
@example(kind="hello", chunks=[frames.encode({"type": "hello", "devices": [NOBODYS_DEVICE] * 2, "torch": ""})])
@given(kind=st.sampled_from(["hello", "prepare", "compute", "rehash", "open"]), chunks=st.lists(CHUNKS, max_size=6))
def test_any_answer_to_any_question_is_a_verdict(kind: str, chunks: list[bytes]) -> None:
    (verdict,) = asyncio.run(converse(Scripted(Simulation(), kind, b"".join(chunks))))
    # A well-formed hello or "prepared" proves nothing, and what this machine sends after it is right.
    assert not verdict.ok or isinstance(first_answer(b"".join(chunks)), HARMLESS[kind])


async def test_nothing_is_read_but_lengths_headers_and_what_the_statement_says() -> None:
    machine = Scripted(Simulation())
    (verdict,) = await converse(machine)
    assert verdict.ok
    sizes = machine.channel.reads
    headers = sizes[1::2][: 1 + DEVICES]
    assert sizes[0 : 2 * (1 + DEVICES) : 2] == [frames.LENGTH_BYTES] * (1 + DEVICES)
    assert all(0 < size <= frames.MAX_HEADER_BYTES for size in headers)
    timed = sizes[2 * (1 + DEVICES) :][: 3 * DEVICES * (1 + DIMS.passes)]
    assert timed[0::3] == [frames.LENGTH_BYTES] * (DEVICES * (1 + DIMS.passes))
    assert timed[2::3] == [32] * (DEVICES * (1 + DIMS.passes))
    answers = sizes[2 * (1 + DEVICES) + len(timed) :]
    assert answers[0::3] == [frames.LENGTH_BYTES] * DEVICES
    # 24 rows of 16 entries; 96 blocks of at most 1024 digests, each with a path of one sibling.
    assert all(24 * 4 * 16 + 96 * (8 * (1100 - 1024) + 32) <= size <= 1536 + 96 * (8192 + 32) for size in answers[2::3])


def root(device: int, number: int) -> bytes:
    return frames.encode({"type": "root", "device": device, "pass": number}, bytes(32))


def opened(device: int) -> bytes:
    return frames.encode({"type": "opened", "device": device}, bytes(5000))


@pytest.mark.parametrize(
    ("kind", "words", "reads"),
    [
        # Refused by its four bytes: no byte of the header is read.
        pytest.param("compute", b"\xff\xff\xff\xff" + b"x" * 5000, 1, id="a-root-of-4-gb"),
        pytest.param("open", (4097).to_bytes(4, "little") + b"x" * 5000, 1, id="an-opening-with-a-long-header"),
        # Refused by its header: no byte of the payload is read.
        pytest.param("compute", root(2, 0), 2, id="a-device-not-claimed"),
        pytest.param("compute", root(0, 1), 2, id="a-pass-too-early"),
        pytest.param("rehash", root(0, 0), 2, id="the-commitment-again"),
        pytest.param("rehash", opened(0), 2, id="an-opening-too-early"),
        pytest.param("open", opened(2), 2, id="an-opening-of-a-device-not-claimed"),
        pytest.param("open", opened(-1), 2, id="an-opening-of-no-device"),
        pytest.param("open", root(0, 0), 2, id="a-root-too-late"),
    ],
)
async def test_what_is_refused_by_its_size_or_header_is_read_no_further(kind: str, words: bytes, reads: int) -> None:
    honest = Scripted(Simulation(), kind)
    await converse(honest)
    machine = Scripted(Simulation(), kind, words)
    (verdict,) = await converse(machine)
    assert verdict.reason is not ProofReason.OK
    # The silent machine's last read is the one that waits for the length of an answer.
    assert len(machine.channel.reads) == len(honest.channel.reads) - 1 + reads
