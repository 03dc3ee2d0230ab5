"""A remote, its author, and an operator's clone of a few files."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from compute.base import tasks
from compute.update import trial as trials


def git(folder: Path, *arguments: str) -> str:
    """Run git there."""
    identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.com"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip("\n")


class Repositories:
    """``author`` pushes to ``remote``; ``root``, the clone, is at ``old``, and ``release`` makes the next commit."""

    def __init__(self, folder: Path, seed: Path | None = None) -> None:
        self.remote, self.author, self.root = folder / "remote.git", folder / "author", folder / "clone"
        if seed is not None:
            shutil.copytree(seed, folder, dirs_exist_ok=True)
            for clone in (self.author, self.root):
                config = clone / ".git" / "config"
                config.write_text(config.read_text().replace(str(seed), str(folder)))
                git(clone, "update-index", "--refresh")  # a copy is another file, until git has looked
            self.old = git(self.root, "rev-parse", "HEAD")
            return
        git(folder, "init", "--quiet", "--bare", "--initial-branch=main", str(self.remote))
        git(folder, "clone", "--quiet", self.remote.as_uri(), str(self.author))
        git(self.author, "checkout", "--quiet", "-B", "main")
        self.old = self.commit(kept="kept", changed="one", removed="one")
        git(self.author, "push", "--quiet", "origin", "main")
        git(folder, "clone", "--quiet", self.remote.as_uri(), str(self.root))

    def commit(self, **files: str | None) -> str:
        for name, text in files.items():
            (self.author / name).unlink(missing_ok=True) if text is None else (self.author / name).write_text(text)
        git(self.author, "add", "--all", "--force")
        git(self.author, "commit", "--quiet", "--allow-empty", "-m", "work")
        return git(self.author, "rev-parse", "HEAD")

    def release(self) -> str:
        new = self.commit(changed="two", removed=None, added="two")
        git(self.author, "push", "--quiet", "origin", "main")
        return new

    def tree(self) -> str:
        """What lies in the clone: ``old``, ``new``, or a mixture with what is wrong."""
        if changes := git(self.root, "status", "--porcelain", "--untracked-files=no"):
            return changes
        names = ("changed", "removed", "added")
        found = [file.read_text() if (file := self.root / name).exists() else "" for name in names]
        known = {"one one ": "old", "two  two": "new"}
        return known.get(" ".join(found), str(found)) + " at " + git(self.root, "symbolic-ref", "--short", "HEAD")


@pytest.fixture(scope="session")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seed")
    Repositories(folder)
    return folder


@pytest.fixture
def there(tmp_path: Path, seed: Path, monkeypatch: pytest.MonkeyPatch) -> Repositories:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    repositories = Repositories(tmp_path, seed)
    monkeypatch.setattr(trials, "ROOT", repositories.root)
    return repositories


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What passes for a clone where nobody asks git."""
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(trials, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def no_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "unexpected", Counter())
