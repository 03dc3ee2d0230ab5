"""The options of ``python -m compute.localnet demo``; imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """Play a whole subnet on this machine: a chain, a validator and miners as ordinary processes, one that
claims a GPU which it does not have and one that dies halfway; rent the best machine and run a command in it. Needs no
GPU, no keys, no network, and no Docker unless --docker asks for it. Ends with status 0 only if the chain holds what
the scores say and the cheats got nothing."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``demo``."""
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout instead of tables")
    parser.add_argument(
        "--miners", type=_miners, default=4, metavar="N", help="how many miners, 4 to 16 (default: %(default)s)"
    )
    parser.add_argument(
        "--docker",
        action="store_true",
        help="the honest miners rent out containers; needs a Docker engine with the image (docs/miner.md)",
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write the final table to FILE as SVG too")
    parser.add_argument("--keep", action="store_true", help="keep everything running at the end, until Ctrl-C")
    parser.add_argument(
        "--block-time", type=float, default=0.5, metavar="SECONDS", help="time between blocks (default: %(default)s)"
    )


def _miners(text: str) -> int:
    if not text.isdigit() or not 4 <= int(text) <= 16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 4 to 16")
    return int(text)
