import threading
from pathlib import Path

import pytest

from compute.base.errors import StoreEmpty, StoreError
from compute.base.store import Database

V1 = "CREATE TABLE item (name TEXT PRIMARY KEY, size INTEGER NOT NULL)"
V2 = "ALTER TABLE item ADD COLUMN colour TEXT; CREATE INDEX by_size ON item (size)"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sub" / "database.db"


def names(database: Database) -> list[str]:
    return [row["name"] for row in database.query("SELECT name FROM item ORDER BY name")]


def test_migrations_run_once_and_in_order(path: Path) -> None:
    database = Database(path)
    database.migrate("items", [V1])
    with database.transaction() as connection:
        connection.execute("INSERT INTO item VALUES ('a', 1)")
    database.migrate("items", [V1, V2])
    database.migrate("items", [V1, V2])
    assert [tuple(row) for row in database.query("SELECT name, size, colour FROM item")] == [("a", 1, None)]
    database.close()


def test_failed_migration_leaves_the_old_version_whole(path: Path) -> None:
    database = Database(path)
    database.migrate("items", [V1])
    with pytest.raises(StoreError, match="syntax error"):
        database.migrate("items", [V1, "CREATE TABLE other (x); NONSENSE"])
    assert database.query("SELECT 1 FROM sqlite_master WHERE name = 'other'") == []
    database.migrate("items", [V1, V2])
    database.close()


def test_a_newer_file_is_refused_with_what_to_do(path: Path) -> None:
    database = Database(path)
    database.migrate("items", [V1, V2])
    with pytest.raises(StoreError, match="update the code"):
        database.migrate("items", [V1])
    database.close()


def test_transaction_rolls_back_on_any_exception(path: Path) -> None:
    database = Database(path)
    database.migrate("items", [V1])
    with pytest.raises(KeyboardInterrupt), database.transaction() as connection:
        connection.execute("INSERT INTO item VALUES ('a', 1)")
        raise KeyboardInterrupt
    assert names(database) == []
    with pytest.raises(StoreError, match="UNIQUE"), database.transaction() as connection:
        connection.execute("INSERT INTO item VALUES ('b', 1)")
        connection.execute("INSERT INTO item VALUES ('b', 2)")
    assert names(database) == []
    database.close()


def test_committed_rows_survive_without_a_close(path: Path) -> None:
    database = Database(path)
    database.migrate("items", [V1])
    with database.transaction() as connection:
        connection.execute("INSERT INTO item VALUES ('a', 1)")
    second = Database(path)
    second.migrate("items", [V1])
    assert names(second) == ["a"]
    second.close()
    database.close()


def test_a_corrupted_file_is_set_aside(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is no database at all" * 100)
    database = Database(path)
    database.migrate("items", [V1])
    assert names(database) == []
    assert len(list(path.parent.glob("database.db.corrupt-*"))) == 1
    assert "corrupted" in caplog.text
    database.close()


def test_an_impossible_path_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="SQLITE_DB_PATH"):
        Database(tmp_path / "file" / "database.db")


def test_writers_of_many_threads_take_turns(path: Path) -> None:
    database = Database(path)
    database.migrate("items", ["CREATE TABLE counter (value INTEGER NOT NULL); INSERT INTO counter VALUES (0)"])

    def add() -> None:
        for _ in range(50):
            with database.transaction() as connection:
                value = connection.execute("SELECT value FROM counter").fetchone()["value"]
                connection.execute("UPDATE counter SET value = ?", (value + 1,))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert database.query("SELECT value FROM counter")[0]["value"] == 200
    database.close()


def test_use_after_close_is_an_error_of_ours(path: Path) -> None:
    database = Database(path)
    database.close()
    database.close()
    with pytest.raises(StoreError):
        database.query("SELECT 1")


def test_reading_changes_nothing(path: Path) -> None:
    with pytest.raises(StoreError, match="--database"):
        Database(path, read_only=True)
    assert not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    reader = Database(path, read_only=True)
    with pytest.raises(StoreEmpty, match="is empty: start the neuron"):
        reader.migrate("items", [V1])
    writer = Database(path)
    with pytest.raises(StoreEmpty):
        reader.migrate("items", [V1])
    writer.migrate("items", [V1])
    reader.migrate("items", [V1])
    with writer.transaction() as connection:
        connection.execute("INSERT INTO item VALUES ('one', 1)")
    assert names(reader) == ["one"], "it sees what a running neuron writes"
    with pytest.raises(StoreError, match="readonly"), reader.transaction() as connection:
        connection.execute("DELETE FROM item")
    for scripts in ([], [V1, "CREATE TABLE more (x)"]):
        with pytest.raises(StoreError, match="start the neuron with this code"):
            reader.migrate("items", scripts)
    writer.close()
    assert names(reader) == ["one"]
    reader.close()


def test_reading_sets_no_corrupted_file_aside(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"this is no database at all" * 100)
    reader = Database(path, read_only=True)
    with pytest.raises(StoreError, match="not a database"):
        reader.migrate("items", [V1])
    reader.close()
    assert path.exists()
