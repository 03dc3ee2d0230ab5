"""What the values of options and variables look like: text in, typed value out.

Every kind raises ``ValueError`` with a message that quotes the bad value and says what would be right.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TypeVar

E = TypeVar("E", bound=Enum)

_TRUE = frozenset({"true", "yes", "on", "1", "t", "y"})
_FALSE = frozenset({"false", "no", "off", "0", "f", "n"})
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def boolean(text: str) -> bool:
    """``true``, ``yes``, ``on``, ``1`` or their opposites, in any case."""
    word = text.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError(f"{text!r} is neither true (yes, on, 1) nor false (no, off, 0)")


def integer(minimum: int, maximum: int) -> Callable[[str], int]:
    """A whole number within inclusive bounds."""

    def parse(text: str) -> int:
        # int() would also take "1_000", " 7 " and digits of other scripts.
        if re.fullmatch(r"[+-]?[0-9]{1,18}", text) and minimum <= int(text) <= maximum:
            return int(text)
        raise ValueError(f"{text!r} is not a whole number from {minimum} to {maximum}")

    return parse


port = integer(1, 65535)
percent = integer(0, 100)


def text(value: str) -> str:
    """Any text that is not blank."""
    if not value.strip():
        raise ValueError(f"{value!r} is empty")
    return value


def anything(value: str) -> str:
    """Any text, the empty one included."""
    return value


def path(value: str) -> Path:
    """A path; a leading ``~`` is the home directory."""
    return Path(text(value)).expanduser()


def ip_address(value: str) -> str:
    """An IPv4 or IPv6 address; host names are refused, since the chain stores numbers."""
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError(f"{value!r} is not an IP address such as 203.0.113.7") from None


def ip_ranges(value: str) -> tuple[str, ...]:
    """Comma-separated IPv4 ranges or addresses; ``""`` is none."""
    found = []
    for entry in filter(None, (entry.strip() for entry in value.split(","))):
        try:
            found.append(str(ipaddress.IPv4Network(entry)))
        except ValueError:
            raise ValueError(f"{entry!r} is not a range of IPv4 addresses such as 10.1.0.0/16") from None
    return tuple(found)


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine and nothing else. Names are not resolved."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def choice(kind: type[E]) -> Callable[[str], E]:
    """One of the values of an enum."""

    def parse(value: str) -> E:
        for member in kind:
            if value == member.value:
                return member
        raise ValueError(f"{value!r} is not one of {', '.join(str(member.value) for member in kind)}")

    return parse


def keys(value: str) -> tuple[str, ...]:
    """Comma-separated ss58 addresses, each with a right checksum. ``""`` and ``"[]"`` are the empty list.

    A mistyped key in a list would protect nobody and say nothing, so it is an error here.
    """
    if value.strip() in ("", "[]"):
        return ()
    entries = tuple(entry.strip() for entry in value.split(","))
    for entry in entries:
        if not _is_ss58(entry):
            raise ValueError(f"{entry!r} is not an ss58 address (48 characters, as a wallet shows it)")
    return tuple(dict.fromkeys(entries))


def _is_ss58(address: str) -> bool:
    """Format 42, 32 bytes of key and two of checksum: the only form that Bittensor uses."""
    if len(address) != 48 or any(letter not in _BASE58 for letter in address):
        return False
    number = 0
    for letter in address:
        number = number * 58 + _BASE58.index(letter)
    if number.bit_length() > 35 * 8:
        return False
    data = number.to_bytes(35, "big")
    return data[0] == 42 and hashlib.blake2b(b"SS58PRE" + data[:-2]).digest()[:2] == data[-2:]
