"""The miner. ``python neurons/miner.py --help`` says how to run it."""

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
    from compute.miner.options import parse_miner

    load_environment()
    options = parse_miner(argv, os.environ)
    if options.status:
        from compute.miner import show

        return show.status(options)
    # This imports the SDK, a second that questions do not have to wait for.
    from compute.miner import program

    return program.run(options)


if __name__ == "__main__":
    guard.run("miner", main)
