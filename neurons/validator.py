"""The validator. ``python neurons/validator.py --help`` says how to run it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

# The code of this clone, whatever else is installed: an update moves the two together.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from compute.update import guard


def main(argv: Sequence[str]) -> int:
    """Run with ``argv`` (without the program's name); returns the exit code."""
    # Not before the guard has begun: it watches over these imports too.
    from compute.base.process import load_environment
    from compute.validator.options import parse_validator

    load_environment()
    options = parse_validator(argv, os.environ)
    if options.status or options.explain is not None:
        from compute.validator import show

        return show.status(options) if options.explain is None else show.explain_miner(options, options.explain)
    # This imports the SDK, a second that questions do not have to wait for.
    from compute.validator import program

    return program.run(options)


if __name__ == "__main__":
    guard.run("validator", main)
