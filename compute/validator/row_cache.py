"""Tables with a row per miner: read and written in one step of SQLite, and kept in memory until they are written.

SQLite lets go of the interpreter at each row, and while another thread computes, the event loop has to wait for it each
time: 256 rows took 0.2 s.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from compute.base.store import Database

T = TypeVar("T")


class RowCache(Generic[T]):
    """The rows of a table by hotkey, as the database has them at every look.

    Several duties look at it in each poll, and to read and parse it of 256 miners costs 5 to 10 ms in which the event
    loop stands still, twice that while another thread computes. So only the hotkeys that were written since the last
    look are read anew; all of them where another process has written to the file, or it is another file. Thread-safe.
    """

    def __init__(self, database: Database, read: Callable[[Collection[str] | None], Mapping[str, T]]) -> None:
        """``read`` asks the database for these hotkeys, or for all of them; it may raise StoreError."""
        self._database = database
        self._read = read
        self._lock = threading.Lock()
        self._rows: Mapping[str, T] | None = None
        self._written: set[str] = set()
        self._state: object = None

    def rows(self) -> Mapping[str, T]:
        """By hotkey; the mapping stays as it is, whatever is written later.

        Raises:
            StoreError: the database cannot be read.
        """
        with self._lock:
            # Asked for first: what somebody else writes between the two is read again the next time.
            state = self._database.others_state()
            if self._rows is None or state != self._state:
                self._rows = self._read(None)
            elif self._written:
                unchanged = {hotkey: row for hotkey, row in self._rows.items() if hotkey not in self._written}
                self._rows = unchanged | dict(self._read(self._written))
            self._state = state
            self._written = set()
            return self._rows

    @contextlib.contextmanager
    def writing(self, hotkeys: Collection[str]) -> Iterator[sqlite3.Connection]:
        """A transaction in which rows of these hotkeys are written, or deleted. Raises StoreError."""
        try:
            with self._database.transaction() as connection:
                yield connection
        finally:
            with self._lock:
                self._written.update(hotkeys)

    def forget(self) -> None:
        """Read everything anew at the next look."""
        with self._lock:
            self._rows = None


def at_once(database: Database, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
    """What a query gives that makes one JSON array of its rows; times are good to ten microseconds.

    Raises:
        StoreError: the database cannot be read.
    """
    rows: list[Any] = json.loads(database.query(sql, parameters)[0][0])
    return rows


def among(hotkeys: Collection[str] | None) -> tuple[str, Sequence[object]]:
    """A WHERE with its parameters, for the rows of these hotkeys or of all."""
    if hotkeys is None:
        return "", ()
    return "WHERE hotkey IN (SELECT value FROM json_each(?))", (json.dumps(list(hotkeys)),)


def values(columns: int) -> str:
    """For an INSERT: the rows of a parameter that is a JSON array of them, each with so many columns."""
    extracts = ", ".join(f"json_extract(value, '$[{number}]')" for number in range(columns))
    return f"SELECT {extracts} FROM json_each(?) WHERE true"  # noqa: S608
