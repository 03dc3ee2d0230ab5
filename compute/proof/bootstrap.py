"""How the worker gets to a machine and starts: its source is the first thing that goes down the channel."""

from __future__ import annotations

from pathlib import Path

_READ_AND_RUN = (
    "import sys;"
    "stream=sys.stdin.buffer;"
    "source=stream.read(int(stream.readline()));"
    "exec(compile(source,'proof-worker','exec'),{'__name__':'__main__'})"
)


def bootstrap_argv(python: str) -> list[str]:
    """The command that waits on stdin for a worker. Constant, and safe to pass through ``shlex.join``."""
    return [python, "-c", _READ_AND_RUN]


_HAS_TORCH = "import importlib.util,sys;sys.exit(importlib.util.find_spec('torch') is None)"

BOOTSTRAP = (
    "sh",
    "-c",
    'python3 -c "$1" 2>/dev/null && exec python3 -c "$2"; exec /opt/conda/bin/python -c "$2"',
    "sh",
    _HAS_TORCH,
    _READ_AND_RUN,
)
"""The command on a machine that was rented. Images promise ``python3`` with torch on the ``PATH``; in those of older
peers it is conda's, which sshd does not put there. Nothing of it comes from outside."""


def worker_source() -> bytes:
    """What the bootstrap reads: a line with the decimal length, then the source of ``worker``."""
    source = Path(__file__).with_name("worker.py").read_bytes()
    return b"%d\n" % len(source) + source
