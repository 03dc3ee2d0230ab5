"""What a validator that shares the renter's database may know of its rentals: no secrets needed, none touched."""

from __future__ import annotations

from dataclasses import dataclass

from compute.renter.records import GrantState, make_tables
from compute.store import Database


@dataclass(frozen=True)
class Rental:
    """A machine that this renter holds: where its SSH server answers, and with which host key (``SHA256:…``)."""

    hotkey: str
    ip: str
    port: int
    host_key: str
    is_paused: bool


class RentalEvidence:
    """Reads the renter's tables anew at every call."""

    def __init__(self, database: Database) -> None:
        """Raises StoreError: the tables cannot be made."""
        make_tables(database)
        self._database = database

    def rentals(self, now: float) -> list[Rental]:
        """The machines that this renter holds at ``now`` (Unix seconds): granted, with a pinned host key, not over."""
        rows = self._database.query(
            "SELECT hotkey, ip, ssh_port, host_key, state FROM renter_grant"
            " WHERE state IN (?, ?) AND ends_at > ? AND ssh_port IS NOT NULL AND host_key IS NOT NULL",
            (GrantState.ACTIVE.value, GrantState.PAUSED.value, now),
        )
        return [
            Rental(row["hotkey"], row["ip"], row["ssh_port"], row["host_key"], row["state"] == GrantState.PAUSED.value)
            for row in rows
        ]

    def penalized(self) -> set[str]:
        """The miners that this renter has penalized."""
        return {str(row["hotkey"]) for row in self._database.query("SELECT hotkey FROM renter_penalty")}
