"""The database in the company of other processes, and on disks that fail."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from compute.base import store
from compute.base.errors import StoreError
from compute.base.store import Database

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ["CREATE TABLE pair (number INTEGER PRIMARY KEY, half TEXT NOT NULL, filler BLOB)"]

WRITER = """
import sys
from compute.base.store import Database
database = Database(sys.argv[1])
database.migrate("pairs", [sys.argv[2]])
number = database.query("SELECT coalesce(max(number), 0) AS n FROM pair")[0]["n"]
while True:
    with database.transaction() as connection:
        for half in ("left", "right"):
            number += 1
            connection.execute("INSERT INTO pair VALUES (?, ?, randomblob(3000))", (number, half))
    print(number, flush=True)
"""
HOLDER = """
import sys
from compute.base.store import Database
database = Database(sys.argv[1])
if sys.argv[2] == "write":
    with database.transaction():
        print("ready", flush=True)
        sys.stdin.read()
else:
    print("ready", flush=True)
    sys.stdin.read()
"""


def python(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the other process has ended"
    return line


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "database.db"


def opened(path: Path) -> Database:
    database = Database(path)
    database.migrate("pairs", SCHEMA)
    return database


def add(database: Database, size: int = 10) -> None:
    with database.transaction() as connection:
        connection.execute("INSERT INTO pair (half, filler) VALUES ('left', randomblob(?))", (size,))


def count(database: Database) -> int:
    return int(database.query("SELECT count(*) AS n FROM pair")[0]["n"])


def test_a_kill_in_the_middle_of_writing_loses_nothing_that_was_written(path: Path) -> None:
    for round_number in range(3):
        with python(WRITER, str(path), SCHEMA[0]) as writer:
            told = 0
            for _ in range(20 + 7 * round_number):
                told = int(line_of(writer))
            writer.send_signal(signal.SIGKILL)
        database = opened(path)
        rows = database.query("SELECT number, half FROM pair ORDER BY number")
        assert len(rows) >= told
        assert [row["half"] for row in rows] == ["left", "right"] * (len(rows) // 2), "no transaction is there in part"
        assert database.query("PRAGMA integrity_check")[0][0] == "ok"
        assert list(path.parent.glob("*.corrupt-*")) == []
        database.close()


def test_a_writer_of_another_process_is_waited_for_and_not_for_ever(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_BUSY_TIMEOUT_SECONDS", 0.05)
    database = opened(path)
    with python(HOLDER, str(path), "write") as other:
        line_of(other)
        with pytest.raises(StoreError, match="Another process is writing"):
            add(database)
        assert count(database) == 0, "reading does not wait"
        other.communicate("")
    add(database)
    assert count(database) == 1
    database.close()


def spoil(path: Path, database: Database) -> None:
    """Write nonsense over all pages but the first, as a failing disk may, and forget what is in memory of them."""
    database.query("PRAGMA wal_checkpoint(TRUNCATE)")
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))
    database.query("PRAGMA shrink_memory")


def test_corruption_that_shows_while_it_runs(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = opened(path)
    for _ in range(20):
        add(database, 3000)
    spoil(path, database)
    spoiled = path.read_bytes()
    with pytest.raises(StoreError, match="malformed"):
        database.query("SELECT * FROM pair")
    assert "set aside as" in caplog.text
    (aside,) = path.parent.glob("database.db.corrupt-*[0-9]")
    assert aside.read_bytes()[4096:] == spoiled[4096:]
    assert count(database) == 0, "the next call works, on a new file that has its tables"
    add(database)
    database.close()
    again = opened(path)
    assert count(again) == 1
    again.close()


def test_a_corrupted_page_is_found_at_the_start(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = opened(path)
    for _ in range(20):
        add(database, 3000)
    spoil(path, database)
    database.close()
    again = opened(path)
    assert count(again) == 0
    assert "set aside as" in caplog.text
    again.close()


def test_no_file_is_pulled_from_under_another_process(path: Path) -> None:
    database = opened(path)
    for _ in range(20):
        add(database, 3000)
    with python(HOLDER, str(path), "look") as other:
        line_of(other)
        spoil(path, database)
        for _ in range(2):
            with pytest.raises(StoreError, match="another process uses it"):
                database.query("SELECT * FROM pair")
        assert list(path.parent.glob("*.corrupt-*")) == []
        other.communicate("")
    assert count(database) == 0, "mended as soon as the other has ended"
    database.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", folder]).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_is_said_and_survived(small_disk: Path) -> None:
    database = opened(small_disk / "database.db")
    add(database)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="space"), open(filler, "wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    with pytest.raises(StoreError, match="Make room"):
        for _ in range(200):
            add(database, 3000)
    before = count(database)
    assert before >= 1, "what is there can be read"
    with pytest.raises(StoreError):
        for _ in range(200):
            add(database, 3000)
    filler.unlink()
    add(database)
    assert count(database) > before
    assert database.query("PRAGMA integrity_check")[0][0] == "ok"
    database.close()


def test_a_disk_that_is_full_at_the_start(small_disk: Path) -> None:
    with pytest.raises(OSError, match="space"), open(small_disk / "filler", "wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    with pytest.raises(StoreError, match="free space"):
        opened(small_disk / "database.db")


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder of the user nobody, who this process is meanwhile if it is root: nothing is read-only for root."""
    with tempfile.TemporaryDirectory() as name:
        if os.geteuid() == 0:
            os.chown(name, 65534, 65534)
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            if os.getuid() == 0:
                os.seteuid(0)


def test_a_file_that_may_only_be_read(unprivileged: Path) -> None:
    path = unprivileged / "database.db"
    database = opened(path)
    add(database)
    database.close()
    path.chmod(0o444)
    with pytest.raises(StoreError, match="right to write"):
        opened(path)
    assert list(unprivileged.glob("*.corrupt-*")) == []
    reader = Database(path, read_only=True)
    assert count(reader) == 1
    reader.close()


def test_a_folder_in_which_nothing_can_be_made(unprivileged: Path) -> None:
    unprivileged.chmod(0o555)
    with pytest.raises(StoreError, match="folder's owner"):
        Database(unprivileged / "database.db")


def test_a_kill_in_a_migration_leaves_the_old_version_whole(path: Path) -> None:
    opened(path).close()
    program = """
import os, signal, sys
from compute.base.store import Database
database = Database(sys.argv[1])
database._connection.create_function("die", 0, lambda: os.kill(os.getpid(), signal.SIGKILL))
database.migrate("pairs", [sys.argv[2], "ALTER TABLE pair ADD COLUMN more TEXT; SELECT die()"])
"""
    with python(program, str(path), SCHEMA[0]) as migrating:
        migrating.communicate()
    assert migrating.returncode == -signal.SIGKILL
    database = opened(path)
    with pytest.raises(StoreError, match="no such column"):
        database.query("SELECT more FROM pair")
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT version FROM schema_version WHERE component = 'pairs'").fetchone() == (1,)
    other.close()
    database.close()
