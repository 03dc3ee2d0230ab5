"""Signatures over what the SDK leaves unsigned: the body of a request, and the ``info`` of an answer.

The SDK signs the nonce, the two hotkeys and a hash of no field at all, so whoever sits on the path could swap the
public key in an ``Allocate``. Both ends of this project therefore sign the content too, in optional fields that older
peers ignore. A side that has once seen a hotkey sign takes nothing unsigned from it any more (``SignerMemory``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from bittensor_wallet import Keypair

from compute.base.store import Database

_SCHEMA = ("CREATE TABLE known_signer (hotkey TEXT PRIMARY KEY, first_seen REAL NOT NULL)",)

UNSIGNED_FIELDS = frozenset({"output", "body_signature"})
_SDK_FIELDS = frozenset({"name", "timeout", "total_size", "header_size", "dendrite", "axon", "computed_body_hash"})


class Signer(Protocol):
    """A hotkey that signs (a ``bittensor`` Keypair)."""

    def sign(self, data: bytes) -> bytes:
        """An sr25519 signature of 64 bytes."""


class Verifier(Protocol):
    """Checks a signature of the hotkey at an ss58 address; never raises."""

    def __call__(self, hotkey: str, message: bytes, signature: bytes) -> bool: ...


def request_message(path: str, nonce: int, fields: Mapping[str, Any]) -> bytes:
    """What the caller of ``path`` signs: the path, the request's nonce and a digest of every field of the body."""
    body = {name: value for name, value in fields.items() if name not in UNSIGNED_FIELDS | _SDK_FIELDS}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return f"{path}.{nonce}.{hashlib.sha256(canonical.encode()).hexdigest()}".encode()


def answer_message(nonce: int, caller_hotkey: str, info: str) -> bytes:
    """What a miner signs under the ``info`` of an answer: bound to the request's nonce and to its caller."""
    return f"info.{nonce}.{caller_hotkey}.{hashlib.sha256(info.encode()).hexdigest()}".encode()


def encode(signature: bytes) -> str:
    """The wire form of a signature: ``0x`` and 128 hex digits."""
    return "0x" + signature.hex()


def decode(text: object) -> bytes | None:
    """The 64 bytes of a signature on the wire, or None where it is anything else."""
    if not isinstance(text, str) or len(text) != 130 or not text.startswith("0x"):
        return None
    try:
        return bytes.fromhex(text[2:])
    except ValueError:
        return None


class SignerMemory:
    """Which hotkeys have ever signed: they cannot be impersonated by leaving the signature out."""

    def __init__(self, database: Database) -> None:
        database.migrate("signing", _SCHEMA)
        self._database = database
        self._known = {str(row["hotkey"]) for row in database.query("SELECT hotkey FROM known_signer")}

    def knows(self, hotkey: str) -> bool:
        """Whether ``hotkey`` has signed before."""
        return hotkey in self._known

    def remember(self, hotkeys: Sequence[str], now: float) -> None:
        """Record that these hotkeys sign; idempotent.

        Raises:
            StoreError: the record cannot be written; the memory of this process holds it all the same.
        """
        new = [hotkey for hotkey in hotkeys if hotkey not in self._known]
        if not new:
            return
        self._known.update(new)
        with self._database.transaction() as connection:
            connection.executemany("INSERT OR IGNORE INTO known_signer VALUES (?, ?)", [(key, now) for key in new])


def verify_signature(hotkey: str, message: bytes, signature: bytes) -> bool:
    """Whether ``signature`` is ``hotkey``'s (an ss58 address, sr25519) over ``message``. Never raises on bad input."""
    try:
        return bool(Keypair(ss58_address=hotkey).verify(message, signature))
    except (ValueError, TypeError):
        return False
