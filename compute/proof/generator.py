"""The matrices of the proof: integers on [-181, 181] from a seed, any row on its own, in numpy.

Everything is uint32 arithmetic with wrap-around and logical shifts; ``worker`` does the same in torch, bit for bit.
Two row keys enter an entry, the second between the rounds: an entry that were a function of one word of (i, j),
``f(i + j)`` say, would make a Hankel matrix, whose product costs O(n²).
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

M1 = 0x7FEB352D
M2 = 0x846CA68B
SPAN = 363
OFFSET = 181
_ROWS_PER_BLOCK = 8
_COLUMNS_PER_BLOCK = 8192


def seed(*parts: bytes) -> Words:
    """SHA-256 over ``parts``, each with its u32le length before it, as eight little-endian words."""
    state = hashlib.sha256()
    for part in parts:
        state.update(len(part).to_bytes(4, "little"))
        state.update(part)
    return np.frombuffer(state.digest(), "<u4").astype(np.uint32)


def seed_a(nonce: bytes, validator_hotkey: str, miner_hotkey: str, device_index: int) -> Words:
    """The seed of one device's own A: without the hotkeys, one GPU could answer for every miner."""
    return seed(nonce, b"A", validator_hotkey.encode(), miner_hotkey.encode(), str(device_index).encode())


def seed_b(nonce: bytes) -> Words:
    """The seed of the batch's common B."""
    return seed(nonce, b"B")


def fmix(x: Words) -> Words:
    """A bijection of 32-bit words, applied in place; returns ``x``."""
    x ^= x >> np.uint32(16)
    x *= np.uint32(M1)
    x ^= x >> np.uint32(15)
    x *= np.uint32(M2)
    x ^= x >> np.uint32(16)
    return x


def keys(indices: NDArray[Any], words: Words) -> Words:
    """One key per index under four seed words. A bijection of the index, so keys never collide."""
    x = np.array(indices, dtype=np.uint32)
    for word in words:
        x ^= word
        fmix(x)
    return x


def row_keys(indices: NDArray[Any], words: Words) -> tuple[Words, Words]:
    """The two keys of each row."""
    return keys(indices, words[0:4]), keys(indices, words[4:8])


def column_keys(columns: int, words: Words) -> Words:
    """The keys of the first half of the columns; the second half shares them."""
    return keys(np.arange(columns // 2), words[[7, 2, 5, 0]])


def raw_entries(first: Words, second: Words, column: Words, low: Words, high: Words) -> None:
    """Entries before the offset, 0 to 362, of a block of rows, into two buffers of ``(rows, len(column))``.

    ``low`` receives the columns of ``column``, ``high`` those half a row further on.
    """
    np.bitwise_xor(first[:, None], column[None, :], out=low)
    low *= np.uint32(M1)
    low ^= second[:, None]
    np.right_shift(low, np.uint32(15), out=high)
    low ^= high
    low *= np.uint32(M2)
    # The last xor of the round leaves the high half as it is, so ``high`` already holds it.
    np.right_shift(low, np.uint32(16), out=high)
    low ^= high
    low &= np.uint32(0xFFFF)
    for half in (low, high):
        half *= np.uint32(SPAN)
        half >>= np.uint32(16)


def rows(indices: NDArray[Any], columns: int, words: Words) -> NDArray[np.int32]:
    """Whole rows of the matrix of ``words``: shape ``(len(indices), columns)``, ``columns`` even."""
    first, second = row_keys(indices, words)
    column = column_keys(columns, words)
    half = columns // 2
    out = np.empty((len(first), columns), np.int32)
    for top in range(0, len(first), _ROWS_PER_BLOCK):
        block = slice(top, top + _ROWS_PER_BLOCK)
        low = np.empty((len(first[block]), half), np.uint32)
        high = np.empty_like(low)
        raw_entries(first[block], second[block], column, low, high)
        out[block, :half] = low
        out[block, half:] = high
    out -= np.int32(OFFSET)
    return out


def project(words: Words, row_count: int, vector: NDArray[np.int64]) -> NDArray[np.int64]:
    """``B · vector`` for the first ``row_count`` rows of the matrix of ``words``, exactly, without holding B.

    ``vector`` has one entry per column of B, each within ±2^29, and B at most 32768 columns: then every partial sum
    of raw entries is an integer below 362 · 2^29 · 2^15 < 2^53, exact in float64 in any order. Temporary memory is
    under 2 MB. At 32768 × 32768 it takes about two seconds of one core.
    """
    half = len(vector) // 2
    first, second = row_keys(np.arange(row_count), words)
    column = column_keys(len(vector), words)
    weights = vector.astype(np.float64)
    out = np.zeros(row_count)
    for top in range(0, row_count, _ROWS_PER_BLOCK):
        block = slice(top, min(top + _ROWS_PER_BLOCK, row_count))
        height = block.stop - block.start
        low = np.empty((height, min(half, _COLUMNS_PER_BLOCK)), np.uint32)
        high = np.empty_like(low)
        values = np.empty(low.shape)
        for left in range(0, half, _COLUMNS_PER_BLOCK):
            width = min(_COLUMNS_PER_BLOCK, half - left)
            part = column[left : left + width]
            if width != low.shape[1]:
                low, high, values = low[:, :width].copy(), high[:, :width].copy(), values[:, :width].copy()
            raw_entries(first[block], second[block], part, low, high)
            # Through int32, because numpy converts it to float64 several times faster than uint32.
            np.copyto(values, low.view(np.int32))
            out[block] += values @ weights[left : left + width]
            np.copyto(values, high.view(np.int32))
            out[block] += values @ weights[half + left : half + left + width]
    return out.astype(np.int64) - OFFSET * int(vector.sum())
