"""SQLite, once: WAL, one writer, versioned schemas per component, and errors of our own."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeGuard

from compute.base.errors import StoreEmpty, StoreError

logger = logging.getLogger(__name__)

_BUSY_TIMEOUT_SECONDS = 2.0
"""Writers of another process, register.py's, take milliseconds; whoever takes longer would stop the event loop."""


def data_folder(database: Path) -> Path:
    """Where a neuron keeps what is no row of its database: beside it, so that two neurons never share it."""
    return database.absolute().with_suffix(".data")


class Database:
    """One SQLite file, shared by the components of a neuron.

    Thread-safe: one connection under one lock, so transactions never interleave. Nothing slow (Docker, SSH, the
    chain) may run inside a transaction: load, decide, write.

    A file that SQLite finds corrupted, at the start or at any later moment, is set aside as ``NAME.corrupt-TIME`` and
    a new one is begun: the neuron keeps running, and the log says so. The call that found it fails, the next works on
    the new file. While another process has the file open too, it stays where it is, and every call fails.
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
        self._schemas: dict[str, Sequence[str]] = {}
        self._users: int | None = None
        self._corruption: sqlite3.DatabaseError | None = None
        self._is_bare = False
        self._connections = 0
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
                self._users = os.open(f"{self.path}.open", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._users, fcntl.LOCK_SH)
            try:
                return self._connect()
            except sqlite3.DatabaseError as error:
                if not _is_corruption(error):
                    raise
                self._set_aside(error)
                return self._connect()
        except (sqlite3.Error, OSError) as error:
            self._leave()
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
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_version (component TEXT PRIMARY KEY, version INTEGER NOT NULL)"
            )
        except sqlite3.Error:
            connection.close()
            raise
        self._connections += 1
        return connection

    def _set_aside(self, error: Exception) -> None:
        """Move the corrupted file out of the way, if this process is the only one that has it open.

        Raises:
            OSError: it is not, or the file cannot be renamed.
        """
        assert self._users is not None, "a database in memory has no file that could be corrupted"
        try:
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OSError(
                f"it is corrupted ({error}), and another process uses it: end that, and it is mended"
            ) from None
        else:
            aside = f"{self.path}.corrupt-{int(time.time())}"
            Path(self.path).rename(aside)
            logger.error("database %s is corrupted (%s): set aside as %s, starting anew", self.path, error, aside)
            # What it has of the last transactions belongs to the old file, and must not be replayed into the new one.
            for suffix in ("-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    Path(self.path + suffix).rename(aside + suffix)
        finally:
            fcntl.flock(self._users, fcntl.LOCK_SH)

    def _mend(self) -> None:
        """A new file with the same tables in the place of a corrupted one; where that fails, the next call tries again.

        Raises:
            StoreError: it fails.
        """
        try:
            if self._corruption is not None:
                self._connection.close()
                self._set_aside(self._corruption)
                self._corruption, self._is_bare = None, True
            if self._is_bare:
                self._connection = self._connect()
                self._is_bare = False
                for component, scripts in self._schemas.items():
                    self.migrate(component, scripts)
        except (sqlite3.Error, OSError, StoreError) as error:
            self._is_bare = self._corruption is None
            raise StoreError(f"database {self.path!r}: {error}") from error

    def _leave(self) -> None:
        if self._users is not None:
            os.close(self._users)
            self._users = None

    def migrate(self, component: str, scripts: Sequence[str]) -> None:
        """Bring ``component``'s tables to version ``len(scripts)``; script ``i`` leads from version ``i`` to ``i + 1``.

        Scripts are append-only, each a series of statements separated by ``;``. All missing ones run in one
        transaction, so a crash leaves the old version whole.

        Raises:
            StoreError: the file is newer than this code, or SQLite refuses; with ``read_only`` also: it is older.
            StoreEmpty: with ``read_only``: it has no tables at all.
        """
        if self._read_only:
            is_begun = self.query("SELECT 1 FROM sqlite_master WHERE name = 'schema_version'")
            rows = self.query("SELECT component, version FROM schema_version") if is_begun else []
            if not rows:
                raise StoreEmpty(f"database {self.path!r} is empty: start the neuron, or name another with --database")
            found = next((int(row["version"]) for row in rows if row["component"] == component), 0)
            if found != len(scripts):
                raise StoreError(
                    f"database {self.path!r} holds version {found} of {component!r}, this code knows {len(scripts)}: "
                    "start the neuron with this code, or name another file with --database"
                )
            return
        self._schemas[component] = scripts
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

    def others_state(self) -> object:
        """Something that differs from what it was before whenever another process has written to the file meanwhile, or
        the file is another one. What this object writes does not change it.

        Raises:
            StoreError: SQLite refuses.
        """
        with self._lock:
            # In this order: the question may find the file corrupted, and begin a new one.
            version = self.query("PRAGMA data_version")[0][0]
            return self._connections, version

    def close(self) -> None:
        """Close the file. Idempotent; later calls of the other methods raise StoreError."""
        with self._lock:
            self._connection.close()
            self._leave()

    @contextlib.contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        if self._corruption is not None or self._is_bare:
            self._mend()
        try:
            yield
        except sqlite3.Error as error:
            if _is_corruption(error) and self._users is not None:
                self._corruption = error
                self._mend()
            raise StoreError(f"database {self.path!r}: {error}{_advice(error)}") from error


def _is_corruption(error: sqlite3.Error) -> TypeGuard[sqlite3.DatabaseError]:
    """Whether the file is at fault. SQLITE_CORRUPT and SQLITE_NOTADB are the plain class; all others have their own."""
    return type(error) is sqlite3.DatabaseError


def _advice(error: sqlite3.Error) -> str:
    text = str(error)
    if "is full" in text:
        return ". Make room on its disk: what could not be written is lost, and the next is tried again"
    if "locked" in text:
        return ". Another process is writing to it and does not end: a shell of sqlite3, or a second neuron?"
    if "readonly" in text:
        return ". Give this user the right to write to it and to its folder"
    return ""


def key_file_beside(database: Path) -> Path:
    """Where the key of a database's secrets is, unless somebody says otherwise."""
    return database.with_name(database.name + ".key")
