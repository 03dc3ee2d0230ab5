from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.proof import digest, worker

KEY = bytes(range(100, 132))


def _rows(count: int, columns: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    return np.random.default_rng(seed).integers(-(2**15), 2**15, (count, columns)).astype(np.int16)


def test_the_digests_of_the_wire_never_change() -> None:
    assert digest.row_digests(_rows(2, 64), digest.word_keys(64, KEY)).tolist() == GOLDEN_DIGESTS
    root = digest.tree(np.arange(5000, dtype=np.int64) - 2500)[-1][0]
    assert root.hex() == GOLDEN_ROOT


@settings(max_examples=20)
@given(
    key=st.binary(min_size=32, max_size=32),
    half=st.integers(1, 40),
    count=st.integers(1, 20),
    step=st.integers(1, 30),
    seed=st.integers(0, 2**32),
)
def test_torch_agrees_bit_for_bit(key: bytes, half: int, count: int, step: int, seed: int) -> None:
    rows = _rows(count, 2 * half, seed)
    words = struct.unpack("<4i", key[:16])
    key_words = worker.make_keys(torch.arange(half), words)
    theirs = worker.row_digests(torch.from_numpy(rows), key_words, step)
    np.testing.assert_array_equal(digest.row_digests(rows, digest.word_keys(2 * half, key)), theirs.numpy())


def test_one_bit_of_a_row_or_of_the_key_changes_the_digest() -> None:
    rows = _rows(1, 128)
    before = digest.row_digests(rows, digest.word_keys(128, KEY))
    rows[0, 77] ^= 1
    assert digest.row_digests(rows, digest.word_keys(128, KEY)) != before
    rows[0, 77] ^= 1
    assert digest.row_digests(rows, digest.word_keys(128, bytes([KEY[0] ^ 1]) + KEY[1:])) != before


def test_columns_cannot_change_places() -> None:
    rows = _rows(1, 128)
    swapped = np.ascontiguousarray(rows[:, ::-1])
    key_words = digest.word_keys(128, KEY)
    assert digest.row_digests(rows, key_words) != digest.row_digests(swapped, key_words)


@settings(max_examples=40)
@given(count=st.integers(1, 12 * digest.BLOCK_ROWS), data=st.data())
def test_every_block_leads_to_the_root(count: int, data: st.DataObject) -> None:
    values = np.random.default_rng(count).integers(-(2**62), 2**62, count)
    levels = digest.tree(values)
    row = data.draw(st.integers(0, count - 1))
    block = row // digest.BLOCK_ROWS
    siblings = digest.path(levels, block)
    assert len(siblings) == digest.path_length(digest.block_count(count))
    content = values[block * digest.BLOCK_ROWS :][: digest.BLOCK_ROWS].astype("<i8").tobytes()
    assert len(content) == digest.DIGEST_BYTES * digest.block_length(count, block)
    assert digest.root_of(content, block, siblings) == levels[-1][0]
    assert worker.tree_levels(values.astype("<i8").tobytes()) == levels
    assert worker.tree_path(levels, block) == b"".join(siblings)


def test_a_block_leads_nowhere_from_another_place() -> None:
    values = np.arange(4 * digest.BLOCK_ROWS, dtype=np.int64)
    levels = digest.tree(values)
    content = values[: digest.BLOCK_ROWS].astype("<i8").tobytes()
    assert digest.root_of(content, 1, digest.path(levels, 0)) != levels[-1][0]


def test_a_node_cannot_pass_for_a_block() -> None:
    left, right = hashlib.sha256(b"l").digest(), hashlib.sha256(b"r").digest()
    assert digest.leaf(left + right) != digest.node(left, right)


@pytest.mark.parametrize(("leaves", "length"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (2048, 11), (2049, 12)])
def test_the_length_of_a_path(leaves: int, length: int) -> None:
    assert digest.path_length(leaves) == length


def test_keys_follow_from_nonce_and_roots() -> None:
    assert digest.commit_key(b"n" * 32) == hashlib.sha256(b"commit" + b"n" * 32).digest()
    assert digest.next_key(b"r" * 32) == hashlib.sha256(b"r" * 32).digest()


def test_what_is_held_is_c_modulo_sixteen_bits() -> None:
    exact = np.array([[0, 32767, 32768, -32769, 65536, -1]])
    assert digest.stored(exact).tolist() == [[0, 32767, -32768, 32767, 0, -1]]


GOLDEN_DIGESTS = [-891424191, -9989296207]
GOLDEN_ROOT = "0704c272ff748ae0ab9c3415fe369387736c45884cbc35c63ac10d51f6daad2a"
