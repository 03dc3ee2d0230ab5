"""SCALE writers, and the portable type registry that metadata carries.

Types are written in a small Rust-like language: ``"Vec<(u16,Compact<u64>)>"``. Names that are not built in are looked
up in the table of :class:`Struct` and :class:`Enum` that the registry is made with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PRIMITIVES = (
    *("bool", "char", "str", "u8", "u16", "u32", "u64", "u128", "u256"),
    *("i8", "i16", "i32", "i64", "i128", "i256"),
)
_NO_DOCS = b"\x00"

# (name, type) in order; the name is empty where the chain has none.
Fields = tuple[tuple[str, str], ...]


def compact(number: int) -> bytes:
    """SCALE's variable-length form of an unsigned integer."""
    if number < 1 << 6:
        return bytes([number << 2])
    if number < 1 << 14:
        return (number << 2 | 0b01).to_bytes(2, "little")
    if number < 1 << 30:
        return (number << 2 | 0b10).to_bytes(4, "little")
    body = number.to_bytes((number.bit_length() + 7) // 8, "little")
    return bytes([(len(body) - 4) << 2 | 0b11]) + body


def read_compact(data: bytes, offset: int) -> tuple[int, int]:
    """The compact integer at ``offset`` and the offset behind it.

    Raises:
        ValueError: the bytes end too early, or the integer is not in its shortest form.
    """
    if offset >= len(data):
        raise ValueError("the bytes end inside a compact integer")
    mode = data[offset] & 0b11
    size = (1, 2, 4, 1 + 4 + (data[offset] >> 2))[mode]
    raw = data[offset : offset + size]
    if len(raw) < size:
        raise ValueError("the bytes end inside a compact integer")
    number = int.from_bytes(raw[1:], "little") if mode == 0b11 else int.from_bytes(raw, "little") >> 2
    if compact(number) != raw:
        raise ValueError(f"compact integer {raw.hex()} is not in its shortest form")
    return number, offset + size


def text(value: str) -> bytes:
    """A length-prefixed UTF-8 string."""
    body = value.encode()
    return compact(len(body)) + body


def vector(items: Iterable[bytes]) -> bytes:
    """A length-prefixed sequence of encoded items."""
    encoded = list(items)
    return compact(len(encoded)) + b"".join(encoded)


def option(value: bytes | None) -> bytes:
    """``None`` or an encoded value."""
    return b"\x00" if value is None else b"\x01" + value


@dataclass(frozen=True)
class Variant:
    """One variant of an :class:`Enum`."""

    name: str
    index: int
    fields: Fields = ()
    docs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Struct:
    """A composite type; ``parameters`` are its generic parameters, which some readers look into."""

    path: str
    fields: Fields = ()
    parameters: Fields = ()


@dataclass(frozen=True)
class Enum:
    """A variant type."""

    path: str
    variants: tuple[Variant, ...]


class TypeRegistry:
    """Numbers types as they are asked for, and encodes them as the ``PortableRegistry`` of metadata."""

    def __init__(self, definitions: Mapping[str, Struct | Enum]) -> None:
        self._definitions = definitions
        self._ids: dict[str, int] = {}
        self._rows: list[bytes] = []

    def id(self, name: str) -> int:
        """The number of the type ``name``, registering it and all that it refers to.

        Raises:
            KeyError: no such type.
        """
        if name not in self._ids:
            number = self._ids[name] = len(self._rows)  # taken first: a type may refer to itself
            self._rows.append(b"")
            self._rows[number] = compact(number) + self._describe(name) + _NO_DOCS
        return self._ids[name]

    def encode(self) -> bytes:
        """Every type registered so far."""
        return vector(self._rows)

    def _describe(self, name: str) -> bytes:
        """Path, parameters and definition of one type."""
        definition = self._definitions.get(name)
        if isinstance(definition, Struct):
            return self._head(definition.path, definition.parameters) + b"\x00" + self._fields(definition.fields)
        if isinstance(definition, Enum):
            return self._head(definition.path) + b"\x01" + vector(map(self._variant, definition.variants))
        if match := re.fullmatch(r"Option<(.*)>", name):
            variants = (Variant("None", 0), Variant("Some", 1, (("", match[1]),)))
            return self._head("Option", (("T", match[1]),)) + b"\x01" + vector(map(self._variant, variants))
        return self._head("") + self._built_in(name)

    def _built_in(self, name: str) -> bytes:
        if name in PRIMITIVES:
            return b"\x05" + bytes([PRIMITIVES.index(name)])
        if match := re.fullmatch(r"Vec<(.*)>", name):
            return b"\x02" + self._reference(match[1])
        if match := re.fullmatch(r"Compact<(.*)>", name):
            return b"\x06" + self._reference(match[1])
        if match := re.fullmatch(r"\[(.*);(\d+)\]", name):
            return b"\x03" + int(match[2]).to_bytes(4, "little") + self._reference(match[1])
        if name.startswith("(") and name.endswith(")"):
            return b"\x04" + vector(self._reference(part) for part in split_types(name[1:-1]))
        raise KeyError(f"unknown type {name!r}")

    def _head(self, path: str, parameters: Fields = ()) -> bytes:
        return vector(text(part) for part in path.split("::") if part) + vector(
            text(parameter) + option(self._reference(target)) for parameter, target in parameters
        )

    def _variant(self, variant: Variant) -> bytes:
        return (
            text(variant.name) + self._fields(variant.fields) + bytes([variant.index]) + vector(map(text, variant.docs))
        )

    def _fields(self, fields: Fields) -> bytes:
        return vector(
            option(text(name) if name else None) + self._reference(target) + option(text(target)) + _NO_DOCS
            for name, target in fields
        )

    def _reference(self, name: str) -> bytes:
        return compact(self.id(name))


def split_types(names: str) -> list[str]:
    """``"u8,(u16,u32)"`` → ``["u8", "(u16,u32)"]``: splits at the commas that are inside no bracket."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(names):
        depth += (character in "<([") - (character in ">)]")
        if character == "," and depth == 0:
            parts.append(names[start:position])
            start = position + 1
    return [part for part in (*parts, names[start:]) if part]
