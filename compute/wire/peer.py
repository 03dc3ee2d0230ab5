"""A peer, the interface through which it is called, and a bound on what it sends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from compute.protocol import Synapse

S = TypeVar("S", bound="Synapse")


@dataclass(frozen=True)
class Peer:
    """A neuron's axon as the chain announces it."""

    hotkey: str
    ip: str
    port: int

    def __str__(self) -> str:
        return f"{self.hotkey[:8]}… at {self.ip}:{self.port}"


class Caller(Protocol):
    """Sends a synapse to a peer and returns the filled one."""

    async def call(self, peer: Peer, synapse: S, *, timeout_seconds: float) -> S:
        """Send ``synapse``; calls to one axon go one after the other, in the order in which they were made.

        ``timeout_seconds`` bounds the request itself, not the wait for its turn.

        Raises:
            CallError: no connection, no answer in time, a refusal, or an answer that is not one; its class says which.
        """


MAX_PARTS = 4096
"""The most commas and opening brackets in a peer's JSON; specs have a few hundred. Each may become an object, which
costs the event loop more than reading its bytes, and the garbage collector more again."""


def has_many_parts(text: str | bytes) -> bool:
    """Whether ``text`` has more than ``MAX_PARTS``. Costs microseconds; what stands inside of strings counts too."""
    if isinstance(text, bytes):
        return sum(map(text.count, (b",", b"[", b"{"))) > MAX_PARTS
    return sum(map(text.count, ",[{")) > MAX_PARTS
