"""The validator. ``python neurons/validator.py --help`` says how to run it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from compute.neuron import leave, load_environment
from compute.options import parse_validator


def main(argv: Sequence[str]) -> int:
    """Run with ``argv`` (without the program's name); returns the exit code."""
    load_environment()
    options = parse_validator(argv, os.environ)
    if options.status or options.explain is not None:
        from compute.validator import show

        return show.status(options) if options.explain is None else show.explain_miner(options, options.explain)
    # This imports the SDK, a second that questions do not have to wait for.
    from compute.validator import program

    return program.run(options)


if __name__ == "__main__":
    # Until run_neuron listens, SIGINT (Ctrl-C, pm2) ends the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    leave(main(sys.argv[1:]))
