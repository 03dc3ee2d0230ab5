"""SCALE values of a runtime's types, from and to bytes.

Integers are ints, ``Vec<u8>`` and ``[u8;N]`` bytes, accounts ss58 addresses, other vectors and tuples sequences,
structs dicts (a struct of one unnamed field is that field), options None or the value, enum variants ``"Name"`` or
``{"Name": value}``, where a variant of several fields takes a dict, or a tuple if they have no names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from bittensor_wallet import Keypair

from compute.localnet.substrate.metadata import Runtime
from compute.localnet.substrate.scale import Enum, Fields, Struct, compact, read_compact, split_types

Encoder = Callable[[Any], bytes]
Decoder = Callable[[bytes, int], tuple[Any, int]]

_SS58_FORMAT = 42
_ACCOUNT_BYTES = 32
_ACCOUNT = "AccountId"


@lru_cache(maxsize=4096)
def address_to_key(address: str) -> bytes:
    """The public key of an ss58 address.

    Raises:
        ValueError: it is no such address.
    """
    try:
        return bytes(Keypair(ss58_address=address).public_key or b"")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{address!r} is not an ss58 address: {error}") from error


@lru_cache(maxsize=4096)
def key_to_address(key: bytes) -> str:
    """The ss58 address of a public key."""
    return str(Keypair(public_key=key.hex(), ss58_format=_SS58_FORMAT).ss58_address)


class Codec:
    """Encoders and decoders of one runtime's types, made when they are first asked for."""

    def __init__(self, runtime: Runtime) -> None:
        self._types = runtime.all_types
        self._encoders: dict[str, Encoder] = {_ACCOUNT: address_to_key}
        self._decoders: dict[str, Decoder] = {_ACCOUNT: _decode_account}

    def encode(self, name: str, value: Any) -> bytes:
        """The bytes of a value of the type ``name``."""
        return self._encoder(name)(value)

    def decode(self, name: str, data: bytes, offset: int = 0) -> tuple[Any, int]:
        """The value of the type ``name`` at ``offset``, and the offset behind it.

        Raises:
            ValueError: the bytes are no such value.
        """
        return self._decoder(name)(data, offset)

    def _encoder(self, name: str) -> Encoder:
        if name not in self._encoders:
            self._encoders[name] = self._make_encoder(name)
        return self._encoders[name]

    def _decoder(self, name: str) -> Decoder:
        if name not in self._decoders:
            self._decoders[name] = self._make_decoder(name)
        return self._decoders[name]

    def _make_encoder(self, name: str) -> Encoder:
        definition = self._types.get(name)
        if isinstance(definition, Struct):
            return self._struct_encoder(definition.fields)
        if isinstance(definition, Enum):
            return self._enum_encoder(definition)
        if name == "bool":
            return lambda value: b"\x01" if value else b"\x00"
        if match := re.fullmatch(r"([ui])(\d+)", name):
            size, signed = int(match[2]) // 8, match[1] == "i"
            return lambda value: int(value).to_bytes(size, "little", signed=signed)
        if name.startswith("Compact<"):
            return _cached_compact
        if name == "Vec<u8>":
            return lambda value: compact(len(value)) + bytes(value)
        if re.fullmatch(r"\[u8;\d+\]", name):
            return bytes
        if match := re.fullmatch(r"Vec<(.*)>", name):
            item = self._encoder(match[1])
            return lambda value: compact(len(value)) + b"".join(map(item, value))
        if match := re.fullmatch(r"Option<(.*)>", name):
            some = self._encoder(match[1])
            return lambda value: b"\x00" if value is None else b"\x01" + some(value)
        if name.startswith("("):
            return _tuple_encoder([self._encoder(part) for part in split_types(name[1:-1])])
        raise KeyError(f"unknown type {name!r}")

    def _struct_encoder(self, fields: Fields) -> Encoder:
        if len(fields) == 1 and not fields[0][0]:
            return self._encoder(fields[0][1])
        parts = [(name, self._encoder(target)) for name, target in fields]
        return lambda value: b"".join([encode(value[name]) for name, encode in parts])

    def _enum_encoder(self, enum: Enum) -> Encoder:
        variants: dict[str, tuple[bytes, Encoder]] = {}
        for variant in enum.variants:
            if len(variant.fields) == 1 and not variant.fields[0][0]:
                body = self._encoder(variant.fields[0][1])
            else:
                body = self._struct_encoder(variant.fields)
            variants[variant.name] = (bytes([variant.index]), body)

        def encode(value: str | Mapping[str, Any]) -> bytes:
            ((name, content),) = ((value, {}),) if isinstance(value, str) else value.items()
            head, body = variants[name]
            return head + body(content)

        return encode

    def _make_decoder(self, name: str) -> Decoder:
        definition = self._types.get(name)
        if isinstance(definition, Struct) and len(definition.fields) == 1:
            return self._decoder(definition.fields[0][1])
        if name == "bool":
            return _decode_bool
        if match := re.fullmatch(r"u(\d+)", name):
            size = int(match[1]) // 8
            return lambda data, offset: (int.from_bytes(take(data, offset, size), "little"), offset + size)
        if name.startswith("Compact<"):
            return read_compact
        if name == "Vec<u8>":
            return _decode_bytes
        if match := re.fullmatch(r"Vec<(.*)>", name):
            return _vector_decoder(self._decoder(match[1]))
        raise KeyError(f"no decoder for the type {name!r}")


def take(data: bytes, offset: int, size: int) -> bytes:
    """``size`` bytes at ``offset``.

    Raises:
        ValueError: there are fewer.
    """
    part = data[offset : offset + size]
    if len(part) < size:
        raise ValueError(f"{len(data)} bytes end inside a field of {size} bytes at {offset}")
    return part


@lru_cache(maxsize=1 << 16)
def _cached_compact(number: int) -> bytes:
    return compact(number)


def _tuple_encoder(parts: Sequence[Encoder]) -> Encoder:
    if len(parts) == 2:
        first, second = parts
        return lambda value: first(value[0]) + second(value[1])
    return lambda value: b"".join([encode(item) for encode, item in zip(parts, value, strict=True)])


def _decode_account(data: bytes, offset: int) -> tuple[str, int]:
    return key_to_address(take(data, offset, _ACCOUNT_BYTES)), offset + _ACCOUNT_BYTES


def _decode_bool(data: bytes, offset: int) -> tuple[bool, int]:
    byte = take(data, offset, 1)[0]
    if byte > 1:
        raise ValueError(f"{byte} is not a bool")
    return byte == 1, offset + 1


def _decode_bytes(data: bytes, offset: int) -> tuple[bytes, int]:
    size, start = read_compact(data, offset)
    return take(data, start, size), start + size


def _vector_decoder(item: Decoder) -> Decoder:
    def decode(data: bytes, offset: int) -> tuple[list[Any], int]:
        count, offset = read_compact(data, offset)
        if count > len(data) - offset:  # every item takes a byte or more
            raise ValueError(f"{len(data) - offset} bytes cannot hold {count} items")
        items = []
        for _ in range(count):
            value, offset = item(data, offset)
            items.append(value)
        return items, offset

    return decode
