"""The way back to the old commit: files, packages, tables. Standard library, ``git`` and ``pip`` only."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compute.update import trial as trials
from compute.update.trial import Trial, say

# The clone's own hooks and monitors are for people; submodules are not ours to move.
GIT_SETTINGS = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "submodule.recurse=false",
    "protocol.ext.allow=never",
    "gc.auto=0",
    "maintenance.auto=false",
    "merge.autoStash=false",
)
_GIT_SECONDS = 120.0
_PIP_SECONDS = 900.0


class CannotGoBack(Exception):
    """The tree cannot be put back without losing what is not ours, or git does not do it. Says what to do."""


def go_back(trial: Trial) -> None:
    """Make the tree, the packages and the database those of the old commit. May be killed at any point and repeated.

    Raises:
        CannotGoBack: nothing was done, or it can be repeated.
    """
    trials.save(trial)
    say(f"going back from {trial.new[:12]} to {trial.old[:12]}: {trial.failed}")
    put_back(trial)
    if trial.packages:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-input", *trial.packages]
        try:
            subprocess.run(pip, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr, timeout=_PIP_SECONDS)
        except (OSError, subprocess.SubprocessError) as error:
            say(
                f"{error}. Going on with the packages that are there; if the neuron does not start, repeat this by hand"
            )
    _restore_database(trial)
    trials.remember(trial.new, trial.failed, for_good=trial.for_good)
    trials.forget()


def put_back(trial: Trial) -> None:
    """Put the files and the ref of the old commit back.

    Nothing is overwritten but what git itself wrote there: each file must be the new commit's, or, where a switch was
    broken off, the old one's, or missing, or the beginning of either.

    Raises:
        CannotGoBack: a file is somebody's own, or git fails.
    """
    _remove_stale_locks(trial.ref)
    broken_off = _git("rev-parse", "HEAD") == trial.old
    changes = _changes(trial.old, trial.new)
    foreign = _foreign(changes, broken_off=broken_off)
    if foreign:
        target = "--detach" if trial.is_tag else f"-B {trial.ref.removeprefix('refs/heads/')}"
        raise CannotGoBack(
            f"these files have changes that are not from git: {', '.join(sorted(foreign)[:5])}. Keep what you need of "
            f"them elsewhere, undo the changes, and start again; or do it by hand: "
            f"git -C {trials.ROOT} checkout {target} {trial.old}"
        )
    message = f"auto-update: back to {trial.old}"
    if trial.is_tag:
        _git("update-ref", "--no-deref", "-m", message, "HEAD", trial.old)
    _git("update-ref", "-m", message, trial.ref, trial.old_value)
    kept = [path for path, (old, _) in changes.items() if old]
    gone = [path for path, (old, _) in changes.items() if not old]
    for path in gone:
        _remove(trials.ROOT / path)
    if gone:
        _git("update-index", "--force-remove", "-z", "--stdin", feed=gone)
    if kept:
        _git("checkout", trial.old, "--pathspec-from-file=-", "--pathspec-file-nul", feed=kept)


def place() -> tuple[str, str]:
    """The commit of the tree, and the branch in full; ``HEAD`` where it is detached.

    Raises:
        CannotGoBack: git does not say.
    """
    return _git("rev-parse", "HEAD"), _git("rev-parse", "--symbolic-full-name", "HEAD")


def _changes(old: str, new: str) -> dict[str, tuple[str, str]]:
    """By path: the objects of both commits, empty where there is none."""
    parts = _git("diff-tree", "-r", "-z", "--no-renames", old, new).split("\0")
    found = {}
    for details, path in zip(parts[::2], parts[1::2], strict=False):
        there, here = details.split()[2:4]
        found[path] = ("" if set(there) == {"0"} else there, "" if set(here) == {"0"} else here)
    return found


def _foreign(changes: Mapping[str, tuple[str, str]], *, broken_off: bool) -> list[str]:
    """The paths where something lies that git has not written there."""
    allowed = {path: objects if broken_off else objects[1:] for path, objects in changes.items()}
    there = [path for path in allowed if os.path.lexists(trials.ROOT / path)]
    # The files of a folder have been looked at, and git does not remove others.
    files = [path for path in there if not (trials.ROOT / path).is_dir() or (trials.ROOT / path).is_symlink()]
    plain = [path for path in files if not (trials.ROOT / path).is_symlink() and "\n" not in path]
    hashes = dict(zip(plain, _git("hash-object", "--stdin-paths", feed=plain, end=b"\n").split(), strict=True))
    missing = [path for path in allowed if path not in there and not broken_off and changes[path][1]]
    return missing + [
        path for path in files if hashes.get(path) not in allowed[path] and not _is_of(path, allowed[path], broken_off)
    ]


def _is_of(path: str, objects: Sequence[str], beginning: bool) -> bool:
    """Whether the content, or what there is of it, is that of one of ``objects``."""
    file = trials.ROOT / path
    content = os.fsencode(os.readlink(file)) if file.is_symlink() else file.read_bytes()
    blobs = [_bytes("cat-file", "blob", name) for name in objects if name]
    return content in blobs or (beginning and any(blob.startswith(content) for blob in blobs))


def _remove(file: Path) -> None:
    if file.is_dir() and not file.is_symlink():
        return
    file.unlink(missing_ok=True)
    for folder in file.parents:
        if folder == trials.ROOT:
            return
        try:
            folder.rmdir()
        except OSError:
            return


def _remove_stale_locks(ref: str) -> None:
    """A git that was killed leaves its locks, which stop the next one; a git that runs keeps them."""
    names = [f"{name}.lock" for name in ("index", "HEAD", "ORIG_HEAD", ref)]
    locks = [trials.ROOT / _git("rev-parse", "--git-path", name) for name in names]
    if not any(lock.exists() for lock in locks):
        return
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            at = (process / "cwd").resolve()
            if (process / "comm").read_text() == "git\n" and trials.ROOT in (at, *at.parents):
                raise CannotGoBack(f"git runs in {at} (process {process.name}): start again when it has ended")
    for lock in locks:
        lock.unlink(missing_ok=True)


def _git(*arguments: str, feed: Sequence[str] = (), end: bytes = b"\0") -> str:
    return os.fsdecode(_bytes(*arguments, feed=feed, end=end)).rstrip("\n")


def _bytes(*arguments: str, feed: Sequence[str] = (), end: bytes = b"\0") -> bytes:
    settings = [word for setting in GIT_SETTINGS for word in ("-c", setting)]
    environment = {**git_environment(), "GIT_LITERAL_PATHSPECS": "1"}
    try:
        return subprocess.run(
            ["git", *settings, *arguments],
            cwd=trials.ROOT,
            env=environment,
            input=b"".join(os.fsencode(path) + end for path in feed),
            capture_output=True,
            check=True,
            timeout=_GIT_SECONDS,
        ).stdout
    except subprocess.CalledProcessError as error:
        raise CannotGoBack(f"git {arguments[0]}: {os.fsdecode(error.stderr).strip()[-500:]}") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise CannotGoBack(f"git {arguments[0]}: {error}") from error


def git_environment() -> dict[str, str]:
    """An environment in which git asks nobody for a password; what the operator has set up for that stays."""
    return {
        "GIT_ASKPASS": "true",
        "GIT_SSH_COMMAND": "ssh -o BatchMode=yes",
        **os.environ,
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }


def _restore_database(trial: Trial) -> None:
    """Where the new commit has changed the tables, the old one cannot read them: then the copy comes back."""
    copy, live = trials.database_copy(), Path(trial.database)
    if not trial.database or not copy.is_file() or not live.is_file() or _tables(copy) == _tables(live):
        return
    aside = live.with_name(f"{live.name}.of-{trial.new[:12]}")
    copy_database(live, aside)
    copy_database(copy, live)
    say(f"{live} is as it was before the update, since its tables had changed; what came after is in {aside}")


def _tables(path: Path) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY type, name").fetchall()
        versions = connection.execute("SELECT * FROM schema_version ORDER BY component").fetchall()
        return [*tables, *versions]


def copy_database(source: Path, target: Path) -> None:
    """Copy a database that others may have open."""
    with contextlib.closing(sqlite3.connect(source)) as there, contextlib.closing(sqlite3.connect(target)) as here:
        there.backup(here)
