"""kill -9 at every step of a switch and of the way back: the next start runs the old commit or the new one, whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compute.update import guard
from compute.update import trial as trials
from compute.update.check import Release
from compute.update.self_update import switch
from compute.update.trial import Failed, Trial

from .conftest import Repositories, git

_STEPS = ("merge", "update-ref", "update-index", "restore", "pip")


class Crash(BaseException):
    """The process is gone."""


class StartsAgain(BaseException):
    """The process executes itself."""


class Process:
    """A neuron's process that dies before or after one of its steps; ``packages`` is what pip has installed."""

    def __init__(self, packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._packages = packages
        self._left: int | None = None
        self._after = self.blown = False
        for name in ("run", "_write", "forget"):
            monkeypatch.setattr(trials, name, self._guarded(getattr(trials, name)))
        monkeypatch.setattr(guard, "restart", self._restart)
        monkeypatch.setattr(guard, "_watch", lambda trial: None)

    def cut(self, steps: int | None, *, after: bool) -> None:
        """From now on let ``steps`` steps happen; the next is the last one, or does not happen any more."""
        self._left, self._after, self.blown = steps, after, False

    def packages(self) -> str:
        return self._packages.read_text()

    def start(self) -> bool:
        """Start until a commit runs; whether that is on trial."""
        while True:
            try:
                return guard._begin()
            except StartsAgain:
                pass

    def _restart(self) -> Any:
        raise StartsAgain

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            command = arguments[0] if arguments and isinstance(arguments[0], list) else []
            is_pip = command[1:3] == ["-m", "pip"]

            def work() -> Any:
                return self._packages.write_text(command[-1]) if is_pip else function(*arguments, **options)

            is_step = is_pip or not command or any(word in _STEPS for word in command)
            if self.blown:
                raise Crash
            if not is_step or self._left is None:
                return work()
            self._left -= 1
            self.blown = self._left < 0
            if self.blown and not self._after:
                raise Crash
            result = work()
            if self.blown:
                raise Crash
            return result

        return call


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Process:
    return Process(tmp_path / "packages", monkeypatch)


def switched(there: Repositories, new: str) -> None:
    git(there.root, "fetch", "--quiet")
    with trials.lock(wait=True):
        switch(Release(there.old, new, ("tiny==2",), ("tiny==1",)), 600.0)


def started_too_often(there: Repositories, new: str) -> None:
    guard._begin()


def crashed_too_often(there: Repositories, new: str) -> None:
    guard._ended(1)


def confirmed(there: Repositories, new: str) -> None:
    guard.confirm()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("story", "least"), [(switched, 3), (started_too_often, 6), (crashed_too_often, 1), (confirmed, 1)]
)
def test_the_next_start_runs_one_commit_whole(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: Repositories,
    process: Process,
    story: Any,
    least: int,
    after: bool,
) -> None:
    new = there.release()
    (tmp_path / "packages").write_text("tiny==1")
    if story is not switched:
        switched(there, new)
        trial = trials.load()
        assert trial is not None
        trial.starts = guard.MAX_STARTS
        trials.save(trial)
    original, packages = there.root.rename(tmp_path / "original"), process.packages()
    database = tmp_path / "database.db"
    database.write_bytes(b"a customer's")
    cuts = 0
    while True:
        shutil.rmtree(there.root, ignore_errors=True)
        shutil.copytree(original, there.root)
        (tmp_path / "packages").write_text(packages)
        process.cut(cuts, after=after)
        with contextlib.suppress(Crash, StartsAgain):
            story(there, new)
        blown = process.blown
        process.cut(None, after=after)
        is_on_trial = process.start()
        state = (there.tree(), process.packages(), is_on_trial)
        failure = trials.failures().get(new, {})
        if state == ("new at main", "tiny==2", True):
            assert story is switched, "a commit that failed runs on"
            guard.confirm()
        elif state == ("new at main", "tiny==2", False):
            assert story is confirmed
        else:
            assert state == ("old at main", "tiny==1", False)
            # What was only interrupted is tried again.
            assert failure.get("for_good", False) is (story is not switched)
        assert trials.load() is None
        assert process.start() is False, "nothing is left to do"
        if state[0].startswith("old") and story is switched:
            switched(there, new)
            assert process.start() is True
        assert database.read_bytes() == b"a customer's"
        if not blown:
            break
        cuts += 1
    assert cuts >= least


# --- what lies in the tree when git itself was killed -----------------------------------------------------------------


def put_back(there: Repositories, new: str) -> None:
    trials.put_back(Trial(there.old, new, "refs/heads/main"))
    assert there.tree() == "old at main"


def test_a_half_written_tree_is_put_back_and_what_lay_there_can_be_had(there: Repositories) -> None:
    new = there.release()
    git(there.root, "fetch", "--quiet")
    (there.root / "notes").write_text("mine")
    # Files first, one of them half, and the lock of an index that was not written.
    (there.root / "removed").unlink()
    (there.root / "changed").write_text("t")
    (there.root / "added").write_text("two")
    lock = there.root / ".git" / "index.lock"
    lock.write_bytes(b"DIRC")
    os.utime(lock, (time.time() - 60, time.time() - 60))
    put_back(there, new)
    assert (there.root / "notes").read_text() == "mine"
    assert git(there.root, "show", "refs/compute-update/undone:changed") == "t"


def test_an_index_without_its_branch_is_put_back(there: Repositories) -> None:
    new = there.release()
    git(there.root, "fetch", "--quiet")
    git(there.root, "read-tree", "-m", "-u", there.old, new)
    put_back(there, new)


def test_folders_and_links_are_put_back(there: Repositories) -> None:
    folder = there.author / "folder"
    folder.mkdir()
    (folder / "inside").write_text("one")
    (there.author / "link").symlink_to("kept")
    there.old = there.commit()
    git(there.author, "push", "--quiet", "origin", "main")
    git(there.root, "pull", "--quiet")
    shutil.rmtree(folder)
    folder.write_text("a file now")
    (there.author / "link").unlink()
    (there.author / "deep" / "er").mkdir(parents=True)
    (there.author / "deep" / "er" / "file").write_text("two")
    new = there.release()
    git(there.root, "pull", "--quiet")
    put_back(there, new)
    assert (there.root / "folder" / "inside").read_text() == "one"
    assert os.readlink(there.root / "link") == "kept"
    assert not (there.root / "deep").exists()


# --- work of somebody's own ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "text"), [("changed", "mine"), ("added", ""), ("removed", "mine"), ("added", None)])
def test_work_of_somebodys_own_stops_the_way_back(there: Repositories, name: str, text: str | None) -> None:
    new = there.release()
    git(there.root, "pull", "--quiet")
    file = there.root / name
    file.unlink(missing_ok=True)
    if text is not None:
        file.write_text(text)
    with pytest.raises(Failed, match=f"{name}.*Keep what you need"):
        trials.put_back(Trial(there.old, new, "refs/heads/main"))
    assert (file.read_text() if text is not None else None) == text
    assert git(there.root, "rev-parse", "main") == new


def test_work_elsewhere_in_the_tree_stays_where_it_is(there: Repositories) -> None:
    new = there.release()
    git(there.root, "pull", "--quiet")
    (there.root / "kept").write_text("mine")
    (there.root / "staged").write_text("mine")
    git(there.root, "add", "staged")
    trials.put_back(Trial(there.old, new, "refs/heads/main"))
    assert git(there.root, "status", "--porcelain").splitlines() == [" M kept", "A  staged"]
    assert (there.root / "kept").read_text() == "mine"


@pytest.mark.parametrize("move", [("reset", "--hard", "--quiet", "HEAD~1"), ("checkout", "--quiet", "--detach")])
def test_a_clone_that_was_moved_by_hand_stays_there(
    there: Repositories, process: Process, move: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    switched(there, there.release())
    assert process.start() is True
    git(there.root, *move)
    head = git(there.root, "rev-parse", "HEAD")
    assert process.start() is False
    assert "moved by hand" in capsys.readouterr().err
    assert git(there.root, "rev-parse", "HEAD") == head
    assert trials.load() is None


def test_where_it_cannot_go_back_it_says_how_and_stops(
    there: Repositories, process: Process, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Left(BaseException):
        pass

    def leave(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(guard, "leave", leave)
    switched(there, there.release())
    for _ in range(guard.MAX_STARTS):
        assert process.start() is True
    (there.root / "changed").write_text("mine")
    # It is as it was at the next start; once the operator has made room, it goes back.
    for _ in range(2):
        with pytest.raises(Left, match="2"):
            process.start()
    assert "cannot be taken back: these files have changes that are not from git: changed" in capsys.readouterr().err
    assert (there.root / "changed").read_text() == "mine"
    git(there.root, "checkout", "changed")
    assert process.start() is False
    assert there.tree() == "old at main"


def test_another_neuron_of_the_clone_and_a_status_count_no_starts(
    there: Repositories, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    switched(there, there.release())
    before = trials.load()
    monkeypatch.setattr(sys, "orig_argv", ["python", "neurons/miner.py", "--status"])
    assert process.start() is False
    guard.confirm()
    assert trials.load() == before


def test_a_stop_while_on_trial_does_not_count(there: Repositories, process: Process) -> None:
    switched(there, there.release())
    for _ in range(guard.MAX_STARTS + 2):
        assert process.start() is True
        guard._ended(0)
    assert there.tree() == "new at main"
