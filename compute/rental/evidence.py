"""What a validator that shares the renter's database may know of its rentals: no secrets needed, none touched.

And the liveness of a rental: whether its machine answers with the host key that was made for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from compute.base.errors import SshError
from compute.base.store import Database
from compute.rental.records import AllocationState, Penalty, make_tables, read_penalties
from compute.rental.remote import HostKeys
from compute.wire.keys import fingerprint

_SECONDS = 15.0
_AT_ONCE = 32


@dataclass(frozen=True)
class Rental:
    """A machine that this renter holds: where its SSH server answers, and with which host key (``SHA256:…``).

    ``since`` and ``until`` are Unix seconds.
    """

    hotkey: str
    ip: str
    port: int
    host_key: str
    is_paused: bool
    since: float = 0.0
    until: float = 0.0


class RentalEvidence:
    """Reads the renter's tables anew at every call."""

    def __init__(self, database: Database) -> None:
        """Raises StoreError: the tables cannot be made."""
        make_tables(database)
        self._database = database

    def rentals(self, now: float) -> list[Rental]:
        """The machines that this renter holds at ``now`` (Unix seconds): granted, with a pinned host key, not over."""
        rows = self._database.query(
            "SELECT hotkey, ip, ssh_port, host_key, state, created_at, ends_at FROM renter_grant"
            " WHERE state IN (?, ?) AND ends_at > ? AND ssh_port IS NOT NULL AND host_key IS NOT NULL",
            (AllocationState.ACTIVE.value, AllocationState.PAUSED.value, now),
        )
        return [
            Rental(
                row["hotkey"],
                row["ip"],
                row["ssh_port"],
                row["host_key"],
                row["state"] == AllocationState.PAUSED.value,
                since=row["created_at"],
                until=row["ends_at"],
            )
            for row in rows
        ]

    def penalized(self) -> set[str]:
        """The miners that this renter has penalized."""
        return {penalty.hotkey for penalty in self.penalties()}

    def penalties(self) -> list[Penalty]:
        """The same with the renter's notes, oldest first."""
        return read_penalties(self._database)


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
