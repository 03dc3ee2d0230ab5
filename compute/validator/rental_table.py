"""The table ``rental``, and the events of each miner's rentals."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from enum import Enum

from compute.base.store import Database
from compute.validator.rentals import Key, RentalRow, RentalSource
from compute.validator.row_cache import RowCache, among, at_once

_COLUMNS = ", ".join(field.name for field in fields(RentalRow))
_EVENTS_KEPT_PER_HOTKEY = 200


class RentalEventKind(str, Enum):
    """What happened to a miner's machine besides proofs. The values are the database form.

    The detail of ``RENTED`` says through which validator's hotkey, that of ``HARDWARE_CHANGED`` what changed.
    """

    RENTED = "rented"
    FREE = "free"
    HARDWARE_CHANGED = "hardware_changed"


@dataclass(frozen=True)
class RentalEvent:
    """Something that happened to the machine of ``hotkey``, at ``at`` (Unix seconds)."""

    hotkey: str
    at: float
    block: int
    kind: RentalEventKind
    detail: str


class RentalTable:
    """What is known of rentals. ``FactStore`` makes the tables. Every method may raise StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._cache = RowCache(database, self._read)

    def by_hotkey(self) -> Mapping[str, tuple[RentalRow, ...]]:
        """All rows."""
        return self._cache.rows()

    def rows(self) -> dict[Key, RentalRow]:
        """All rows, by hotkey and host key."""
        return {row.key: row for rows in self._cache.rows().values() for row in rows}

    def _read(self, hotkeys: Collection[str] | None) -> dict[str, tuple[RentalRow, ...]]:
        which, parameters = among(hotkeys)
        columns = at_once(
            self._database,
            f"SELECT json_group_array(json_array({_COLUMNS})) FROM rental {which}",  # noqa: S608
            parameters,
        )
        found: dict[str, tuple[RentalRow, ...]] = {}
        for hotkey, host_key, source, *others in columns:
            others[-1] = bool(others[-1])
            row = RentalRow(hotkey, host_key, RentalSource(source), *others)
            found[hotkey] = (*found.get(hotkey, ()), row)
        return found

    def write(
        self,
        rows: Collection[RentalRow],
        events: Iterable[RentalEvent] = (),
        also: Callable[[sqlite3.Connection], object] = lambda connection: None,
    ) -> None:
        """Replace these rows, drop those that are spent, and append events, in one transaction.

        ``also`` writes what must be there exactly when this is.
        """
        with self._cache.writing({row.hotkey for row in rows}) as connection:
            for row in rows:
                if row.is_spent:
                    connection.execute("DELETE FROM rental WHERE hotkey = ? AND host_key = ?", row.key)
                else:
                    values = {**vars(row), "source": row.source.value}
                    marks = ", ".join("?" * len(values))
                    connection.execute(
                        f"INSERT OR REPLACE INTO rental ({', '.join(values)}) VALUES ({marks})",  # noqa: S608
                        tuple(values.values()),
                    )
            for event in events:
                connection.execute(
                    "INSERT INTO event (hotkey, at, block, kind, detail) VALUES (?, ?, ?, ?, ?)",
                    (event.hotkey, event.at, event.block, event.kind.value, event.detail),
                )
                connection.execute(
                    "DELETE FROM event WHERE hotkey = ?1 AND id NOT IN"
                    " (SELECT id FROM event WHERE hotkey = ?1 ORDER BY id DESC LIMIT ?2)",
                    (event.hotkey, _EVENTS_KEPT_PER_HOTKEY),
                )
            also(connection)

    def events(self, hotkey: str) -> list[RentalEvent]:
        """All events that are kept of one hotkey, oldest first."""
        return [
            RentalEvent(row["hotkey"], row["at"], row["block"], RentalEventKind(row["kind"]), row["detail"])
            for row in self._database.query("SELECT * FROM event WHERE hotkey = ? ORDER BY id", (hotkey,))
        ]

    def forget_absent(self, connection: sqlite3.Connection, present: Collection[str], before: float) -> None:
        """Within a transaction, drop what ended or happened before ``before`` to hotkeys that are not ``present``."""
        for table, column in (("event", "at"), ("rental", "ended")):
            connection.execute(
                f"DELETE FROM {table} WHERE {column} < ? AND hotkey NOT IN (SELECT value FROM json_each(?))",  # noqa: S608
                (before, json.dumps(list(present))),
            )

    def forget_cache(self) -> None:
        """Read everything anew at the next look."""
        self._cache.forget()
