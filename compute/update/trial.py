"""The commit on trial, the commits that failed, and the way back to the commit before: files, branch, packages.

All of it is kept in ``.git/compute-update``. The old commit writes a trial and the new one reads it: fields may be
added, with a default, and never change meaning. Standard library, ``git`` and ``pip`` only, as ``guard.py`` must work
where nothing else can be imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = os.getcwd()
"""Where the process was started."""
GIT_SECONDS = 60.0
PIP_SECONDS = 900.0
PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input", "--retries", "2", "--timeout", "30")
_FAILURES_KEPT = 50
_LEFT_BEHIND_SECONDS = 3600.0
_STALE_SECONDS = 10.0
_OUTPUT_BYTES = 1 << 26
_WORDS_BYTES = 1 << 16
# The clone's own hooks and monitors are for people; submodules are not ours to move.
_GIT_SETTINGS = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "submodule.recurse=false",
    "protocol.ext.allow=never",
    "gc.auto=0",
    "maintenance.auto=false",
    "merge.autoStash=false",
)

_running: set[subprocess.Popen[bytes]] = set()
_locks: set[int] = set()


class Failed(Exception):
    """A program ended badly, took too long or is missing, or the way back is blocked. The message says what to do."""


@dataclasses.dataclass
class Trial:
    """A switch from one commit to another that has not proven itself yet."""

    old: str
    new: str
    ref: str
    """The branch that is checked out: ``refs/heads/…``."""
    packages: list[str] = dataclasses.field(default_factory=list)
    """Requirements that bring the old packages back."""
    up_seconds: float = 600.0
    """How long the new commit has until it confirms that it is up."""
    starts: int = 0
    failed: str = ""
    """Why the old commit is to come back; empty while it is not."""
    for_good: bool = True
    """Whether that is the new commit's fault, so that it is not tried again."""
    neuron: str = dataclasses.field(default_factory=lambda: this_neuron())
    """Whose starts count."""

    @property
    def is_own(self) -> bool:
        """Whether this process is the neuron that switched, and not another one of the clone, or a ``--status``."""
        return self.neuron == this_neuron()


def this_neuron() -> str:
    """One neuron of perhaps several of this clone: a hash of its directory and command line."""
    command = json.dumps([FOLDER, sys.orig_argv[1:]])
    return hashlib.sha256(command.encode(errors="surrogateescape")).hexdigest()[:16]


def state_folder() -> Path | None:
    """Where this clone keeps what it knows of its updates; None where the code is no clone."""
    git_folder = ROOT / ".git"
    with contextlib.suppress(OSError):
        if git_folder.is_file():  # of a linked working tree
            git_folder = ROOT / git_folder.read_text(encoding="utf-8").partition("gitdir:")[2].strip()
        if git_folder.is_dir():
            return git_folder / "compute-update"
    return None


def _path(name: str) -> Path:
    folder = state_folder()
    assert folder is not None, "only a clone is updated"
    return folder / name


def load() -> Trial | None:
    """The trial of this clone, if there is one; one that cannot be read is none."""
    if state_folder() is None:
        return None
    # Releases up to 2.0.0 wrote a trial for each command line; one of them may just have switched to this commit.
    for path in (_path("trial"), _path(f"trial-{this_neuron()}")):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            known = {field.name for field in dataclasses.fields(Trial)}
            return Trial(**{key: value for key, value in document.items() if key in known})
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, AttributeError) as error:
            say(f"{path} cannot be read and is ignored: {error}")
    return None


def save(trial: Trial) -> None:
    """Write the trial so that a crash leaves the old file or the new one."""
    _write(_path("trial"), dataclasses.asdict(trial))


def forget() -> None:
    """The trial is over. Idempotent."""
    if state_folder() is not None:
        # The last two are from releases up to 2.0.0.
        for name in ("trial", f"trial-{this_neuron()}", f"database-{this_neuron()}"):
            _path(name).unlink(missing_ok=True)


def is_taken() -> bool:
    """Whether another neuron of this clone has a commit on trial; one that was left behind is forgotten in an hour."""
    trial = load()
    if trial is None or trial.is_own:
        return False
    with contextlib.suppress(FileNotFoundError):
        if time.time() - _path("trial").stat().st_mtime < _LEFT_BEHIND_SECONDS:
            return True
    forget()
    return False


def failures() -> dict[str, dict[str, Any]]:
    """By commit: ``reason``, ``times``, ``at`` (Unix seconds), and ``for_good`` where it is not to be tried again."""
    try:
        document = json.loads(_path("failures").read_text(encoding="utf-8")) if state_folder() else {}
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def remember(commit: str, reason: str, *, for_good: bool) -> None:
    """Note that ``commit`` failed. Only under ``lock``."""
    known = failures()
    before = known.pop(commit, {})
    if before.get("for_good") and not for_good:
        reason, for_good = before["reason"], True
    known[commit] = {"reason": reason, "times": before.get("times", 0) + 1, "for_good": for_good, "at": time.time()}
    _write(_path("failures"), dict(list(known.items())[-_FAILURES_KEPT:]))


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    with open(fresh, "w", encoding="utf-8") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


@contextlib.contextmanager
def lock(*, wait: bool) -> Iterator[bool]:
    """Only one neuron of a clone at a time checks a commit, switches or goes back. Whether this one may, now.

    What it starts holds the lock too: a git that outlives a killed neuron still keeps others from the tree.
    """
    _path("").mkdir(mode=0o700, exist_ok=True)
    with open(_path("tree.lock"), "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        _locks.add(file.fileno())
        try:
            yield True
        finally:
            _locks.discard(file.fileno())


def place() -> tuple[str, str]:
    """The commit of the tree, and the branch in full; ``HEAD`` where it is detached."""
    return git("rev-parse", "--verify", "HEAD^{commit}"), git("rev-parse", "--symbolic-full-name", "HEAD")


def go_back(trial: Trial) -> None:
    """Bring back the old commit and its packages. May be killed at any point and repeated. Only under ``lock``.

    Raises:
        Failed: nothing was done, or it can be repeated.
    """
    save(trial)
    say(f"going back from {trial.new[:12]} to {trial.old[:12]}: {trial.failed}")
    put_back(trial)
    if trial.packages:
        try:
            run([sys.executable, *PIP, "install", "--quiet", "--no-deps", *trial.packages], PIP_SECONDS)
        except Failed as error:
            say(f"{error}. The packages stay as they are; if the neuron does not start, install requirements.txt")
    remember(trial.new, trial.failed, for_good=trial.for_good)
    forget()


def put_back(trial: Trial) -> None:
    """Put the files and the branch of the old commit back. Only files that differ between the two commits are touched.

    A switch moves the branch last, and this moves it first. So at the new commit, the tree is whole, and what differs
    from it is somebody's own. At the old commit, git was stopped half-way: what lies in those files is overwritten, and
    can be had from ``refs/compute-update/undone``.

    Raises:
        Failed: a file is somebody's own, or git fails.
    """
    changes = git("diff-tree", "-r", "-z", "--no-renames", "--name-only", trial.old, trial.new).split("\0")[:-1]
    if git("rev-parse", "HEAD") == trial.old:
        _remove_stale_locks(trial.ref)
    else:
        own = sorted({*changed_files()} & {*changes}) + untracked_files(trial.new, trial.old)
        if own:
            raise Failed(
                f"these files have changes that are not from git: {', '.join(own[:5])}. Keep what you need of them "
                f"elsewhere, undo the changes, and start again; or do it by hand: git -C {ROOT} checkout -B "
                f"{trial.ref.removeprefix('refs/heads/')} {trial.old}"
            )
        git("update-ref", "-m", f"auto-update: back to {trial.old}", trial.ref, trial.old)
    git("update-index", "--add", "--remove", "--replace", "-z", "--stdin", feed=changes)
    different = git("diff-index", "--cached", "-z", "--no-renames", "--name-only", trial.old).split("\0")[:-1]
    if feed := sorted({*different} & {*changes}):
        git("update-ref", "refs/compute-update/undone", git("write-tree"))
        pathspecs = ("--pathspec-from-file=-", "--pathspec-file-nul")
        git("restore", f"--source={trial.old}", "--staged", "--worktree", *pathspecs, feed=feed)


def changed_files() -> tuple[str, ...]:
    """Tracked files that are not as the commit has them, those included that git was told not to look at."""
    status = git("status", "--porcelain=v1", "-z", "--untracked-files=no", "--no-renames")
    found = {entry[3:] for entry in status.split("\0") if entry}
    listed = git("ls-files", "-v", "-z")
    return tuple(sorted(found | {entry[2:] for entry in listed.split("\0") if entry[:1].islower() or entry[:1] == "S"}))


def untracked_files(head: str, target: str) -> list[str]:
    """Files that git does not know, ignored ones too, where ``target`` has some that ``head`` has not."""
    added = git("diff-tree", "-r", "-z", "--no-renames", "--diff-filter=A", "--name-only", head, target).split("\0")
    there = [path for path in added if path and os.path.lexists(ROOT / path)]
    return git("ls-files", "-z", "--others", "--", *there).split("\0")[:-1] if there else []


def _remove_stale_locks(ref: str) -> None:
    """A git that was killed leaves its lock files, which stop the next one; a git that runs is given time to end."""
    for name in ("index.lock", "HEAD.lock", "ORIG_HEAD.lock", f"{ref}.lock"):
        file = ROOT / git("rev-parse", "--git-path", name)
        with contextlib.suppress(FileNotFoundError):
            while time.time() - file.stat().st_mtime < _STALE_SECONDS:
                time.sleep(0.2)
            file.unlink()


def git(*arguments: str, seconds: float = GIT_SECONDS, feed: Sequence[str] = ()) -> str:
    """Run git in the clone. It asks nobody for a password; what the operator has set up for that stays.

    Raises:
        Failed: git said no, or took too long.
    """
    settings = [word for setting in _GIT_SETTINGS for word in ("-c", setting)]
    asking = {"GIT_ASKPASS": "true", "GIT_SSH_COMMAND": "ssh -o BatchMode=yes"}
    fixed = {"GIT_TERMINAL_PROMPT": "0", "GIT_LITERAL_PATHSPECS": "1", "LC_ALL": "C"}
    environment = {**asking, **os.environ, **fixed}
    given = "".join(f"{path}\0" for path in feed)
    return run(["git", *settings, *arguments], seconds, cwd=ROOT, environment=environment, feed=given).rstrip("\n")


def run(
    command: Sequence[str],
    seconds: float,
    *,
    cwd: str | Path = FOLDER,
    environment: Mapping[str, str] | None = None,
    feed: str = "",
    descriptors: Sequence[int] = (),
) -> str:
    """Run a program to its end, with all that it starts; returns its standard output.

    Raises:
        Failed: it ended badly, was not done in time (then ``__cause__`` is a TimeoutExpired), or cannot be started.
    """
    name = os.path.basename(command[0])
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as words:
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=words,
                pass_fds=(*descriptors, *_locks),
                start_new_session=True,
            )
        except OSError as error:
            raise Failed(f"{name} cannot be started: {error}") from error
        _running.add(process)
        try:
            process.communicate(os.fsencode(feed), seconds)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{name} was not done after {seconds:.0f} s") from error
        finally:
            _running.discard(process)
            _end(process)
            process.wait()
        if process.returncode != 0:
            said = _tail(words) or _tail(printed) or "it printed nothing"
            raise Failed(f"{name} ended with code {process.returncode}: {said}")
        printed.seek(0)
        return os.fsdecode(printed.read(_OUTPUT_BYTES))


def end_all() -> None:
    """End what another thread has started; that thread gets a ``Failed``."""
    for process in list(_running):
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _tail(file: Any) -> str:
    """The last lines of what a program printed, without the name and the password that an address may hold."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - _WORDS_BYTES))
    lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return re.sub(r"://[^/@\s]+@", "://", " / ".join(lines[-3:]))[-400:]


def say(message: str) -> None:
    """One line of the log, as ``compute.base.logs`` would write it."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    print(f"{now} WARNING update: {message}", file=sys.stderr, flush=True)
