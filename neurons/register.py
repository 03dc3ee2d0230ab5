"""Rent machines. ``python neurons/register.py --help`` says how."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from compute.neuron import load_environment
from compute.renter import cli


def main(argv: Sequence[str]) -> int:
    """Run with ``argv`` (without the program's name); returns the exit code."""
    load_environment()
    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
