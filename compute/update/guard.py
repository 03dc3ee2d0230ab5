"""The first minutes of a new commit: it stays if it comes up, else the old one comes back.

A neuron that updates itself leaves a trial, moves the clone and starts again. The first thing that runs then is this
file: it counts the start, and after an import error, a crash, a hang or a SIGKILL half-way through the switch it puts
the old commit back. So it needs nothing but the standard library, its two neighbours ``trial.py`` and ``back.py``, and
``git`` and ``pip``; ``neurons/*.py`` import it before anything else. What it cannot survive is an update that breaks
these files, or the lines of ``neurons/*.py`` up to ``run``: the self-test runs exactly those before a commit is taken.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from compute.update import trial as trials
from compute.update.back import CannotGoBack, go_back, place
from compute.update.trial import FOLDER, say

MAX_STARTS = 3
SELF_TEST = "--self-test"
_PAUSE_SECONDS = 3.0
_SELF_TEST_SECONDS = 600

# As the process found them: what .env or a library brings must not outlive it.
_ENVIRONMENT = dict(os.environ)
_DESCRIPTORS = frozenset(name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}"))


def run(role: str, main: Callable[[Sequence[str]], int]) -> NoReturn:
    """The program of a neuron: ``main`` with the command line, under watch while its commit is on trial."""
    # Until run_neuron listens, SIGINT (Ctrl-C, pm2) ends the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for misleading in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE"):
        os.environ.pop(misleading, None)
    if sys.argv[1:2] == [SELF_TEST]:
        from compute.update import selftest

        # Whoever asked may be gone by then.
        signal.alarm(_SELF_TEST_SECONDS)
        leave(selftest.answer(role, sys.argv[2:]))
    on_trial = _begin()
    try:
        code = main(sys.argv[1:])
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except Exception:
        # A release that is on trial and ends so is taken back below.
        traceback.print_exc()
        code = 1
    if on_trial:
        _ended(code)
    leave(code)


def leave(code: int) -> NoReturn:
    """End the process now: a thread that hangs in the SDK or in a library must not outlast pm2's kill timeout.

    Everything that has to be closed has been closed by then.
    """
    logging.shutdown()
    # Whoever reads us through a pipe may have read enough.
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def restart() -> NoReturn:
    """Run the same command again, in place: same pid, same directory, the environment as it was at the start.

    So a plain shell, pm2 and systemd alike see one process that goes on. Descriptors that were opened since the start
    are closed by it, threads end.
    """
    logging.shutdown()
    for descriptor in set(os.listdir("/proc/self/fd")) - _DESCRIPTORS - {"0", "1", "2"}:
        with contextlib.suppress(OSError):
            os.set_inheritable(int(descriptor), False)
    os.chdir(FOLDER)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], _ENVIRONMENT)  # noqa: S606  (no shell is the point)


_confirmed = threading.Event()
_deciding = threading.Lock()


def confirm() -> None:
    """The new commit is up: it stays."""
    with _deciding:
        if (trial := trials.load()) is not None and not trial.failed:
            _confirmed.set()
            trials.forget()


def _begin() -> bool:
    """Count a start on trial, or go back first; returns whether this start is on trial."""
    trial = trials.load()
    if trial is None:
        return False
    try:
        with trials.tree_lock():
            head, branch = place()
            if head not in (trial.old, trial.new) or branch not in (trial.ref, "HEAD" if trial.is_tag else ""):
                say(f"the clone has been moved by hand, to {head[:12]}: {trial.new[:12]} is no longer on trial")
                trials.forget()
                return False
            if not trial.failed and head == trial.old:
                trial.failed, trial.for_good = "the switch to it was interrupted", False
            elif not trial.failed and trial.starts >= MAX_STARTS:
                trial.failed = f"it has not come up in {MAX_STARTS} starts"
            if not trial.failed:
                trial.starts += 1
                trials.save(trial)
                threading.Thread(target=_watch, args=(trial.up_seconds,), name="trial", daemon=True).start()
                return True
            go_back(trial)
    except (CannotGoBack, OSError, ValueError, sqlite3.Error) as error:
        say(f"the update to {trial.new[:12]} cannot be taken back: {error}")
        leave(2)
    restart()


def _watch(seconds: float) -> None:
    if not _confirmed.wait(seconds):
        _fail(f"it was not up after {seconds:.0f} s", for_good=True)
        restart()


def _ended(code: int) -> None:
    """The process on trial is about to end: a clean stop does not count, anything else is tried again, from here."""
    trial = trials.load()
    if trial is None or _confirmed.is_set():
        return
    if code == 0:
        trial.starts -= 1
        trials.save(trial)
        return
    say(f"the new commit {trial.new[:12]} ended with code {code}, at start {trial.starts} of {MAX_STARTS}")
    if trial.starts >= MAX_STARTS:
        # Code 3 is the chain's fault, which may mend by itself.
        _fail(f"it ended with code {code} at each of {MAX_STARTS} starts", for_good=code != 3)
    else:
        time.sleep(_PAUSE_SECONDS)
    restart()


def _fail(reason: str, *, for_good: bool) -> None:
    """Let the next start go back. Never lets go of the lock: this process starts anew, and does nothing else."""
    _deciding.acquire()
    if (trial := trials.load()) is not None and not _confirmed.is_set():
        trial.failed, trial.for_good = reason, for_good
        trials.save(trial)
