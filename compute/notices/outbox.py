"""Notices that have not arrived yet, in SQLite: they survive a restart, and a receiver that is away for days."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from compute.base.store import Database
from compute.notices.notice import Notice, NoticeKind, Topic

KEPT_NOTICES = 1000

_SCHEMA = (
    """
    CREATE TABLE notice (
        id INTEGER PRIMARY KEY, notice_id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, channel TEXT NOT NULL,
        hotkey TEXT NOT NULL, at REAL NOT NULL, rental TEXT NOT NULL, details TEXT NOT NULL,
        tries INTEGER NOT NULL DEFAULT 0, next_at REAL NOT NULL
    );
    CREATE TABLE notice_rental (
        rental TEXT PRIMARY KEY, hotkey TEXT NOT NULL, misses INTEGER NOT NULL, told_offline INTEGER NOT NULL
    )
    """,
    # What it held is in the validator's table "rental" by now: FactStore is made first.
    "DROP TABLE IF EXISTS notice_rental",
)


@dataclass(frozen=True)
class QueuedNotice:
    """A notice in the outbox, tried ``tries`` times without success."""

    notice: Notice
    tries: int


class Outbox:
    """The queue. Every method may raise StoreError; every write is one transaction."""

    def __init__(self, database: Database) -> None:
        database.migrate("notices", _SCHEMA)
        self._database = database

    def put(self, connection: sqlite3.Connection, notices: Sequence[Notice], topics: Collection[Topic]) -> None:
        """Within a transaction, keep those of ``notices`` whose topic is one of ``topics`` until they are delivered."""
        connection.executemany(
            "INSERT INTO notice (notice_id, kind, channel, hotkey, at, rental, details, next_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (n.notice_id, n.kind.value, n.kind.topic.value, n.hotkey, n.at, n.rental, n.details, n.at)
                for n in notices
                if n.kind.topic in topics
            ],
        )

    def due(self, now: float, topics: Collection[Topic], limit: int = 100) -> list[QueuedNotice]:
        """What is to be tried at ``now``, oldest first."""
        marks = ", ".join("?" * len(topics))
        rows = self._database.query(
            f"SELECT * FROM notice WHERE next_at <= ? AND channel IN ({marks}) ORDER BY id LIMIT ?",  # noqa: S608
            (now, *(topic.value for topic in topics), limit),
        )
        return [
            QueuedNotice(
                Notice(
                    row["notice_id"], NoticeKind(row["kind"]), row["hotkey"], row["at"], row["rental"], row["details"]
                ),
                row["tries"],
            )
            for row in rows
        ]

    def delivered(self, notice_id: str) -> None:
        """Forget a notice that has arrived."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM notice WHERE notice_id = ?", (notice_id,))

    def failed(self, queued: QueuedNotice, next_at: float) -> None:
        """Count a failure; the next try is due at ``next_at`` (Unix seconds)."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE notice SET tries = ?, next_at = ? WHERE notice_id = ?",
                (queued.tries + 1, next_at, queued.notice.notice_id),
            )

    def drop_old(self, before: float) -> int:
        """Drop what is older than ``before`` (Unix seconds) and what exceeds ``KEPT_NOTICES``; returns how many."""
        with self._database.transaction() as connection:
            old = connection.execute("DELETE FROM notice WHERE at < ?", (before,)).rowcount
            many = connection.execute(
                "DELETE FROM notice WHERE id NOT IN (SELECT id FROM notice ORDER BY id DESC LIMIT ?)", (KEPT_NOTICES,)
            ).rowcount
        return int(old + many)
