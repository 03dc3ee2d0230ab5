"""Reading the parameters of JSON-RPC methods: each function says what is wrong with a bad one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compute.localnet.rpc.json_rpc import InvalidParams
from compute.localnet.substrate.codec import address_to_key


def take(params: Sequence[Any], *names: str, optional: int = 0) -> list[Any]:
    """As many parameters as there are names; the last ``optional`` of them may be missing, and are then None.

    Raises:
        InvalidParams: too few or too many.
    """
    required = len(names) - optional
    if not required <= len(params) <= len(names):
        wanted = ", ".join((*names[:required], *(f"{name}?" for name in names[required:])))
        raise InvalidParams(f"expected [{wanted}], got {len(params)} parameters")
    return [*params, *[None] * (len(names) - len(params))]


def hex_bytes(name: str, value: Any, size: int | None = None) -> bytes:
    """The bytes of a hexadecimal string, with or without ``0x``.

    Raises:
        InvalidParams: not a string, not hexadecimal, or not of ``size`` bytes.
    """
    if not isinstance(value, str):
        raise InvalidParams(f"{name} must be a hexadecimal string, not {_shown(value)}")
    try:
        decoded = bytes.fromhex(value.removeprefix("0x"))
    except ValueError as error:
        raise InvalidParams(f"{name} {_shown(value)} is not hexadecimal") from error
    if size is not None and len(decoded) != size:
        raise InvalidParams(f"{name} has {len(decoded)} bytes, expected {size}")
    return decoded


def integer(name: str, value: Any, low: int, high: int) -> int:
    """An integer from ``low`` to ``high``.

    Raises:
        InvalidParams: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidParams(f"{name} must be an integer from {low} to {high}, not {_shown(value)}")
    return value


def address(name: str, value: Any) -> str:
    """An ss58 address.

    Raises:
        InvalidParams: it is not.
    """
    if not isinstance(value, str):
        raise InvalidParams(f"{name} must be an ss58 address, not {_shown(value)}")
    try:
        address_to_key(value)
    except ValueError as error:
        raise InvalidParams(f"{name} {_shown(value)} is not an ss58 address") from error
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
