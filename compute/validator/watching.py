"""Watches rented machines without disturbing the tenant: does the one with the pinned host key still answer?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from compute.allocation.keys import fingerprint
from compute.errors import SshError
from compute.renter.evidence import Rental

_SECONDS = 15.0
_AT_ONCE = 32


class HostKeys(Protocol):
    """Asks an SSH server for its host key; ``renter.remote.SshRemote`` is the real one."""

    async def host_key_line(self, host: str, port: int, *, timeout_seconds: float) -> str:
        """``TYPE BASE64`` of the key that answers there. Logs nobody in. Raises SshError: none does, in time."""


Watched = Callable[[Sequence[Rental], Collection[Rental], Mapping[str, str]], object]
"""Takes the rentals that were looked at, those of them that are alive, and by host key what has changed of those whose
lease ends for that."""


async def alive(rentals: Sequence[Rental], host_keys: HostKeys) -> set[Rental]:
    """The rentals whose machine answers with its pinned host key; a paused one is taken as alive.

    This is the evidence for a lease that only its renter can have: the key was made for this lease, and its
    fingerprint came encrypted to the renter.
    """
    slots = asyncio.Semaphore(_AT_ONCE)

    async def is_alive(rental: Rental) -> bool:
        if rental.is_paused:
            return True
        try:
            async with slots:
                line = await host_keys.host_key_line(rental.ip, rental.port, timeout_seconds=_SECONDS)
        except SshError:
            return False
        return fingerprint(line) == rental.host_key

    answers = await asyncio.gather(*map(is_alive, rentals))
    return {rental for rental, answer in zip(rentals, answers, strict=True) if answer}
