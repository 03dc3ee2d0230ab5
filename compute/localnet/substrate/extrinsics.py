"""Signed extrinsics: from bytes to a call, and whether the signature, nonce and era hold (version 4 of the format)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from bittensor_wallet import Keypair

from compute.localnet.pallet.errors import BAD_FORMAT, INVALID, UNKNOWN_VALIDITY, PoolError
from compute.localnet.substrate.codec import Codec, key_to_address, take
from compute.localnet.substrate.runtime import RUNTIME, SPEC_VERSION, TIMESTAMP_INDEX, TRANSACTION_VERSION
from compute.localnet.substrate.scale import compact, read_compact

MAX_BYTES = 3_932_160
_SIGNED_V4 = 0x84
_BARE_V4 = 0x04
_ADDRESS_ID = 0
_ED25519, _SR25519, _ECDSA = 0, 1, 2
_SIGNATURE_BYTES = {_ED25519: 64, _SR25519: 64, _ECDSA: 65}
_PAYLOAD_HASHED_ABOVE = 256
_CALLS = {(pallet.index, call.index): call for pallet in RUNTIME.pallets for call in pallet.calls}


@dataclass(frozen=True)
class Era:
    """The blocks in which a transaction may be included: ``period`` blocks from its birth."""

    period: int
    phase: int

    def birth(self, current: int) -> int:
        """The block that the era began with, seen from the block ``current``."""
        return (max(current, self.phase) - self.phase) // self.period * self.period + self.phase

    def death(self, current: int) -> int:
        """The first block that the era does not reach."""
        return self.birth(current) + self.period


@dataclass(frozen=True)
class Extrinsic:
    """A decoded extrinsic. ``signed`` is call and extra, the part of the signed payload that travels with it."""

    raw: bytes
    signer: str
    public_key: bytes
    signature_kind: int
    signature: bytes
    era: Era | None
    nonce: int
    call: str
    arguments: Mapping[str, Any]
    signed: bytes

    @property
    def hash(self) -> str:
        """The extrinsic's hash, by which clients look it up."""
        return "0x" + blake2b(self.raw, digest_size=32).hexdigest()


def decode_extrinsic(raw: bytes, codec: Codec) -> Extrinsic:
    """Take a signed extrinsic apart.

    Raises:
        PoolError: the bytes are not an extrinsic, or of a kind that the real pool does not take either.
    """
    if len(raw) > MAX_BYTES:
        raise PoolError(INVALID, "Transaction would exhaust the block limits")
    try:
        return _decode(raw, codec)
    except (ValueError, IndexError) as error:
        raise PoolError(BAD_FORMAT, str(error)) from error


def verify_signature(
    extrinsic: Extrinsic, *, block: int, genesis_hash: bytes, hash_of: Callable[[int], bytes | None]
) -> None:
    """Check the signature for inclusion in ``block``; ``hash_of`` gives the hash of a block that is still known.

    A transaction whose era is over, or that was made for another chain or runtime, has a bad signature: what it signed
    is not what this chain expects.

    Raises:
        PoolError: the signature does not hold, or the era began before what the chain remembers.
    """
    anchor: bytes | None = genesis_hash
    if extrinsic.era is not None:
        anchor = hash_of(extrinsic.era.birth(block))
    if anchor is None:
        raise PoolError(INVALID, "Transaction has an ancient birth block")
    versions = SPEC_VERSION.to_bytes(4, "little") + TRANSACTION_VERSION.to_bytes(4, "little")
    no_metadata_hash = b"\x00"
    payload = extrinsic.signed + versions + genesis_hash + anchor + no_metadata_hash
    if len(payload) > _PAYLOAD_HASHED_ABOVE:
        payload = blake2b(payload, digest_size=32).digest()
    if not _is_signed_by(extrinsic, payload):
        raise PoolError(INVALID, "Transaction has a bad signature")


def timestamp_extrinsic(now_milliseconds: int) -> bytes:
    """The unsigned extrinsic that each block begins with."""
    body = bytes([_BARE_V4, TIMESTAMP_INDEX, 0]) + compact(now_milliseconds)
    return compact(len(body)) + body


def decode_call(data: bytes, codec: Codec) -> tuple[str, dict[str, Any]]:
    """A call's name and arguments.

    Raises:
        ValueError: no such call, wrong arguments, or bytes behind them.
    """
    if len(data) < 2 or (data[0], data[1]) not in _CALLS:
        raise ValueError(f"no call {data[:2].hex() or '(nothing)'} in this runtime")
    call = _CALLS[data[0], data[1]]
    offset = 2
    arguments: dict[str, Any] = {}
    for name, target in call.arguments:
        arguments[name], offset = codec.decode(target, data, offset)
    if offset != len(data):
        raise ValueError(f"{len(data) - offset} bytes behind the arguments of {call.name}")
    return call.name, arguments


def _decode(raw: bytes, codec: Codec) -> Extrinsic:
    length, offset = read_compact(raw, 0)
    if length != len(raw) - offset:
        raise ValueError(f"the extrinsic says {length} bytes and has {len(raw) - offset}")
    if raw[offset] == _BARE_V4:
        raise PoolError(UNKNOWN_VALIDITY, "Could not find an unsigned validator for the unsigned transaction")
    if raw[offset] != _SIGNED_V4:
        raise ValueError(f"extrinsic version {raw[offset]:#x} is not {_SIGNED_V4:#x} (signed, version 4)")
    if raw[offset + 1] != _ADDRESS_ID:
        raise PoolError(UNKNOWN_VALIDITY, "Could not lookup information required to validate the transaction")
    public_key = take(raw, offset + 2, 32)
    offset += 34
    kind = raw[offset]
    if kind not in _SIGNATURE_BYTES:
        raise ValueError(f"signature kind {kind} is not one of {sorted(_SIGNATURE_BYTES)}")
    signature = take(raw, offset + 1, _SIGNATURE_BYTES[kind])
    extra_start = offset = offset + 1 + len(signature)
    era, offset = _read_era(raw, offset)
    nonce, offset = read_compact(raw, offset)
    _tip, offset = read_compact(raw, offset)
    metadata_mode, offset = raw[offset], offset + 1
    if metadata_mode != 0:
        raise PoolError(UNKNOWN_VALIDITY, "Could not lookup information required to validate the transaction")
    call_bytes = raw[offset:]
    call, arguments = decode_call(call_bytes, codec)
    return Extrinsic(
        raw=raw,
        signer=key_to_address(public_key),
        public_key=public_key,
        signature_kind=kind,
        signature=signature,
        era=era,
        nonce=nonce,
        call=call,
        arguments=arguments,
        signed=call_bytes + raw[extra_start:offset],
    )


def _read_era(raw: bytes, offset: int) -> tuple[Era | None, int]:
    if raw[offset] == 0:
        return None, offset + 1
    encoded = take(raw, offset, 2)
    number = int.from_bytes(encoded, "little")
    period = 2 << (number % 16)
    phase = (number >> 4) * max(period >> 12, 1)
    if period < 4 or phase >= period:
        raise ValueError(f"era {encoded.hex()}: period {period}, phase {phase}")
    return Era(period, phase), offset + 2


def _is_signed_by(extrinsic: Extrinsic, payload: bytes) -> bool:
    if extrinsic.signature_kind == _ECDSA:
        return False
    try:
        key = Keypair(public_key=extrinsic.public_key.hex(), crypto_type=extrinsic.signature_kind)
        return bool(key.verify(payload, extrinsic.signature))
    except (ValueError, TypeError):  # a public key that is no point on the curve
        return False
