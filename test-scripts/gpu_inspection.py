"""A device's share of a proof from the inside: is C what it must be, and which step takes how long.

Runs the worker's own code in this process, so it needs torch, which the rest of the validator's side does not.
"""

from __future__ import annotations

import io
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compute.proof import generator, worker
from compute.proof.models import DeviceKind
from compute.proof.statement import Dims

_SAMPLED_TILES = 4
_ROWS_PER_TILE = 32
_B_ROWS = 1024
_COPIED_BYTES = 2**31
_OPENED_ROWS = 24
_OPENED_PASSES = 3
_VALIDATOR, _MINER = "this-validator", "this-machine"


class Inspection:
    """One device, number 0 of its kind, that has computed its C under ``nonce``.

    Takes the memory of the statement and the time of one proof; ``seconds`` says how long computing took.
    """

    def __init__(self, kind: DeviceKind, dims: Dims, nonce: bytes) -> None:
        self._dims = dims
        self._nonce = nonce
        identity = (_VALIDATOR.encode(), _MINER.encode())
        shape = {"rows": dims.rows, "k": dims.k, "columns": dims.columns, "tile_rows": dims.tile_rows}
        self._device = worker.Device(kind, 0, shape, identity, worker.Output(io.BytesIO()))
        self._device.prepare()
        self.seconds = self._once(lambda: self._device.compute(nonce))

    def resident_bytes(self) -> int:
        """What C takes where it lies: on a GPU, what the allocator holds there beyond B and the buffers."""
        device = self._device
        held = device.c.numel() * device.c.element_size()
        if not device.on_cuda:
            return int(held)
        others = (device.b, device.a_tile, device.c_tile)
        used = torch.cuda.memory_allocated(device.device) - sum(t.numel() * t.element_size() for t in others)
        return int(min(held, used))

    def wrong_entries(self) -> tuple[int, int, int]:
        """C against the product of integers, on sampled tiles of all columns, the first and the last among them.

        Both as it is held, modulo 2^16, and exactly, as an opened row is computed. Returns how many entries differ, how
        many were compared, and the largest of them in size.
        """
        indices = self._sampled_rows()
        exact = _integer_product(indices, self._dims, self._nonce)
        on_device = torch.from_numpy(indices).to(self._device.device)
        held = _numpy(self._device.c[on_device])
        a_rows = torch.empty((len(indices), self._dims.k), dtype=self._device.b.dtype, device=self._device.device)
        self._generate_a(on_device, a_rows)
        opened = _numpy(self._device.product(a_rows).to(torch.int32))
        wrong = int((held != exact.astype(np.int16)).sum()) + int((opened != exact).sum())
        return wrong, held.size + opened.size, int(np.abs(exact).max())

    def figures(self, least_seconds: float) -> dict[str, float]:
        """The times and rates of every step of the proof, and of a bare ``torch.mm`` and a copy of the same sizes.

        Short steps are repeated for ``least_seconds``; their median counts. Overwrites C.
        """
        device, dims = self._device, self._dims
        key = bytes(32)
        b_seed = worker.make_seed(self._nonce, b"B")
        columns = worker.column_keys(dims.columns, b_seed, device.device)
        all_k = torch.arange(dims.k, device=device.device)
        tile_rows = torch.arange(dims.tile_rows, device=device.device)
        lines = [(row, *range(1, _OPENED_PASSES + 1)) for row in range(min(_OPENED_ROWS, dims.rows))]
        generate_b = self._median(least_seconds, lambda: self._generate(all_k, b_seed, columns, device.b))
        generate_a = self._median(least_seconds, lambda: self._generate_a(tile_rows, device.a_tile))
        bare = self._median(least_seconds, self._bare_product)
        fill = self._median(least_seconds, lambda: device.fill_tile(0))
        digest = self._median(least_seconds, lambda: device.commit(device.pass_keys(key), device.c[: dims.tile_rows]))
        a_pass = self._once(lambda: device.rehash(key, _OPENED_PASSES)) / _OPENED_PASSES
        opening = self._once(lambda: device.open(lines))
        half = min(dims.rows // 2, _COPIED_BYTES // (2 * dims.columns))
        copy = self._median(least_seconds, lambda: device.c[:half].copy_(device.c[half : 2 * half]))
        mm_tflops = 2 * dims.tile_rows * dims.k * dims.columns / bare / 1e12
        tflops = dims.operations / self.seconds / 1e12
        # A copy reads each byte and writes it; a pass reads only.
        copy_gbs = 2 * half * 2 * dims.columns / copy / 1e9
        pass_gbs = dims.resident_bytes / a_pass / 1e9
        return {
            "fused_kernels": float(device.kernels.fused),
            "generate_b_ms": generate_b * 1e3,
            "generate_a_tile_ms": generate_a * 1e3,
            "mm_tile_ms": bare * 1e3,
            "fill_tile_ms": fill * 1e3,
            "digest_tile_ms": digest * 1e3,
            "compute_seconds": self.seconds,
            "pass_ms": a_pass * 1e3,
            "open_ms": opening * 1e3,
            "compute_tflops": tflops,
            "mm_tflops": mm_tflops,
            "pass_gbs": pass_gbs,
            "copy_gbs": copy_gbs,
            "compute_over_mm_ratio": tflops / mm_tflops,
            "pass_over_copy_ratio": pass_gbs / copy_gbs,
        }

    def _sampled_rows(self) -> NDArray[np.int64]:
        last = self._dims.rows - _ROWS_PER_TILE
        tops = [0, last, *(random.SystemRandom().randint(0, last) for _ in range(_SAMPLED_TILES - 2))]
        return np.concatenate([np.arange(top, top + _ROWS_PER_TILE) for top in tops])

    def _generate_a(self, indices: Any, out: Any) -> None:
        self._generate(indices, self._device.a_seed, self._device.a_columns, out)

    def _generate(self, indices: Any, seed: Sequence[int], columns: Any, out: Any) -> None:
        worker.generate(indices, seed, columns, out, self._device.step, self._device.kernels)

    def _bare_product(self) -> None:
        device = self._device
        if device.on_cuda:
            torch.mm(device.a_tile, device.b, out_dtype=torch.float32, out=device.c_tile)
        else:
            torch.mm(device.a_tile, device.b, out=device.c_tile)

    def _once(self, work: Callable[[], object]) -> float:
        self._device.synchronize()
        start = time.perf_counter()
        work()
        self._device.synchronize()
        return time.perf_counter() - start

    def _median(self, least_seconds: float, work: Callable[[], object]) -> float:
        self._once(work)
        times: list[float] = []
        while len(times) < 3 or sum(times) < least_seconds:
            times.append(self._once(work))
        return statistics.median(times)


def _integer_product(indices: NDArray[np.int64], dims: Dims, nonce: bytes) -> NDArray[np.int64]:
    """Rows of A·B by the validator's own generator; in float64 every sum is exact with 29 bits to spare."""
    a_rows = generator.rows(indices, dims.k, generator.seed_a(nonce, _VALIDATOR, _MINER, 0)).astype(np.float64)
    total = np.zeros((len(indices), dims.columns))
    for top in range(0, dims.k, _B_ROWS):
        chosen = np.arange(top, min(top + _B_ROWS, dims.k))
        b_rows = generator.rows(chosen, dims.columns, generator.seed_b(nonce)).astype(np.float64)
        total += a_rows[:, chosen] @ b_rows
    return total.astype(np.int64)


def _numpy(tensor: Any) -> NDArray[Any]:
    array: NDArray[Any] = tensor.cpu().numpy()
    return array
