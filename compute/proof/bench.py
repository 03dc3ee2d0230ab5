"""What a proof costs the validator, at the size of a data-centre GPU."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compute.proof import digest, frames, generator
from compute.proof.conversation import Question
from compute.proof.models import ProofSettings
from compute.proof.statement import Dims
from compute.proof.verifier import Evidence, Projection, draw_projection, verify_device

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
    """The validator's cost of one batch and of one device in it, and the longest that its event loop stood still."""
    return asyncio.run(_verification())


async def _verification() -> dict[str, float]:
    settings = ProofSettings()
    nonce = hashlib.sha256(b"bench").digest()
    loop = asyncio.get_running_loop()
    stalls: list[float] = []
    heart = asyncio.create_task(_heartbeat(stalls))
    with ThreadPoolExecutor(1) as executor:
        start = time.perf_counter()
        projection = await loop.run_in_executor(executor, draw_projection, nonce, _DIMS.k, _DIMS.columns)
        shared = time.perf_counter() - start
        heart.cancel()
        answer = honest_answer(_DIMS, projection, nonce, rows=settings.opened_rows, passes=settings.opened_passes)
        heart = asyncio.create_task(_heartbeat(stalls))
        await asyncio.sleep(0)
        times = []
        for _ in range(8):
            start = time.perf_counter()
            await loop.run_in_executor(executor, answer.verify)
            times.append(time.perf_counter() - start)
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


def bench() -> dict[str, float]:
    """Flat figures, the unit in each name."""
    words = generator.seed(b"bench")
    start = time.perf_counter()
    generator.rows(np.arange(128), 32768, words)
    per_entry = (time.perf_counter() - start) / (128 * 32768)
    header = frames.encode({"type": "root", "device": 3, "pass": 17})[frames.LENGTH_BYTES :]
    start = time.perf_counter()
    for _ in range(2000):
        frames.parse_answer(header)
    per_frame = (time.perf_counter() - start) / 2000
    return {
        **verification(),
        "generate_ns_per_entry": round(per_entry * 1e9, 3),
        "parse_frame_us": round(per_frame * 1e6, 2),
    }
