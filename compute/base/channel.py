"""A pair of byte streams to a program on another machine: what SSH gives, and what a pipe to a local process gives."""

from __future__ import annotations

from typing import Protocol


class Channel(Protocol):
    """An ordered, reliable, bidirectional byte stream with deadlines.

    Every method is safe to cancel; after a cancelled or failed call the channel is only good for ``close``.
    No method blocks the event loop. Nothing is read from the far side before ``read_exactly`` asks for it, beyond
    one transport window, so a peer cannot make this side hold more than it asked for.
    """

    async def write(self, data: bytes, *, timeout_seconds: float) -> None:
        """Send all of ``data``.

        Raises:
            SshTimeout: not all was accepted in time.
            SshError: the far side has gone.
        """

    async def read_exactly(self, count: int, *, timeout_seconds: float) -> bytes:
        """Return exactly ``count`` bytes.

        Raises:
            SshTimeout: they had not all arrived in time, however slowly they drip.
            SshError: the stream ended first.
        """

    async def close(self) -> None:
        """End the program and the stream. Idempotent; never raises."""
