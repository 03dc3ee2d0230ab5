"""A requirement as a person types it: JSON, or the Python literal of the subnet's documentation."""

from __future__ import annotations

import ast
import json

from compute.base.errors import UsageError
from compute.cli.parser import EXAMPLE_REQUIREMENT as EXAMPLE
from compute.wire.requirements import MAX_CAPACITY, MAX_COUNT, MAX_TYPE_CHARACTERS, DeviceRequirement

_MAX_CHARACTERS = 2_000
_NUMBERS = {
    "cpu": {"count"},
    "gpu": {"count", "capacity"},
    "hard_disk": {"capacity"},
    "ram": {"capacity"},
}


def parse_requirement(text: str) -> DeviceRequirement:
    """Parse what was typed. Nothing is evaluated, and a misspelt key is an error rather than a requirement ignored.

    Raises:
        UsageError: the text, or a key or value in it, is wrong; the message quotes it and shows what is right.
    """
    value = _literal(text)
    if not isinstance(value, dict) or not value:
        raise UsageError(f"requirement {_quote(value)} is not a dictionary. Type it like: {EXAMPLE}")
    wire: dict[str, dict[str, int | str]] = {}
    for part, wanted in value.items():
        if not isinstance(part, str) or part not in _NUMBERS:
            raise UsageError(f"requirement: unknown part {_quote(part)}; the parts are {', '.join(_NUMBERS)}")
        if not isinstance(wanted, dict):
            raise UsageError(f"requirement: {part} is {_quote(wanted)}, not a dictionary such as {{'count': 1}}")
        wire[part] = {_key(part, key): _value(part, key, number) for key, number in wanted.items()}
    return DeviceRequirement.from_wire(wire)


def _literal(text: str) -> object:
    if len(text) > _MAX_CHARACTERS:
        raise UsageError(f"requirement of {len(text)} characters; at most {_MAX_CHARACTERS}. Type it like: {EXAMPLE}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise UsageError(
            f"requirement {_quote(text)} is neither JSON nor a dictionary. Type it like: {EXAMPLE}"
        ) from None


def _key(part: str, key: object) -> str:
    allowed = _NUMBERS[part] | ({"type"} if part == "gpu" else set())
    if not isinstance(key, str) or key not in allowed:
        raise UsageError(f"requirement: {part} has no {_quote(key)}; it has {', '.join(sorted(allowed))}")
    return key


def _value(part: str, key: object, value: object) -> int | str:
    if key == "type":
        if isinstance(value, str) and len(value) <= MAX_TYPE_CHARACTERS and value.isprintable():
            return value
        raise UsageError(
            f"requirement: gpu.type is {_quote(value)}, not a name such as 'L4' of at most "
            f"{MAX_TYPE_CHARACTERS} characters"
        )
    most = MAX_COUNT if key == "count" else MAX_CAPACITY
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise UsageError(f"requirement: {part}.{key} is {_quote(value)}, not a whole number from 0 to {most}")
    return value


def _quote(value: object) -> str:
    if isinstance(value, int) and abs(value) > MAX_CAPACITY:
        return "a huge number"
    text = repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:80] + "…"
