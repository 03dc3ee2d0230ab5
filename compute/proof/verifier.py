"""The arithmetic that a prover cannot talk its way around: opened rows against U = B·R, and digests against roots.

A wrong row passes with probability at most 2^-30: the check is modulo 2^64, an error of an entry is below 2^32 in
size, and each entry of R is one of 2^30 equally likely values that the prover never learns.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compute.base.errors import ProofError
from compute.base.reasons import ProofReason
from compute.proof import digest, generator
from compute.proof.digest import BLOCK_ROWS, DIGEST_BYTES, HASH_BYTES
from compute.proof.statement import Dims

_R_BOUND = 2**29


@dataclass(frozen=True)
class Projection:
    """The validator's secret: ``vector`` is R, one entry per column; ``products`` is ``B · R``, one per row of B."""

    vector: NDArray[np.int64]
    products: NDArray[np.int64]


@dataclass(frozen=True)
class Evidence:
    """What one device has committed to, and under which keys: index 0 is the commitment, then the passes."""

    roots: tuple[bytes, ...]
    keys: tuple[bytes, ...]

    @staticmethod
    def of(nonce: bytes, root: bytes, first_key: bytes, pass_roots: Sequence[bytes]) -> Evidence:
        """From the roots of both timed phases; every pass after the first has the key that the root before gives."""
        later = [digest.next_key(previous) for previous in pass_roots[:-1]]
        return Evidence((root, *pass_roots), (digest.commit_key(nonce), first_key, *later))


def draw_projection(nonce: bytes, k: int, columns: int) -> Projection:
    """A fresh secret R and ``U = B·R`` for the B of ``nonce``; ``k`` is the largest K of the batch.

    Seconds of one core at full size: run it in an executor.
    """
    random = np.frombuffer(secrets.token_bytes(4 * columns), "<u4")
    vector = (random & np.uint32(2 * _R_BOUND - 1)).astype(np.int64) - _R_BOUND
    return Projection(vector, generator.project(generator.seed_b(nonce), k, vector))


def verify_device(
    dims: Dims,
    a_seed: generator.Words,
    projection: Projection,
    evidence: Evidence,
    rows: Sequence[int],
    passes: Sequence[Sequence[int]],
    payload: bytes,
) -> None:
    """Check one device's answer to ``open``: ``Dims.opened_bytes`` long, in the order of ``rows`` and ``passes``.

    The answer holds no indices: that the rows and passes are those asked for is a matter of position.

    Raises:
        ProofError: ``WRONG_ROW`` if a row is not A_i·B or not what was committed to; ``BAD_OPENING`` if a block does
            not lead to its root; ``NOT_RESIDENT`` if a pass did not digest the row.
    """
    if len(payload) != dims.opened_bytes(list(rows), len(passes[0])):
        raise ProofError(ProofReason.BAD_OPENING, f"{len(payload)} bytes opened, not what the rows asked for take")
    size = len(rows) * 4 * dims.columns
    c_rows = np.frombuffer(payload, "<i4", len(rows) * dims.columns).reshape(len(rows), dims.columns)
    a_rows = generator.rows(np.array(rows), dims.k, a_seed)
    wrong = np.flatnonzero(a_rows.astype(np.int64) @ projection.products[: dims.k] != c_rows @ projection.vector)
    if len(wrong):
        raise ProofError(ProofReason.WRONG_ROW, f"{len(wrong)} of {len(rows)} opened rows are not A·B")
    held = digest.stored(c_rows)
    expected = _expected_digests(dims, held, evidence, passes)
    depth = digest.path_length(digest.block_count(dims.rows))
    offset = size
    for position, (row, row_passes) in enumerate(zip(rows, passes, strict=True)):
        block_index, place = divmod(row, BLOCK_ROWS)
        block_bytes = DIGEST_BYTES * digest.block_length(dims.rows, block_index)
        for number in (0, *row_passes):
            block = payload[offset : offset + block_bytes]
            offset += block_bytes
            siblings = [payload[offset + i * HASH_BYTES : offset + (i + 1) * HASH_BYTES] for i in range(depth)]
            offset += depth * HASH_BYTES
            if digest.root_of(block, block_index, siblings) != evidence.roots[number]:
                raise ProofError(ProofReason.BAD_OPENING, f"row {row}: its block does not lead to root {number}")
            claimed = int.from_bytes(block[place * DIGEST_BYTES : (place + 1) * DIGEST_BYTES], "little", signed=True)
            if claimed != expected[position, number]:
                reason = ProofReason.NOT_RESIDENT if number else ProofReason.WRONG_ROW
                raise ProofError(reason, f"row {row}: pass {number} has another digest than the row")


def _expected_digests(
    dims: Dims, held: NDArray[np.int16], evidence: Evidence, passes: Sequence[Sequence[int]]
) -> dict[tuple[int, int], int]:
    """The digest of each opened row (by position) in each pass that was asked of it, and in the commitment."""
    wanted: dict[int, list[int]] = {0: list(range(len(held)))}
    for position, row_passes in enumerate(passes):
        for number in row_passes:
            wanted.setdefault(number, []).append(position)
    found = {}
    for number, positions in wanted.items():
        values = digest.row_digests(held[positions], digest.word_keys(dims.columns, evidence.keys[number]))
        found.update({(position, number): int(value) for position, value in zip(positions, values, strict=True)})
    return found
