"""What a runtime tells its clients about itself: pallets, calls, storage, errors and runtime APIs, as metadata v15.

The descriptions are data (see ``runtime.py``); :func:`encode_metadata` turns them into the bytes that
``state_call("Metadata_metadata_at_version")`` answers with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from compute.localnet.pallet.state import State
from compute.localnet.substrate.scale import Enum, Fields, Struct, TypeRegistry, Variant, compact, option, text, vector

MAGIC = b"meta"
VERSION = 15
_NO_DOCS = b"\x00"
_HASHERS = {"blake2_128_concat": 2, "twox64_concat": 5, "identity": 6}
_EXTRINSIC_VERSION = 4

Entries = Callable[[State], Mapping[tuple[Any, ...], Any]]


@dataclass(frozen=True)
class StorageItem:
    """A storage value (no keys) or map.

    ``keys`` are ``(hasher, type)``. ``default`` is the encoded value of an absent entry, None for an item
    that is optional. ``entries`` lists what a state holds under this item: the decoded keys to the value; a plain
    value's key is the empty tuple.
    """

    name: str
    value: str
    entries: Entries
    keys: Fields = ()
    default: bytes | None = None


@dataclass(frozen=True)
class Call:
    """A dispatchable call and its arguments."""

    name: str
    index: int
    arguments: Fields


@dataclass(frozen=True)
class Event:
    """An event and its fields."""

    name: str
    index: int
    fields: Fields


@dataclass(frozen=True)
class Constant:
    """A constant of a pallet, already encoded."""

    name: str
    type: str
    value: bytes


@dataclass(frozen=True)
class Pallet:
    """One pallet. ``errors`` are in the chain's order: clients find an error by its position."""

    name: str
    index: int
    storage: tuple[StorageItem, ...] = ()
    calls: tuple[Call, ...] = ()
    events: tuple[Event, ...] = ()
    errors: tuple[str, ...] = ()
    constants: tuple[Constant, ...] = ()


@dataclass(frozen=True)
class ApiMethod:
    """A runtime API method: argument types, result type, and the answer from a state and the decoded arguments."""

    arguments: Fields
    result: str
    answer: Callable[..., Any]


@dataclass(frozen=True)
class SignedExtension:
    """A part of what is signed: ``type`` travels in the extrinsic, ``implicit`` only in the signed payload."""

    name: str
    type: str
    implicit: str


@dataclass(frozen=True)
class Runtime:
    """Everything that metadata describes."""

    types: Mapping[str, Struct | Enum]
    pallets: tuple[Pallet, ...]
    apis: Mapping[str, Mapping[str, ApiMethod]]
    extensions: tuple[SignedExtension, ...]

    @cached_property
    def all_types(self) -> Mapping[str, Struct | Enum]:
        """The named types, with the enums of calls, events and errors that the pallets make."""
        return {**self.types, **_outer_types(self.pallets)}


def encode_metadata(runtime: Runtime) -> bytes:
    """Metadata v15 with its magic prefix (``RuntimeMetadataPrefixed``)."""
    registry = TypeRegistry(runtime.all_types)
    pallets = vector([_pallet(pallet, registry) for pallet in runtime.pallets])
    extrinsic = bytes([_EXTRINSIC_VERSION]) + b"".join(
        compact(registry.id(name)) for name in ("MultiAddress", "RuntimeCall", "MultiSignature", "()")
    )
    extrinsic += vector(
        text(extension.name) + compact(registry.id(extension.type)) + compact(registry.id(extension.implicit))
        for extension in runtime.extensions
    )
    # Clients find the address and signature types through this one, which nothing else refers to.
    registry.id("UncheckedExtrinsic")
    runtime_type = compact(registry.id("Runtime"))
    apis = vector(
        text(name) + vector(_api_method(method, spec, registry) for method, spec in methods.items()) + _NO_DOCS
        for name, methods in runtime.apis.items()
    )
    outer = b"".join(compact(registry.id(f"Runtime{kind}")) for kind in ("Call", "Event", "Error"))
    custom = vector([])
    return MAGIC + bytes([VERSION]) + registry.encode() + pallets + extrinsic + runtime_type + apis + outer + custom


def _outer_types(pallets: Iterable[Pallet]) -> dict[str, Enum]:
    """The enum of calls, events and errors of each pallet, and of the runtime as a whole."""
    types: dict[str, Enum] = {}
    outer: dict[str, list[Variant]] = {"Call": [], "Event": [], "Error": []}
    for pallet in pallets:
        kinds: dict[str, list[Variant]] = {
            "Call": [Variant(call.name, call.index, call.arguments) for call in pallet.calls],
            "Event": [Variant(event.name, event.index, event.fields) for event in pallet.events],
            "Error": [Variant(name, index, docs=(name,)) for index, name in enumerate(pallet.errors)],
        }
        for kind, variants in kinds.items():
            if variants:
                name = f"{pallet.name}{kind}"
                types[name] = Enum(f"pallet_{pallet.name.lower()}::pallet::{kind}", tuple(variants))
                outer[kind].append(Variant(pallet.name, pallet.index, (("", name),)))
    for kind, variants in outer.items():
        types[f"Runtime{kind}"] = Enum(f"node_subtensor_runtime::Runtime{kind}", tuple(variants))
    return types


def _pallet(pallet: Pallet, registry: TypeRegistry) -> bytes:
    def outer(kind: str, present: Sequence[object]) -> bytes:
        return option(compact(registry.id(f"{pallet.name}{kind}")) if present else None)

    storage = text(pallet.name) + vector(_storage_item(item, registry) for item in pallet.storage)
    constants = vector(
        text(constant.name) + compact(registry.id(constant.type)) + _sized(constant.value) + _NO_DOCS
        for constant in pallet.constants
    )
    return (
        text(pallet.name)
        + option(storage if pallet.storage else None)
        + outer("Call", pallet.calls)
        + outer("Event", pallet.events)
        + constants
        + outer("Error", pallet.errors)
        + bytes([pallet.index])
        + _NO_DOCS
    )


def _storage_item(item: StorageItem, registry: TypeRegistry) -> bytes:
    value = compact(registry.id(item.value))
    if item.keys:
        key_types = [key_type for _, key_type in item.keys]
        key = key_types[0] if len(key_types) == 1 else f"({','.join(key_types)})"
        hashers = vector(bytes([_HASHERS[hasher]]) for hasher, _ in item.keys)
        shape = b"\x01" + hashers + compact(registry.id(key)) + value
    else:
        shape = b"\x00" + value
    optional = item.default is None
    return text(item.name) + bytes([0 if optional else 1]) + shape + _sized(item.default or b"\x00") + _NO_DOCS


def _api_method(name: str, method: ApiMethod, registry: TypeRegistry) -> bytes:
    arguments = vector(text(argument) + compact(registry.id(target)) for argument, target in method.arguments)
    return text(name) + arguments + compact(registry.id(method.result)) + _NO_DOCS


def _sized(value: bytes) -> bytes:
    return compact(len(value)) + value
