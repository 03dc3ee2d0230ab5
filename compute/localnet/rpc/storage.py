"""Storage keys, and reading a state by them."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import xxhash

from compute.localnet.pallet.state import State
from compute.localnet.substrate.codec import Codec
from compute.localnet.substrate.metadata import Runtime, StorageItem

_PREFIX_BYTES = 32
_HASH_BYTES = {"identity": 0, "blake2_128_concat": 16, "twox64_concat": 8}


def twox_128(data: bytes) -> bytes:
    """Two 64-bit xxHashes: the hash of pallet and item names."""
    return b"".join(xxhash.xxh64_intdigest(data, seed).to_bytes(8, "little") for seed in (0, 1))


def hash_key(hasher: str, encoded: bytes) -> bytes:
    """A map's key as it stands in storage: all of these hashers keep the key itself readable behind the hash."""
    if hasher == "blake2_128_concat":
        return blake2b(encoded, digest_size=16).digest() + encoded
    if hasher == "twox64_concat":
        return xxhash.xxh64_intdigest(encoded, 0).to_bytes(8, "little") + encoded
    return encoded


class Storage:
    """Reads states by storage key, as the ``state_*`` methods of a node do."""

    def __init__(self, runtime: Runtime, codec: Codec) -> None:
        self._codec = codec
        self._items: dict[bytes, StorageItem] = {
            twox_128(pallet.name.encode()) + twox_128(item.name.encode()): item
            for pallet in runtime.pallets
            for item in pallet.storage
        }

    def read(self, state: State, key: bytes) -> bytes | None:
        """The encoded value under ``key``; None where there is none, and for keys that are nobody's."""
        item = self._items.get(key[:_PREFIX_BYTES])
        if item is None:
            return None
        try:
            decoded = self._decode_keys(item, key[_PREFIX_BYTES:])
        except ValueError:
            return None
        entries = item.entries(state)
        return self._codec.encode(item.value, entries[decoded]) if decoded in entries else None

    def keys(self, state: State, prefix: bytes, count: int, start: bytes | None) -> list[bytes]:
        """The first ``count`` keys, in order, that begin with ``prefix`` and come after ``start``."""
        items = [(head, item) for head, item in self._items.items() if _overlap(head, prefix)]
        keys = (head + self._encode_keys(item, entry) for head, item in items for entry in item.entries(state))
        matching = (key for key in keys if key.startswith(prefix) and (start is None or key > start))
        return sorted(matching)[:count]

    def _encode_keys(self, item: StorageItem, keys: Iterable[Any]) -> bytes:
        pairs = zip(item.keys, keys, strict=True)
        return b"".join(hash_key(hasher, self._codec.encode(target, key)) for (hasher, target), key in pairs)

    def _decode_keys(self, item: StorageItem, data: bytes) -> tuple[Any, ...]:
        """The keys behind the prefix.

        Raises:
            ValueError: too short, too long, or a hash that does not fit its key.
        """
        keys = []
        rest = data
        for hasher, target in item.keys:
            start = _HASH_BYTES[hasher]
            key, end = self._codec.decode(target, rest, start)
            if rest[:end] != hash_key(hasher, rest[start:end]):
                raise ValueError("the hash in the storage key is not that of its key")
            keys.append(key)
            rest = rest[end:]
        if rest:
            raise ValueError(f"{len(rest)} bytes behind the storage key")
        return tuple(keys)


def _overlap(head: bytes, prefix: bytes) -> bool:
    return head.startswith(prefix) or prefix.startswith(head)
