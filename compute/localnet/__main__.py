"""``python -m compute.localnet``: a chain for one machine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compute.base.errors import ComputeError


def build_parser() -> argparse.ArgumentParser:
    """The command line. Heavy imports wait until a command runs, so ``--help`` is quick."""
    parser = argparse.ArgumentParser(
        prog="python -m compute.localnet",
        description="A chain for one machine, which the bittensor SDK talks to like to any other.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_node(commands.add_parser("node", help="run a chain node on 127.0.0.1", description=_NODE_DESCRIPTION))
    commands.add_parser("config", help="print a config.yaml that pays this machine's cores", description=_CONFIG)
    _add_register(commands.add_parser("register", help="put a wallet on a localnet", description=_REGISTER))
    return parser


_NODE_DESCRIPTION = """Run a chain node at ws://127.0.0.1:PORT, which --subtensor.network local finds on the default
port. It proves that protocols fit together, not how finney behaves. The first line on stdout is a JSON object with the
endpoint; logs go to stderr. SIGINT or SIGTERM ends it."""


def _add_node(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=_port, default=9944, help="0 lets the system choose (default: %(default)s)")
    parser.add_argument(
        "--block-time",
        type=_block_time,
        default=1.0,
        metavar="SECONDS",
        help="time between blocks; 0 makes blocks only for localnet_advance (default: %(default)s; finney: 12)",
    )
    parser.add_argument(
        "--state", type=Path, metavar="FILE", help="keep the chain in FILE and go on with it (default: in memory only)"
    )
    parser.add_argument("--netuid", type=_netuid, default=27, help="the subnet that exists (default: %(default)s)")
    parser.add_argument("--verbose", action="store_true", help="log debugging information")
    group = parser.add_argument_group("hyperparameters of a new chain")
    group.add_argument("--tempo", type=int, metavar="BLOCKS", help="length of an epoch (default: 20; finney: 360)")
    group.add_argument("--weights-rate-limit", type=int, metavar="BLOCKS", help="(default: 5; finney: 100)")
    group.add_argument(
        "--commit-reveal", action="store_true", help="weights are committed under a time lock instead of set"
    )
    group.add_argument(
        "--set",
        action="append",
        type=_setting,
        default=[],
        metavar="NAME=VALUE",
        dest="settings",
        help="any other, for example --set stake_threshold=0 --set max_allowed_uids=4",
    )


_CONFIG = """Measure a core of this machine with the proof itself, which takes some seconds, and print a config.yaml in
which it is a GPU model that is paid: for a localnet's validator and its --config.file."""

_REGISTER = """Make a throw-away wallet (what exists is kept), give it 1000 TAO, register its hotkey on a
localnet that runs already, and stake to it. Miners answer validators from 1024 alpha of stake on."""


def _add_register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wallet.name", dest="wallet_name", required=True, metavar="NAME", help="the wallet (coldkey)")
    parser.add_argument("--wallet.hotkey", dest="wallet_hotkey", default="default", metavar="NAME")
    parser.add_argument(
        "--wallet.path", dest="wallet_path", default="~/.bittensor/wallets/", metavar="PATH", help="(%(default)s)"
    )
    parser.add_argument("--netuid", type=_netuid, default=27, help="the subnet (default: %(default)s)")
    parser.add_argument(
        "--endpoint", default="ws://127.0.0.1:9944", metavar="ADDRESS", help="the localnet (default: %(default)s)"
    )
    parser.add_argument("--stake", type=_stake, default=0, metavar="ALPHA", help="for a validator: 2000, say")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    options = build_parser().parse_args(arguments)
    try:
        return _COMMANDS[options.command](options)
    except (ComputeError, OSError) as error:
        print(f"compute.localnet: {error}", file=sys.stderr)
        return 1


def _run_node(options: argparse.Namespace) -> int:
    import asyncio
    import logging

    from compute.localnet.rpc.node import Node, NodeOptions

    level = logging.DEBUG if options.verbose else logging.INFO
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Some releases log a traceback for whatever is no handshake, which anybody may send.
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    settings: dict[str, Any] = dict(options.settings)
    if options.tempo is not None:
        settings["tempo"] = options.tempo
    if options.weights_rate_limit is not None:
        settings["weights_rate_limit"] = options.weights_rate_limit
    if options.commit_reveal:
        settings["commit_reveal_weights_enabled"] = True
    node = Node(
        NodeOptions(
            port=options.port,
            block_time_seconds=options.block_time,
            state=options.state,
            netuid=options.netuid,
            hyperparameters=settings,
        )
    )
    asyncio.run(node.run())
    return 0


def _port(text: str) -> int:
    return _integer(text, 0, 65_535)


def _netuid(text: str) -> int:
    return _integer(text, 1, 65_535)


def _integer(text: str, low: int, high: int) -> int:
    number = int(text) if text.isascii() and text.isdigit() else -1
    if not low <= number <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from {low} to {high}")
    return number


def _stake(text: str) -> int:
    return _integer(text, 0, 20_000_000)


def _block_time(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to 3600")
    return seconds


def _setting(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError as error:
        problem = "is not NAME=VALUE" if not separator else "has a value that is neither a number nor true or false"
        raise argparse.ArgumentTypeError(f"{text!r} {problem}") from error


def _run_register(options: argparse.Namespace) -> int:
    from compute.localnet.newcomer import make_wallet, register

    wallet = make_wallet(options.wallet_name, options.wallet_hotkey, options.wallet_path)
    newcomer = register(options.endpoint, options.netuid, wallet, stake_alpha=options.stake)
    if options.json:
        print(json.dumps({"uid": newcomer.uid, "hotkey": newcomer.hotkey, "coldkey": newcomer.coldkey}))
    else:
        print(f"{options.wallet_name} is uid {newcomer.uid} on netuid {options.netuid}, hotkey {newcomer.hotkey}")
    return 0


def _run_config(options: argparse.Namespace) -> int:
    import asyncio

    from compute.localnet.settings import config_text
    from compute.proof.calibrate import calibrate_cpu

    print(config_text(asyncio.run(calibrate_cpu())), end="")
    return 0


_COMMANDS = {"node": _run_node, "config": _run_config, "register": _run_register}


if __name__ == "__main__":
    sys.exit(main())
