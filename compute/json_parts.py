"""What reading a stranger's JSON costs beyond its bytes."""

from __future__ import annotations

MAX_PARTS = 4096
"""Commas and opening brackets; those of specs are a few hundred. An object for each costs the event loop more than its
bytes do, and the garbage collector more again."""


def has_many_parts(text: str | bytes) -> bool:
    """Whether ``text`` has more than ``MAX_PARTS``. Costs microseconds; what stands inside of strings counts too."""
    if isinstance(text, bytes):
        return sum(map(text.count, (b",", b"[", b"{"))) > MAX_PARTS
    return sum(map(text.count, ",[{")) > MAX_PARTS
