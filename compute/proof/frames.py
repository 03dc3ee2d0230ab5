"""The frames of the conversation: 4-byte little-endian header length, JSON header, raw payload of known length.

A header says what the payload is; how long it must be follows from that and from what was asked, never from the peer.
Everything a worker sends is parsed here once, strictly, into one of the typed answers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compute.base.errors import FrameError
from compute.base.reasons import ProofReason
from compute.proof.models import MAX_DEVICES, DeviceInfo

LENGTH_BYTES = 4
MAX_HEADER_BYTES = 4096
MAX_DEPTH = 4
MAX_INTEGER = 2**53
_MAX_TEXT = 200


@dataclass(frozen=True)
class Hello:
    """The worker is up. Advisory, all of it."""

    torch: str
    devices: tuple[DeviceInfo, ...]


@dataclass(frozen=True)
class Prepared:
    """One device has its buffers and warm kernels."""

    device: int


@dataclass(frozen=True)
class Root:
    """One device's commitment, ``pass_number`` 0, or its rehash pass 1, 2, …; the payload is the 32-byte root."""

    device: int
    pass_number: int


@dataclass(frozen=True)
class Opened:
    """One device's opened rows and passes, in the order asked; the payload's length is ``Dims.opened_bytes``."""

    device: int


@dataclass(frozen=True)
class Failed:
    """The worker gave up: ``code`` is ``devices``, ``memory`` or ``internal``."""

    code: str
    message: str


Answer = Hello | Prepared | Root | Opened | Failed


def encode(header: Mapping[str, object], payload: bytes = b"") -> bytes:
    """A frame as bytes."""
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    assert len(text) <= MAX_HEADER_BYTES
    return len(text).to_bytes(LENGTH_BYTES, "little") + text + payload


def parse_length(data: bytes) -> int:
    """The header's length from its four bytes.

    Raises:
        FrameError: zero, or more than ``MAX_HEADER_BYTES``.
    """
    length = int.from_bytes(data, "little")
    if length > MAX_HEADER_BYTES:
        raise FrameError(
            ProofReason.OVERSIZED_FRAME, f"a frame announces a header of {length} bytes; at most {MAX_HEADER_BYTES}"
        )
    if length == 0:
        raise _bad("a frame announces a header of 0 bytes")
    return length


def parse_object(data: bytes) -> dict[str, Any]:
    """A header's JSON object.

    Raises:
        FrameError: not UTF-8, not JSON, not an object, a key twice, NaN or an infinity, an integer beyond 2^53,
            nested deeper than ``MAX_DEPTH``.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_int=_bounded_integer,
            parse_float=_finite_float,
        )
    except FrameError:
        raise
    except (ValueError, RecursionError) as error:
        raise _bad(f"a header is no JSON: {type(error).__name__}") from None
    if not isinstance(value, dict):
        raise _bad(f"a header is a JSON {type(value).__name__}, not an object")
    if _deeper_than(value, MAX_DEPTH):
        raise _bad(f"a header is nested deeper than {MAX_DEPTH}")
    return value


def parse_answer(data: bytes) -> Answer:
    """A header from a worker as a typed answer. Unknown fields are ignored.

    Raises:
        FrameError: as ``parse_object``; an unknown type; a missing field or one of a wrong type or range.
    """
    header = parse_object(data)
    kind = header.get("type")
    if kind == "hello":
        return Hello(torch=_text(header, "torch"), devices=_devices(header))
    if kind == "prepared":
        return Prepared(device=_integer(header, "device", MAX_DEVICES - 1))
    if kind == "root":
        return Root(
            device=_integer(header, "device", MAX_DEVICES - 1), pass_number=_integer(header, "pass", MAX_INTEGER)
        )
    if kind == "opened":
        return Opened(device=_integer(header, "device", MAX_DEVICES - 1))
    if kind == "failed":
        return Failed(code=_text(header, "code"), message=_text(header, "message"))
    raise _bad(f"a frame of unknown type {str(kind)[:_MAX_TEXT]!r}")


def _bad(message: str) -> FrameError:
    return FrameError(ProofReason.BAD_FRAME, message)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _bad("a header has a key twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise _bad(f"a header holds {name}")


def _bounded_integer(digits: str) -> int:
    if len(digits) > 17 or abs(int(digits)) > MAX_INTEGER:
        raise _bad(f"a header holds an integer of {len(digits)} digits, beyond 2^53")
    return int(digits)


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _bad("a header holds a number beyond the range of a float")
    return value


def _deeper_than(value: object, levels: int) -> bool:
    """Whether containers are nested more than ``levels`` deep; looks no deeper than that itself."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper_than(item, levels - 1) for item in inner)


def _integer(fields: Mapping[str, Any], key: str, most: int) -> int:
    value = fields.get(key)
    # bool is a subclass of int, and true is not a device.
    if type(value) is not int or not 0 <= value <= most:
        raise _bad(f"{key} is {str(value)[:_MAX_TEXT]!r}; it must be an integer from 0 to {most}")
    return value


def _text(fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
        raise _bad(f"{key} is not a printable text of at most {_MAX_TEXT} characters")
    return value


def _devices(header: Mapping[str, Any]) -> tuple[DeviceInfo, ...]:
    listed = header.get("devices")
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise _bad("devices is not a list of objects")
    return tuple(
        DeviceInfo(
            name=_text(item, "name"),
            uuid=None if item.get("uuid") is None else _text(item, "uuid"),
            memory_bytes=_integer(item, "memory_bytes", MAX_INTEGER),
        )
        for item in listed
    )
