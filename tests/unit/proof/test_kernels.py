"""The fused kernels of the CUDA path: the same source, compiled for the CPU, gives the bits of the generator."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compute.proof import digest, generator, worker
from tests.waiting import DEADLINE_SECONDS

# What torch wraps around an elementwise kernel: one call per entry, of int32 and of int64.
LOOPS = """
extern "C" void run_entries(const int* first, const int* second, const int* column, int* low, int* high, int n) {
    for (int i = 0; i < n; i++) entries<int>(first[i], second[i], column[i], low[i], high[i]);
}
extern "C" void run_addends(const long long* w, const long long* k, long long* out, int n) {
    const long long *w1 = w + n, *w2 = w1 + n, *w3 = w2 + n, *k1 = k + n, *k2 = k1 + n, *k3 = k2 + n;
    for (int i = 0; i < n; i++) out[i] = addend<long long>(w[i], w1[i], w2[i], w3[i], k[i], k1[i], k2[i], k3[i]);
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")
    folder: Path = tmp_path_factory.mktemp("kernels")
    (folder / "kernels.cpp").write_text(worker.ENTRIES_KERNEL + worker.DIGEST_KERNEL + LOOPS, encoding="utf-8")
    options = ["-O2", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run(
        [compiler, *options, "-o", "kernels.so", "kernels.cpp"], cwd=folder, check=True, timeout=DEADLINE_SECONDS
    )
    return ctypes.CDLL(str(folder / "kernels.so"))


def test_the_entries_kernel_is_the_generator(compiled: ctypes.CDLL) -> None:
    words = generator.seed(b"kernel")
    rows, columns = 40, 512
    first, second = generator.row_keys(np.arange(rows), words)
    column = generator.column_keys(columns, words)
    ones = np.ones((rows, columns // 2), np.uint32)
    inputs = [np.ascontiguousarray(part * ones) for part in (first[:, None], second[:, None], column[None, :])]
    low, high = np.empty(ones.shape, np.int32), np.empty(ones.shape, np.int32)
    compiled.run_entries(*[ctypes.c_void_p(part.ctypes.data) for part in (*inputs, low, high)], low.size)
    np.testing.assert_array_equal(np.hstack([low, high]), generator.rows(np.arange(rows), columns, words))


def test_the_digest_kernel_adds_up_to_the_digest(compiled: ctypes.CDLL) -> None:
    columns = 4096
    rows = np.random.default_rng(5).integers(-(2**15), 2**15, (20, columns)).astype(np.int16)
    key_words = digest.word_keys(columns, bytes(range(32)))
    found = []
    for row in rows:
        parts = np.empty(columns // 16, np.int64)
        arguments = [ctypes.c_void_p(part.ctypes.data) for part in (row, key_words, parts)]
        compiled.run_addends(*arguments, columns // 16)
        found.append(int(parts.sum()))
    assert found == digest.row_digests(rows, key_words).tolist()


def _same_in_pieces(first: Any, second: Any, column: Any) -> Any:
    """As the fused kernel: its outputs are its own, its inputs are not touched."""
    return worker.plain_entries(first.clone(), second.clone(), column.clone())


def _addends(rows: Any, key_words: Any) -> Any:
    quarters = zip(rows.chunk(4, 1), key_words.chunk(4), strict=True)
    return sum(worker.plain_digests(part.contiguous(), keys) for part, keys in quarters)


def _off_by_one(first: Any, second: Any, column: Any) -> Any:
    low, high = worker.plain_entries(first, second, column)
    high[-1, -1] += 1
    return low, high


def _negated(rows: Any, key_words: Any) -> Any:
    return -worker.plain_digests(rows, key_words)


def _missing() -> worker.Kernels:
    raise AttributeError("module 'torch.cuda' has no attribute 'jiterator'")


@pytest.mark.parametrize(
    ("make", "fused"),
    [
        (lambda: worker.Kernels(_same_in_pieces, _addends, fused=True), True),
        (lambda: worker.Kernels(_off_by_one, _addends, fused=True), False),
        (lambda: worker.Kernels(_same_in_pieces, _negated, fused=True), False),
        (_missing, False),
    ],
)
def test_kernels_are_used_only_if_they_give_the_same_bits(make: Callable[[], worker.Kernels], fused: bool) -> None:
    assert worker.choose_kernels("cpu", 256, make).fused is fused


@pytest.mark.parametrize("columns", [8, 250])
def test_rows_that_do_not_fall_into_quarters_are_digested_plainly(columns: int) -> None:
    assert worker.choose_kernels("cpu", columns, lambda: pytest.fail("asked for")) is worker.PLAIN


def test_without_a_gpu_the_real_ones_are_refused_and_plain_torch_remains() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert worker.choose_kernels("cpu", 256) is worker.PLAIN


def test_the_real_digest_hands_its_kernel_quarters_of_whole_words(
    compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``fused_kernels`` with torch's compiler replaced by this machine's: the views and the sum are the real ones."""

    def addend(*parts: Any) -> Any:
        words, keys = (torch.stack([p.expand(12, -1) for p in half], 1) for half in (parts[:4], parts[4:]))
        out = torch.empty(12, words.shape[2], dtype=torch.int64)
        for row in range(12):
            arguments = [ctypes.c_void_p(t.data_ptr()) for t in (words[row].contiguous(), keys[row].contiguous())]
            compiled.run_addends(*arguments, ctypes.c_void_p(out[row].data_ptr()), words.shape[2])
        return out

    monkeypatch.setattr(torch.cuda.jiterator, "_create_jit_fn", lambda code: addend)
    rows = torch.from_numpy(np.random.default_rng(6).integers(-(2**15), 2**15, (12, 512)).astype(np.int16))
    key_words = worker.make_keys(torch.arange(256), (7, 8, 9, 10))
    found = worker.fused_kernels().digests(rows, key_words)
    assert torch.equal(found, worker.plain_digests(rows, key_words))
