"""What a proof costs the validator, at the size of a data-centre GPU."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from compute.proof import digest, frames, generator
from compute.proof.conversation import Question
from compute.proof.models import Claim, GpuModel, ProofSettings
from compute.proof.session import Target, prove_batch
from compute.proof.statement import Dims
from compute.proof.verifier import Evidence, Projection, draw_projection, verify_device
from compute.testing.clock import ManualClock
from compute.testing.proof import FakeMachine

# An H200's statement: 2^21 rows of C are 137 GB.
_DIMS = Dims(rows=2**21, k=32768, columns=32768, passes=32, tile_rows=8192)
_B_ROWS = 256
_HEARTBEAT_SECONDS = 0.002


@dataclass(frozen=True)
class Answer:
    """An honest device's answer, and all that is needed to check it."""

    dims: Dims
    a_seed: generator.Words
    projection: Projection
    evidence: Evidence
    question: Question
    payload: bytes

    def verify(self) -> None:
        """As the validator does."""
        asked = self.question
        verify_device(self.dims, self.a_seed, self.projection, self.evidence, asked.rows, asked.passes, self.payload)


def honest_answer(dims: Dims, projection: Projection, nonce: bytes, *, rows: int, passes: int) -> Answer:
    """An answer whose opened rows are A·B and whose commitments hold their digests.

    The digests of rows that nobody opens are random, so that C need not be computed. Seconds at full size.
    """
    random = secrets.SystemRandom()
    opened = tuple(random.sample(range(dims.rows), rows))
    numbers = range(1, dims.passes + 1)
    question = Question(opened, tuple(tuple(random.sample(numbers, passes)) for _ in opened))
    a_seed = generator.seed_a(nonce, "validator", "miner", 0)
    c_rows = _product(generator.rows(np.array(opened), dims.k, a_seed), generator.seed_b(nonce), dims)
    held = digest.stored(c_rows)

    digests = np.frombuffer(secrets.token_bytes(8 * dims.rows), "<i8").copy()
    first_key = secrets.token_bytes(32)
    key, roots, opened_parts = digest.commit_key(nonce), [], {}
    for number in range(dims.passes + 1):
        digests[list(opened)] = digest.row_digests(held, digest.word_keys(dims.columns, key))
        levels = digest.tree(digests)
        roots.append(levels[-1][0])
        for row, row_passes in zip(opened, question.passes, strict=True):
            if number == 0 or number in row_passes:
                block = row // digest.BLOCK_ROWS
                part = digests[block * digest.BLOCK_ROWS : (block + 1) * digest.BLOCK_ROWS].tobytes()
                opened_parts[row, number] = part + b"".join(digest.path(levels, block))
        key = first_key if number == 0 else digest.next_key(roots[-1])
    parts = [
        opened_parts[row, number]
        for row, row_passes in zip(opened, question.passes, strict=True)
        for number in (0, *row_passes)
    ]
    evidence = Evidence.of(nonce, roots[0], first_key, roots[1:])
    return Answer(dims, a_seed, projection, evidence, question, c_rows.astype("<i4").tobytes() + b"".join(parts))


def _product(a_rows: NDArray[np.int32], b_seed: generator.Words, dims: Dims) -> NDArray[np.int64]:
    """``a_rows · B``, B a few rows at a time: every partial sum is below 2^24, exact in fp32."""
    total = np.zeros((len(a_rows), dims.columns), np.int64)
    for top in range(0, dims.k, _B_ROWS):
        indices = np.arange(top, min(top + _B_ROWS, dims.k))
        b_rows = generator.rows(indices, dims.columns, b_seed).astype(np.float32)
        total += (a_rows[:, top : top + _B_ROWS].astype(np.float32) @ b_rows).astype(np.int64)
    return total


def verification() -> dict[str, float]:
    """The validator's cost of one batch and of one device in it, and the longest that its event loop stood still.

    Costs are the time of all this process's threads on the processor: what else the machine does is not counted.
    """
    return asyncio.run(_verification())


async def _verification() -> dict[str, float]:
    settings = ProofSettings()
    nonce = hashlib.sha256(b"bench").digest()
    loop = asyncio.get_running_loop()
    stalls: list[float] = []
    heart = asyncio.create_task(_heartbeat(stalls))
    with ThreadPoolExecutor(1) as executor:
        start = time.process_time()
        projection = await loop.run_in_executor(executor, draw_projection, nonce, _DIMS.k, _DIMS.columns)
        shared = time.process_time() - start
        heart.cancel()
        answer = honest_answer(_DIMS, projection, nonce, rows=settings.opened_rows, passes=settings.opened_passes)
        heart = asyncio.create_task(_heartbeat(stalls))
        await asyncio.sleep(0)
        times = []
        for _ in range(8):
            start = time.process_time()
            await loop.run_in_executor(executor, answer.verify)
            times.append(time.process_time() - start)
        heart.cancel()
    return {
        "shared_u_seconds": round(shared, 3),
        "verify_gpu_ms": round(float(np.median(times)) * 1e3, 2),
        "opened_mb_per_gpu": round(len(answer.payload) / 1e6, 2),
        "loop_stall_ms": round(max(stalls) * 1e3, 2),
    }


async def _heartbeat(stalls: list[float]) -> None:
    while True:
        start = time.perf_counter()
        await asyncio.sleep(_HEARTBEAT_SECONDS)
        stalls.append(time.perf_counter() - start - _HEARTBEAT_SECONDS)


class _Elsewhere(FakeMachine):
    """A machine whose own work is done beside the event loop, as another machine's is, by one thread for all of them.

    The threads of a process share one interpreter: more of them would be measured instead of the validator.
    """

    def __init__(self, thread: Executor) -> None:
        super().__init__(ManualClock(), spend=_no_time)
        self._thread = thread
        self._loop = asyncio.get_running_loop()

    def send(self, header: dict[str, object], payload: bytes = b"") -> None:
        self._loop.call_soon_threadsafe(super().send, header, payload)

    async def on_compute(self, nonce: bytes, count: int) -> None:
        await self._loop.run_in_executor(self._thread, asyncio.run, super().on_compute(nonce, count))

    async def on_rehash(self, key: bytes, passes: int) -> None:
        await self._loop.run_in_executor(self._thread, asyncio.run, super().on_rehash(key, passes))

    async def on_open(self, lines: Sequence[NDArray[np.int32]]) -> None:
        await self._loop.run_in_executor(self._thread, asyncio.run, super().on_open(lines))


async def _no_time(seconds: float) -> None:
    return


def round_of_machines(machines: int = 16) -> dict[str, float]:
    """The longest that the event loop stood still while it proved ``machines`` CPU machines in one batch."""
    return asyncio.run(_round_of_machines(machines))


async def _round_of_machines(count: int) -> dict[str, float]:
    settings = ProofSettings(device="cpu", rows=1024, k=4096, columns=1024)
    model = GpuModel("CPU core", tflops16=1e-9, vram_gb=1.0, bandwidth_gbs=None)
    stalls: list[float] = []
    heart = asyncio.create_task(_heartbeat(stalls))
    with ThreadPoolExecutor(1) as executor, ThreadPoolExecutor(1) as thread:
        machines = [_Elsewhere(thread) for _ in range(count)]
        verdicts = await prove_batch(
            [Target(f"miner-{number}", Claim(model.name, 1), one.connect) for number, one in enumerate(machines)],
            validator_hotkey="validator",
            models={model.name: model},
            tolerance_pairs=[],
            settings=settings,
            on_verdict=lambda target, verdict: None,
            executor=executor,
            # Nobody is judged by how long this one thread makes the others wait.
            clock=ManualClock(),
        )
    heart.cancel()
    assert all(verdict.ok for verdict in verdicts)
    return {f"loop_stall_{count}_miners_ms": round(max(stalls) * 1e3, 2)}


def memory() -> dict[str, float]:
    """The most that U and the verification of a device take on top of the process, its answer included."""
    settings, nonce = ProofSettings(), bytes(32)
    dims = replace(_DIMS, rows=2**15)
    tracemalloc.start()
    try:
        projection = draw_projection(nonce, dims.k, dims.columns)
        peaks = [tracemalloc.get_traced_memory()[1]]
        answer = honest_answer(dims, projection, nonce, rows=settings.opened_rows, passes=settings.opened_passes)
        others = tracemalloc.get_traced_memory()[0] - len(answer.payload) - projection.vector.nbytes * 2
        tracemalloc.reset_peak()
        answer.verify()
        peaks.append(tracemalloc.get_traced_memory()[1] - others)
    finally:
        tracemalloc.stop()
    return {"verify_extra_mb": round(max(peaks) / 1e6, 1)}


def generation() -> dict[str, float]:
    """One core's time per entry of a matrix, on the validator in numpy and in the worker in torch."""
    # Here, because a verifier needs neither, and is measured as it is.
    import torch

    from compute.proof import worker

    words, seed = generator.seed(b"bench"), worker.make_seed(b"bench")
    torch.set_num_threads(1)
    column, out = worker.column_keys(32768, seed, "cpu"), torch.empty((128, 32768), dtype=torch.float32)
    indices = torch.arange(128)
    return {
        "generate_ns_per_entry": _ns_per_entry(lambda: generator.rows(np.arange(128), 32768, words)),
        "generate_torch_ns_per_entry": _ns_per_entry(lambda: worker.generate(indices, seed, column, out, 256)),
    }


def _ns_per_entry(generate: Callable[[], object]) -> float:
    """The median of several runs after one that is not counted: the first pays for memory and for the core's clock."""
    times = []
    for _ in range(8):
        start = time.perf_counter()
        generate()
        times.append(time.perf_counter() - start)
    return round(statistics.median(times[1:]) / (128 * 32768) * 1e9, 3)


def bench() -> dict[str, float]:
    """Flat figures, the unit in each name."""
    header = frames.encode({"type": "root", "device": 3, "pass": 17})[frames.LENGTH_BYTES :]
    start = time.perf_counter()
    for _ in range(2000):
        frames.parse_answer(header)
    per_frame = (time.perf_counter() - start) / 2000
    return {
        **verification(),
        **round_of_machines(),
        **memory(),
        **generation(),
        "parse_frame_us": round(per_frame * 1e6, 2),
    }
