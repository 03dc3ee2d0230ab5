"""How the worker gets to a machine and starts: its source is the first thing that goes down the channel."""

from __future__ import annotations

from pathlib import Path

_READ_AND_RUN = (
    "import sys;"
    "stream=sys.stdin.buffer;"
    "source=stream.read(int(stream.readline()));"
    "exec(compile(source,'proof-worker','exec'),{'__name__':'__main__'})"
)


def bootstrap_argv(python: str = "python3") -> list[str]:
    """The command that waits on stdin for a worker. Constant, and safe to pass through ``shlex.join``."""
    return [python, "-c", _READ_AND_RUN]


BOOTSTRAP = tuple(bootstrap_argv())
"""The command on a machine that was rented: ``python3`` with torch is on the ``PATH`` of every image."""


def worker_source() -> bytes:
    """What the bootstrap reads: a line with the decimal length, then the source of ``worker``."""
    source = Path(__file__).with_name("worker.py").read_bytes()
    return b"%d\n" % len(source) + source
