"""The first minutes of a new commit: it stays if it comes up, else the old one comes back.

A neuron that updates itself leaves a trial, moves the clone and starts again. The first thing that runs then is this
file: it counts the start, and after an import error, a crash, a hang or a SIGKILL half-way through the switch it puts
the old commit back. So it needs nothing but the standard library, its neighbour ``trial.py``, ``git`` and ``pip``;
``neurons/*.py`` import it before anything else. What it cannot survive is an update that breaks these two files, or the
lines of ``neurons/*.py`` up to ``run``: the self-test runs exactly those before a commit is taken.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import pkgutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from compute.update import trial as trials
from compute.update.trial import FOLDER, ROOT, say

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
        # Whoever asked may be gone by then.
        signal.alarm(_SELF_TEST_SECONDS)
        _self_test(role, *sys.argv[2:])
        leave(0)
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


def _self_test(role: str, descriptor: str, nonce: str, *argv: str) -> None:
    """Show that this code imports, understands the command line and reads its settings; answer on the descriptor.

    The release that runs calls the one that may follow it: ``neurons/ROLE.py --self-test DESCRIPTOR NONCE ARGV…``. That
    line and the answer, one JSON object, are an interface between releases.
    """
    import compute
    from compute.incentive.config import load_config

    # By name: an update knows its two roles, and imports neither.
    parse = getattr(importlib.import_module(f"compute.{role}.options"), f"parse_{role}")
    load_config(parse(argv, os.environ).config_file)
    for module in pkgutil.walk_packages(compute.__path__, "compute."):
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)
    importlib.import_module(f"compute.{role}.program")
    document = {"nonce": nonce, "root": str(ROOT), "version": compute.__version__}
    os.write(int(descriptor), json.dumps(document).encode())


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


_deciding = threading.Lock()


def confirm() -> None:
    """The new commit is up: it stays."""
    with _deciding:
        if _own_trial() is not None:
            trials.forget()


def is_on_trial() -> bool:
    """Whether this neuron runs a commit that has not been confirmed yet."""
    return _own_trial() is not None


def _own_trial() -> trials.Trial | None:
    trial = trials.load()
    return trial if trial is not None and trial.is_own else None


def _begin() -> bool:
    """Count a start on trial, or go back first; returns whether this start is on trial."""
    if _own_trial() is None:
        return False
    with trials.lock(wait=True):
        # Read only now: what this process waited for may have been its own git, of the life before.
        trial = _own_trial()
        if trial is None:
            return False
        try:
            head, branch = trials.place()
            # The switch is over where a start has been counted: then the old commit is there by somebody's hand.
            by_hand = head == trial.old and trial.starts > 0 and not trial.failed
            if head not in (trial.old, trial.new) or branch != trial.ref or by_hand:
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
                threading.Thread(target=_watch, args=(trial,), name="trial", daemon=True).start()
                return True
            trials.go_back(trial)
        except (trials.Failed, OSError) as error:
            say(f"the update to {trial.new[:12]} cannot be taken back: {error}")
            leave(2)
    restart()


def _watch(trial: trials.Trial) -> None:
    """Go back where the trial is not over in time: the process may hang anywhere."""
    time.sleep(trial.up_seconds)
    with _deciding:
        now = _own_trial()
        if now is not None and now.new == trial.new:
            now.failed = f"it was not up after {trial.up_seconds:.0f} s"
            trials.save(now)
            restart()


def _ended(code: int) -> None:
    """The process on trial is about to end: a clean stop does not count, anything else is tried again, from here."""
    with _deciding:
        trial = _own_trial()
        if trial is None:
            return
        if code == 0:
            trial.starts -= 1
            trials.save(trial)
            return
        say(f"the new commit {trial.new[:12]} ended with code {code}, at start {trial.starts} of {MAX_STARTS}")
        if trial.starts >= MAX_STARTS:
            # Code 3 is the chain's fault, which may mend by itself.
            trial.failed, trial.for_good = f"it ended with code {code} at each of {MAX_STARTS} starts", code != 3
            trials.save(trial)
        else:
            time.sleep(_PAUSE_SECONDS)
        restart()
