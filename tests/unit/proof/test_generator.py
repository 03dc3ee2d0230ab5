from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.proof import generator, worker

NONCES = st.binary(min_size=32, max_size=32)


def test_the_matrices_of_the_wire_never_change() -> None:
    seed = generator.seed_a(bytes(range(32)), "validator", "miner", 3)
    found = generator.rows(np.array([0, 1, 70000]), 64, seed)
    assert found[:, :4].tolist() == GOLDEN_CORNER
    assert hashlib.sha256(found.astype("<i4").tobytes()).hexdigest() == GOLDEN_HASH


@settings(max_examples=25)
@given(
    nonce=NONCES,
    half=st.integers(1, 40),
    indices=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20),
    step=st.integers(1, 30),
)
def test_torch_agrees_bit_for_bit(nonce: bytes, half: int, indices: list[int], step: int) -> None:
    ours = generator.rows(np.array(indices), 2 * half, generator.seed(nonce, b"B"))
    seed = worker.make_seed(nonce, b"B")
    theirs = torch.empty((len(indices), 2 * half), dtype=torch.float32)
    worker.generate(torch.tensor(indices), seed, worker.column_keys(2 * half, seed, "cpu"), theirs, step)
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_fp16_holds_every_entry_and_fp32_every_sum() -> None:
    entries = np.arange(-generator.OFFSET, generator.OFFSET + 1)
    np.testing.assert_array_equal(entries.astype(np.float16).astype(int), entries)
    # 8 standard deviations of a sum over the largest K stay where fp32 counts in ones.
    deviation = np.sqrt(np.mean(entries.astype(float) ** 2) ** 2 * 32768)
    assert 8 * deviation < 2**24


def test_entries_fill_their_range_evenly_and_rows_and_columns_are_unrelated() -> None:
    found = generator.rows(np.arange(512), 1024, generator.seed(b"even"))
    assert (found.min(), found.max()) == (-181, 181)
    counts = np.bincount(found.ravel() + 181, minlength=363)
    expected = found.size / 363
    assert abs(((counts - expected) ** 2 / expected).sum() / 362 - 1) < 0.4
    normal = found / np.sqrt(np.mean(found.astype(float) ** 2))
    gram = normal @ normal.T / np.sqrt(1024)
    np.fill_diagonal(gram, 0)
    assert np.abs(gram).max() < 6
    assert abs(np.corrcoef(found[:, :512].ravel(), found[:, 512:].ravel())[0, 1]) < 0.01


def test_keys_never_collide() -> None:
    words = generator.seed(b"keys")
    assert len(np.unique(generator.keys(np.arange(1 << 17), words[:4]))) == 1 << 17


@pytest.mark.parametrize("other", [("validator", "miner", 1), ("validator", "other", 0), ("other", "miner", 0)])
def test_every_device_of_every_miner_has_its_own_a(other: tuple[str, str, int]) -> None:
    mine = generator.seed_a(bytes(32), "validator", "miner", 0)
    assert not np.array_equal(mine, generator.seed_a(bytes(32), *other))


def test_parts_of_a_seed_cannot_be_moved_over_their_border() -> None:
    assert not np.array_equal(generator.seed(b"ab", b"c"), generator.seed(b"a", b"bc"))


@settings(max_examples=20)
@given(nonce=NONCES, half=st.sampled_from([1, 5, 64, 9000]), rows=st.integers(1, 20), data=st.data())
def test_the_projection_is_exact(nonce: bytes, half: int, rows: int, data: st.DataObject) -> None:
    bound = 2**29
    kind = data.draw(st.sampled_from(["low", "high", "random"]))
    if kind == "random":
        vector = np.random.default_rng(half).integers(-bound, bound, 2 * half)
    else:
        vector = np.full(2 * half, -bound if kind == "low" else bound - 1, np.int64)
    seed = generator.seed_b(nonce)
    expected = generator.rows(np.arange(rows), 2 * half, seed).astype(np.int64) @ vector
    np.testing.assert_array_equal(generator.project(seed, rows, vector), expected)


def test_the_projection_is_exact_at_full_width() -> None:
    seed = generator.seed_b(b"wide")
    vector = np.full(32768, 2**29 - 1, np.int64)
    expected = generator.rows(np.arange(11), 32768, seed).astype(np.int64) @ vector
    np.testing.assert_array_equal(generator.project(seed, 11, vector), expected)


GOLDEN_CORNER = [[98, 53, -165, -46], [144, 138, 166, -48], [115, -84, -168, 112]]
GOLDEN_HASH = "2097e3390b0e6b68c2b51b531441fc5ce6919cd8330502a9f4e465ccbd14b75d"
