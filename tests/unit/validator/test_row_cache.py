import os
from collections.abc import Collection
from pathlib import Path

import pytest

from compute.base.errors import StoreError
from compute.base.store import Database
from compute.validator.row_cache import RowCache, among, at_once


class Sizes:
    """A table with a size per hotkey, and which of them were read, look by look."""

    def __init__(self, path: Path | str = ":memory:") -> None:
        self.database = Database(path)
        self.database.migrate("sizes", ["CREATE TABLE size (hotkey TEXT PRIMARY KEY, size INTEGER NOT NULL)"])
        self.reads: list[set[str] | None] = []
        self.cache = RowCache(self.database, self._read)

    def _read(self, hotkeys: Collection[str] | None) -> dict[str, int]:
        self.reads.append(None if hotkeys is None else set(hotkeys))
        which, parameters = among(hotkeys)
        return dict(
            at_once(
                self.database,
                f"SELECT json_group_array(json_array(hotkey, size)) FROM size {which}",
                parameters,
            )
        )

    def write(self, **sizes: int) -> None:
        with self.cache.writing(sizes) as connection:
            connection.executemany("INSERT OR REPLACE INTO size VALUES (?, ?)", list(sizes.items()))


def test_only_what_was_written_is_read_anew() -> None:
    sizes = Sizes()
    sizes.write(a=1, b=2)
    assert sizes.cache.rows() == sizes.cache.rows() == {"a": 1, "b": 2}
    assert sizes.reads == [None]
    sizes.write(b=3, c=4)
    sizes.write(d=5)
    assert sizes.cache.rows() == sizes.cache.rows() == {"a": 1, "b": 3, "c": 4, "d": 5}
    assert sizes.reads == [None, {"b", "c", "d"}]


def test_what_was_deleted_is_gone() -> None:
    sizes = Sizes()
    sizes.write(a=1, b=2)
    sizes.cache.rows()
    with sizes.cache.writing({"a"}) as connection:
        connection.execute("DELETE FROM size WHERE hotkey = 'a'")
    assert sizes.cache.rows() == {"b": 2}


def test_one_look_is_one_moment() -> None:
    sizes = Sizes()
    sizes.write(a=1)
    before = sizes.cache.rows()
    sizes.write(a=2, b=2)
    sizes.cache.rows()
    assert before == {"a": 1}


def test_what_another_process_writes_is_seen(tmp_path: Path) -> None:
    ours, theirs = Sizes(tmp_path / "database.db"), Sizes(tmp_path / "database.db")
    ours.write(a=1)
    assert theirs.cache.rows() == ours.cache.rows() == {"a": 1}
    theirs.write(a=2, b=2)
    assert ours.cache.rows() == {"a": 2, "b": 2}
    ours.database.close()
    theirs.database.close()


def test_what_could_not_be_written_is_not_there() -> None:
    sizes = Sizes()
    sizes.write(a=1)
    sizes.cache.rows()
    with pytest.raises(StoreError, match="NOT NULL"), sizes.cache.writing({"a"}) as connection:
        connection.execute("UPDATE size SET size = 2")
        connection.execute("UPDATE size SET size = NULL")
    assert sizes.cache.rows() == {"a": 1}


def test_what_could_not_be_read_is_read_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = Sizes()
    sizes.write(a=1)
    sizes.cache.rows()
    sizes.write(a=2)
    with monkeypatch.context() as patch:
        patch.setattr(sizes.cache, "_read", _refuse)
        with pytest.raises(StoreError):
            sizes.cache.rows()
    assert sizes.cache.rows() == {"a": 2}


def _refuse(hotkeys: Collection[str] | None) -> dict[str, int]:
    raise StoreError("disk I/O error")


def test_nothing_is_kept_of_a_file_that_was_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    sizes = Sizes(path)
    sizes.write(a=1)
    sizes.database.query("PRAGMA wal_checkpoint(TRUNCATE)")
    assert sizes.cache.rows() == {"a": 1}
    # All pages but the first, as a failing disk may; and another part of the neuron finds out.
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))
    sizes.database.query("PRAGMA shrink_memory")
    with pytest.raises(StoreError, match="malformed"):
        sizes.database.query("SELECT * FROM size")
    assert sizes.cache.rows() == {}
    sizes.database.close()
