"""The processes of one local lease: found by a mark in their environment and by descent, never by name."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

import psutil

MARK = "COMPUTE_LEASE"
"""The environment variable that every process of a lease inherits; its value is the lease's id, 128 random bits."""

_POLL_SECONDS = 0.005
_SAME_START_SECONDS = 2.0


def find(pid: int, started: float, lease_id: str) -> psutil.Process | None:
    """The live process ``pid`` if it still is the one that started at ``started`` (Unix seconds) for this lease."""
    reap(pid)
    with _gone_or_foreign():
        process = psutil.Process(pid)
        # psutil derives the start from the boot time, which the clock's corrections move a little.
        same = abs(process.create_time() - started) < _SAME_START_SECONDS
        if same and process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == lease_id:
            return process
    return None


def members(lease_id: str) -> list[psutil.Process]:
    """Every live process of the lease except this one. A process that hides both its mark and its descent is missed."""
    parents: dict[int, int] = {}
    processes: dict[int, psutil.Process] = {}
    found: set[int] = set()
    for process in psutil.process_iter():
        with _gone_or_foreign():
            parents[process.pid] = process.ppid()
            processes[process.pid] = process
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == lease_id:
                found.add(process.pid)
    grown = True
    while grown:
        children = {pid for pid, parent in parents.items() if parent in found} - found
        found |= children
        grown = bool(children)
    found.discard(os.getpid())
    return [processes[pid] for pid in found if is_alive(processes[pid])]


def kill(lease_id: str, *, timeout_seconds: float) -> bool:
    """Kill every process of the lease except this one; False where some were left when time was up. Blocks."""
    deadline = time.monotonic() + timeout_seconds
    while left := members(lease_id):
        if time.monotonic() > deadline:
            return False
        for process in left:
            with _gone_or_foreign():
                process.kill()
            reap(process.pid)
        time.sleep(_POLL_SECONDS)
    return True


def freeze(lease_id: str, *, timeout_seconds: float) -> bool:
    """Stop every process of the lease except this one; False where some still ran when time was up. Blocks."""
    deadline = time.monotonic() + timeout_seconds
    while running := [process for process in members(lease_id) if not is_frozen(process)]:
        if time.monotonic() > deadline:
            return False
        for process in running:
            with _gone_or_foreign():
                process.suspend()
        time.sleep(_POLL_SECONDS)
    return True


def thaw(lease_id: str) -> None:
    """Let every stopped process of the lease go on."""
    for process in members(lease_id):
        with _gone_or_foreign():
            process.resume()


def is_alive(process: psutil.Process) -> bool:
    """Whether the process exists and is no zombie."""
    with _gone_or_foreign():
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def is_frozen(process: psutil.Process) -> bool:
    """Whether the process is stopped, or gone: either way it does nothing."""
    with _gone_or_foreign():
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    return True


def reap(pid: int) -> None:
    """Take the exit status of ``pid`` if it is an ended child of this process."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


@contextlib.contextmanager
def _gone_or_foreign() -> Iterator[None]:
    """A process may end between two looks at it, or belong to another user: then it is none of ours."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        yield
