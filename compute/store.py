"""SQLite, once: WAL, one writer, versioned schemas per component, and errors of our own."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from compute.errors import StoreError

logger = logging.getLogger(__name__)

_BUSY_TIMEOUT_SECONDS = 10.0


def data_folder(database: Path) -> Path:
    """Where a neuron keeps what is no row of its database: beside it, so that two neurons never share it."""
    return database.absolute().with_suffix(".data")


class Database:
    """One SQLite file, shared by the components of a neuron.

    Thread-safe: one connection under one lock, so transactions never interleave. Nothing slow (Docker, SSH, the
    chain) may run inside a transaction: load, decide, write.

    A file that SQLite finds corrupted is set aside as ``NAME.corrupt-TIME`` and a new one is begun: the neuron keeps
    running, and the log says so.
    """

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        """Open ``path``, creating it and its folder (mode 0700) where needed; ``":memory:"`` keeps all in memory.

        ``read_only`` changes nothing: it makes no file, sets none aside and migrates none, so that a question is safe
        beside a neuron that runs, of whatever version.

        Raises:
            StoreError: the file cannot be created, opened or written; with ``read_only``, there is none.
        """
        self.path = str(path)
        self._read_only = read_only
        self._lock = threading.RLock()
        self._connection = self._look() if read_only else self._open()

    def _look(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                f"{Path(self.path).absolute().as_uri()}?mode=ro",
                uri=True,
                timeout=_BUSY_TIMEOUT_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            connection.row_factory = sqlite3.Row
            return connection
        except sqlite3.Error as error:
            raise StoreError(f"cannot open the database {self.path!r}: {error}. Name it with --database") from error

    def _open(self) -> sqlite3.Connection:
        try:
            if self.path != ":memory:":
                Path(self.path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                return self._connect()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                aside = f"{self.path}.corrupt-{int(time.time())}"
                logger.error("database %s is corrupted (%s): set aside as %s, starting anew", self.path, error, aside)
                Path(self.path).rename(aside)
                for suffix in ("-wal", "-shm"):
                    Path(self.path + suffix).unlink(missing_ok=True)
                return self._connect()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"cannot open the database {self.path!r}: {error}. Check the folder's owner and free space, "
                "or name another file with --database or SQLITE_DB_PATH"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA quick_check(1)").fetchone()
            connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_version (component TEXT PRIMARY KEY, version INTEGER NOT NULL)"
            )
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def migrate(self, component: str, scripts: Sequence[str]) -> None:
        """Bring ``component``'s tables to version ``len(scripts)``; script ``i`` leads from version ``i`` to ``i + 1``.

        Scripts are append-only, each a series of statements separated by ``;``. All missing ones run in one
        transaction, so a crash leaves the old version whole.

        Raises:
            StoreError: the file is newer than this code, or SQLite refuses; with ``read_only`` also: it is older.
        """
        if self._read_only:
            rows = self.query("SELECT version FROM schema_version WHERE component = ?", (component,))
            found = int(rows[0]["version"]) if rows else 0
            if found != len(scripts):
                raise StoreError(
                    f"database {self.path!r} holds version {found} of {component!r}, this code knows {len(scripts)}: "
                    "start the neuron with this code, or name another file with --database"
                )
            return
        with self.transaction() as connection:
            row = connection.execute("SELECT version FROM schema_version WHERE component = ?", (component,)).fetchone()
            version = int(row["version"]) if row else 0
            if version > len(scripts):
                raise StoreError(
                    f"database {self.path!r} holds version {version} of {component!r}, this code knows "
                    f"{len(scripts)}: update the code, or name another file with --database"
                )
            for script in scripts[version:]:
                for statement in script.split(";"):
                    if statement.strip():
                        connection.execute(statement)
            connection.execute(
                "INSERT INTO schema_version VALUES (?, ?)"
                " ON CONFLICT (component) DO UPDATE SET version = excluded.version",
                (component, len(scripts)),
            )

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: commits at the end of the block, rolls back on any exception.

        Raises:
            StoreError: SQLite refuses (full disk, locked by another process for too long, closed).
        """
        with self._lock, self._mapped_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # A failed statement may have rolled back already (a full disk does).
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[sqlite3.Row]:
        """All rows of a SELECT.

        Raises:
            StoreError: SQLite refuses.
        """
        with self._lock, self._mapped_errors():
            return self._connection.execute(sql, parameters).fetchall()

    def close(self) -> None:
        """Close the file. Idempotent; later calls of the other methods raise StoreError."""
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"database {self.path!r}: {error}") from error
