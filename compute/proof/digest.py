"""Row digests and the commitment to them: a binary SHA-256 tree over blocks of 1024 digests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compute.proof.generator import M1, M2, Words, keys

BLOCK_ROWS = 1024
HASH_BYTES = 32
DIGEST_BYTES = 8


def commit_key(nonce: bytes) -> bytes:
    """The 32-byte pass key of the commitment itself."""
    return hashlib.sha256(b"commit" + nonce).digest()


def next_key(root: bytes) -> bytes:
    """The 32-byte key of the pass after the one whose root this is: unknown until that pass is done."""
    return hashlib.sha256(root).digest()


def word_keys(columns: int, key: bytes) -> Words:
    """One key per 32-bit word of a row of ``columns`` int16, from the first four words of a pass key."""
    return keys(np.arange(columns // 2), np.frombuffer(key, "<u4")[:4].astype(np.uint32))


def row_digests(rows: NDArray[np.int16], key_words: Words) -> NDArray[np.int64]:
    """The digest of each row of ``C mod 2^16``, shape ``(rows, columns)`` and contiguous.

    Not linear in the entries: ``(A_i · B) · w = A_i · (B · w)`` would let a linear digest be had for O(K) a row.
    """
    w = rows.view(np.uint32) ^ key_words[None, :]
    w *= np.uint32(M1)
    w ^= w >> np.uint32(15)
    w *= np.uint32(M2)
    w ^= w >> np.uint32(13)
    total: NDArray[np.int64] = w.view(np.int32).sum(axis=1, dtype=np.int64)
    return total


def leaf(block: bytes) -> bytes:
    """The hash of one block of digests (each ``<i8``)."""
    return hashlib.sha256(b"\x00" + block).digest()


def node(left: bytes, right: bytes) -> bytes:
    """The hash of two children."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def block_count(row_count: int) -> int:
    """How many blocks hold ``row_count`` digests."""
    return -(-row_count // BLOCK_ROWS)


def block_length(row_count: int, block: int) -> int:
    """How many digests block number ``block`` holds: only the last may be short."""
    return min(BLOCK_ROWS, row_count - block * BLOCK_ROWS)


def path_length(leaves: int) -> int:
    """How many siblings lead from a leaf to the root of a tree with ``leaves`` leaves."""
    return (leaves - 1).bit_length()


def tree(digests: NDArray[np.int64]) -> list[list[bytes]]:
    """All levels of the tree over ``digests``, leaves first, the root alone in the last."""
    data = digests.astype("<i8")
    levels = [[leaf(data[top : top + BLOCK_ROWS].tobytes()) for top in range(0, len(data), BLOCK_ROWS)]]
    while len(levels[-1]) > 1:
        below = levels[-1]
        # An odd node at the end of a level is paired with itself; the number of leaves is fixed beforehand.
        levels.append([node(below[i], below[min(i + 1, len(below) - 1)]) for i in range(0, len(below), 2)])
    return levels


def path(levels: Sequence[Sequence[bytes]], index: int) -> list[bytes]:
    """The siblings from leaf ``index`` up to, not including, the root."""
    siblings = []
    for level in levels[:-1]:
        siblings.append(level[min(index ^ 1, len(level) - 1)])
        index >>= 1
    return siblings


def root_of(block: bytes, index: int, siblings: Sequence[bytes]) -> bytes:
    """The root that a block at leaf ``index`` and its siblings lead to.

    The caller fixes ``len(siblings)`` by ``path_length``: a path's length is never the prover's to choose.
    """
    value = leaf(block)
    for sibling in siblings:
        value = node(value, sibling) if index % 2 == 0 else node(sibling, value)
        index >>= 1
    return value


def stored(rows: NDArray[Any]) -> NDArray[np.int16]:
    """Exact rows of C as they are held and digested: ``C mod 2^16``."""
    return np.ascontiguousarray(rows.astype(np.int16))
