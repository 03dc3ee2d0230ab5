"""What a validator that shares the renter's database may know of its rentals: no secrets needed, none touched."""

from __future__ import annotations

from compute.renter.records import GrantState, make_tables
from compute.store import Database


class RentalEvidence:
    """Reads the renter's tables anew at every call."""

    def __init__(self, database: Database) -> None:
        """Raises StoreError: the tables cannot be made."""
        make_tables(database)
        self._database = database

    def leased(self, now: float) -> set[str]:
        """The miners whose machines this renter holds at ``now`` (Unix seconds): granted, and not over."""
        rows = self._database.query(
            "SELECT hotkey FROM renter_grant WHERE state IN (?, ?) AND ends_at > ?",
            (GrantState.ACTIVE.value, GrantState.PAUSED.value, now),
        )
        return {str(row["hotkey"]) for row in rows}

    def penalized(self) -> set[str]:
        """The miners that this renter has penalized."""
        return {str(row["hotkey"]) for row in self._database.query("SELECT hotkey FROM renter_penalty")}
