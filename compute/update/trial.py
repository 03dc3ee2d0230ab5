"""What a clone keeps of its updates, in files of its git folder: the commit on trial, and the commits that failed.

The old commit writes a trial and the new one reads it: fields may be added, with a default, and never change meaning.
Standard library only, as ``guard.py`` needs it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = os.getcwd()
"""Where the process was started."""
_FAILURES_KEPT = 50
_LEFT_BEHIND_SECONDS = 3600.0
_NAME_LENGTH = 16


@dataclasses.dataclass
class Trial:
    """A switch from one commit to another that has not proven itself yet."""

    old: str
    new: str
    ref: str
    """What the operator runs: a branch (``refs/heads/…``), or a tag with HEAD detached at it."""
    old_value: str
    """What ``ref`` held: the old commit, or a tag object."""
    packages: list[str] = dataclasses.field(default_factory=list)
    """Requirements that bring the old packages back."""
    database: str = ""
    up_seconds: float = 600.0
    """How long the new commit has until it confirms that it is up."""
    starts: int = 0
    failed: str = ""
    """Why the old commit is to come back; empty while it is not."""
    for_good: bool = True
    """Whether that is the new commit's fault, so that it is not tried again."""

    @property
    def is_tag(self) -> bool:
        """Whether HEAD is detached, and ``ref`` the tag at it."""
        return self.ref.startswith("refs/tags/")


def state_folder() -> Path | None:
    """Where this clone keeps what it knows of its updates; None where the code is no clone."""
    git = ROOT / ".git"
    with contextlib.suppress(OSError):
        if git.is_file():  # of a linked working tree
            git = ROOT / git.read_text(encoding="utf-8").partition("gitdir:")[2].strip()
        if git.is_dir():
            return git / "compute-update"
    return None


def _name() -> str:
    """One neuron of perhaps several of this clone: the same command line, in the same directory."""
    command = json.dumps([FOLDER, sys.orig_argv[1:]])
    return hashlib.sha256(command.encode(errors="surrogateescape")).hexdigest()[:_NAME_LENGTH]


def _own(kind: str) -> Path:
    folder = state_folder()
    assert folder is not None, "only a clone is updated"
    return folder / f"{kind}-{_name()}"


def database_copy() -> Path:
    """This neuron's database as it was before the switch."""
    return _own("database")


def load() -> Trial | None:
    """This neuron's trial, if there is one; one that cannot be read is none."""
    if state_folder() is None or not _own("trial").is_file():
        return None
    try:
        known = {field.name for field in dataclasses.fields(Trial)}
        document = json.loads(_own("trial").read_text(encoding="utf-8"))
        return Trial(**{key: value for key, value in document.items() if key in known})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        say(f"{_own('trial')} cannot be read and is ignored: {error}")
        return None


def save(trial: Trial) -> None:
    """Write the trial so that a crash leaves the old file or the new one."""
    _write(_own("trial"), dataclasses.asdict(trial))


def forget() -> None:
    """The trial is over. Idempotent."""
    if state_folder() is not None:
        _own("trial").unlink(missing_ok=True)
        database_copy().unlink(missing_ok=True)


def others() -> bool:
    """Whether another neuron of this clone has a commit on trial; one that was left behind counts for an hour."""
    folder = state_folder()
    files = folder.glob("trial-" + _NAME_LENGTH * "?") if folder else ()
    now = time.time()
    with contextlib.suppress(FileNotFoundError):
        return any(file != _own("trial") and now - file.stat().st_mtime < _LEFT_BEHIND_SECONDS for file in files)
    return False


def failures() -> dict[str, dict[str, Any]]:
    """By commit: ``reason``, ``times``, ``at`` (Unix seconds), and ``for_good`` where it is not to be tried again."""
    folder = state_folder()
    try:
        document = json.loads((folder / "failures").read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def remember(commit: str, reason: str, *, for_good: bool) -> None:
    """Note that ``commit`` failed. Only under ``tree_lock``."""
    folder = state_folder()
    assert folder is not None, "only a clone is updated"
    known = failures()
    before = known.pop(commit, {})
    if before.get("for_good") and not for_good:
        reason, for_good = before["reason"], True
    known[commit] = {"reason": reason, "times": before.get("times", 0) + 1, "for_good": for_good, "at": time.time()}
    _write(folder / "failures", dict(list(known.items())[-_FAILURES_KEPT:]))


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    with open(fresh, "w", encoding="utf-8") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


@contextlib.contextmanager
def tree_lock() -> Iterator[None]:
    """Only one neuron at a time moves the clone. Waits for the others; a process that ends lets go."""
    folder = state_folder()
    assert folder is not None, "only a clone is moved"
    folder.mkdir(mode=0o700, exist_ok=True)
    with open(folder / "tree.lock", "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def say(message: str) -> None:
    """One line of the log, as ``compute.base.logs`` would write it."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    print(f"{now} WARNING update: {message}", file=sys.stderr, flush=True)
