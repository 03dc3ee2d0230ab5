"""What a validator that shares the renter's database may know of its rentals: no secrets needed, none touched."""

from __future__ import annotations

from dataclasses import dataclass

from compute.base.store import Database
from compute.rental.records import GrantState, Penalty, make_tables, read_penalties


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
            (GrantState.ACTIVE.value, GrantState.PAUSED.value, now),
        )
        return [
            Rental(
                row["hotkey"],
                row["ip"],
                row["ssh_port"],
                row["host_key"],
                row["state"] == GrantState.PAUSED.value,
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
