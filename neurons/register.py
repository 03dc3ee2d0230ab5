"""Rent machines. ``python neurons/register.py --help`` says how."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

# The code of this clone, as the neurons do it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from compute.base.process import load_environment
from compute.cli import main as cli
from compute.update.guard import leave


def main(argv: Sequence[str]) -> int:
    """Run with ``argv`` (without the program's name); returns the exit code."""
    load_environment()
    return cli.main(argv)


def run() -> NoReturn:
    """The program: ``main``, then an end that nothing can hold up."""
    try:
        code = main(sys.argv[1:])
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    leave(code)


if __name__ == "__main__":
    run()
