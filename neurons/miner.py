"""The miner. ``python neurons/miner.py --help`` says how to run it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from compute.neuron import leave, load_environment
from compute.options import parse_miner


def main(argv: Sequence[str]) -> int:
    """Run with ``argv`` (without the program's name); returns the exit code."""
    load_environment()
    options = parse_miner(argv, os.environ)
    if options.status:
        from compute.miner import show

        return show.status(options)
    # This imports the SDK, a second that questions do not have to wait for.
    from compute.miner import program

    return program.run(options)


if __name__ == "__main__":
    # Until run_neuron listens, SIGINT (Ctrl-C, pm2) ends the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    leave(main(sys.argv[1:]))
