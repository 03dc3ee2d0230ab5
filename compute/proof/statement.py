"""What a machine has to prove, derived from the claimed model and never from what the miner says of its memory."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from compute.base.errors import ConfigError
from compute.proof.digest import BLOCK_ROWS, DIGEST_BYTES, HASH_BYTES, block_count, block_length, path_length
from compute.proof.models import GpuModel, ProofSettings

K_STEP = 1024
GENERATOR_ROWS = 1024
"""Rows that the worker generates or digests at once on CUDA; bounds its temporaries."""


@dataclass(frozen=True)
class Dims:
    """One device's statement: C is ``rows × columns``, A ``rows × k``, B ``k × columns``; ``passes`` of rehashing."""

    rows: int
    k: int
    columns: int
    passes: int
    tile_rows: int

    @property
    def operations(self) -> int:
        """Multiplications and additions of the product."""
        return 2 * self.rows * self.k * self.columns

    @property
    def resident_bytes(self) -> int:
        """The size of C as held: two bytes an entry."""
        return 2 * self.rows * self.columns

    def opened_bytes(self, rows: list[int], passes_per_row: int) -> int:
        """The exact size of one device's answer to ``open``.

        Each row as ``<i4``; then, for each row, for the commitment and each pass: its digest block and tree path.
        """
        path_bytes = HASH_BYTES * path_length(block_count(self.rows))
        blocks = sum(DIGEST_BYTES * block_length(self.rows, row // BLOCK_ROWS) + path_bytes for row in rows)
        return len(rows) * 4 * self.columns + (1 + passes_per_row) * blocks


@functools.lru_cache(maxsize=256)
def dims_for(model: GpuModel, settings: ProofSettings) -> Dims:
    """The statement for a claim of ``model``.

    K is the smallest multiple of 1024 with which computing takes ``compute_seconds`` at the model's rate, or ``max_k``;
    M fills the model's memory less B, one tile's buffers and ``reserved_gb``.

    Raises:
        ConfigError: the model's memory has no room for a single block of rows.
    """
    columns = settings.columns
    k = settings.k if settings.k is not None else _least_k(model, settings)
    rows = settings.rows if settings.rows is not None else _rows_in_memory(model, settings, k)
    passes = settings.min_passes
    if model.bandwidth_gbs is not None:
        wanted = math.ceil(settings.rehash_seconds * model.bandwidth_gbs * 1e9 / (2 * rows * columns))
        passes = min(max(wanted, settings.min_passes), settings.max_passes)
    return Dims(rows=rows, k=k, columns=columns, passes=passes, tile_rows=min(settings.tile_rows, rows))


def compute_deadline_seconds(dims: Dims, model: GpuModel, settings: ProofSettings) -> float:
    """How long the validator waits for the roots of C."""
    return _deadline(dims.operations / (model.tflops16 * 1e12), settings)


def rehash_deadline_seconds(dims: Dims, model: GpuModel, settings: ProofSettings) -> float:
    """How long the validator waits for the roots of all passes."""
    if model.bandwidth_gbs is None:
        return _deadline(settings.rehash_seconds, settings)
    return _deadline(dims.passes * dims.resident_bytes / (model.bandwidth_gbs * 1e9), settings)


def _deadline(expected_seconds: float, settings: ProofSettings) -> float:
    return max(settings.phase_deadline_floor_seconds, settings.phase_deadline_factor * expected_seconds)


def _least_k(model: GpuModel, settings: ProofSettings) -> int:
    for k in range(K_STEP, settings.max_k, K_STEP):
        operations = 2 * _rows_in_memory(model, settings, k) * k * settings.columns
        if operations >= settings.compute_seconds * model.tflops16 * 1e12:
            return k
    return settings.max_k


def _rows_in_memory(model: GpuModel, settings: ProofSettings, k: int) -> int:
    columns = settings.columns
    b_bytes = 2 * k * columns
    # One tile of A in fp16 and of C in fp32, and three int32 temporaries of the generator or the digest.
    tile_bytes = settings.tile_rows * (2 * k + 4 * columns) + 3 * 4 * GENERATOR_ROWS * max(k, columns)
    free = model.vram_gb * 1e9 - settings.reserved_gb * 1e9 - b_bytes - tile_bytes
    rows = int(free // (2 * columns)) // BLOCK_ROWS * BLOCK_ROWS
    if rows < BLOCK_ROWS:
        raise ConfigError(
            f"{model.name}: {model.vram_gb:g} GB of memory leave no room for C beside B, tiles and "
            f"reserved_gb {settings.reserved_gb:g}; lower columns, tile_rows or reserved_gb"
        )
    return rows
