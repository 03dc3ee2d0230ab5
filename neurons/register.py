"""Rent machines. ``python neurons/register.py --help`` says how."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from compute.neuron import load_environment
from compute.renter import cli


def main(argv: Sequence[str]) -> int:
    """Run with ``argv`` (without the program's name); returns the exit code."""
    load_environment()
    return cli.main(argv)


def run() -> NoReturn:
    """The program: ``main``, then an end that nothing can hold up.

    A thread of the SDK may hang in a chain connection for ever, and Python would wait for it; all of ours is closed.
    """
    try:
        code = main(sys.argv[1:])
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
