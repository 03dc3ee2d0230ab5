"""The command line of ``register.py``: what there is, and the typed objects that it becomes. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compute.base.options import kinds
from compute.base.options.option import OptionGroup, OptionParser, add_groups, again, option, resolve
from compute.base.options.shared import NeuronOptions, SubtensorOptions, WalletOptions
from compute.base.store import key_file_beside
from compute.wire.lease_terms import DEFAULT_DAYS, DEFAULT_HOTKEY_DAYS, GIB, MAX_DAYS, SECONDS_PER_DAY
from compute.wire.requirements import MAX_CAPACITY, MAX_COUNT

EXAMPLE_REQUIREMENT = (
    "{'cpu':{'count':1}, 'gpu':{'count':1}, 'hard_disk':{'capacity':10737418240}, 'ram':{'capacity':1073741824}}"
)

_DESCRIPTION = """\
Rent machines on the subnet. Without a command, an interactive shell opens.

A typical session:
  %(prog)s offers --gpu L4                   what is there
  %(prog)s allocate --gpu L4 --days 7        rent one, say brisk-otter
  %(prog)s exec brisk-otter -- nvidia-smi    run a command on it
  %(prog)s ssh brisk-otter                   log in
  %(prog)s deallocate brisk-otter            give it back
"""
_EPILOG = """\
Options of the chain and the wallet may stand before or after the command;
every command has --help and --json.
exit codes: 0 done, 1 this machine's fault (wallet, database), 2 usage,
            3 chain, 4 network or SSH, 5 not found, 6 refused by the miner,
            130 interrupted; exec and ssh: the remote command's own
"""
_REQUIREMENT_HELP = f"""\
A requirement may be typed as a dictionary (sizes in bytes, gpu.capacity in MiB
of each GPU), or by the options, which win:
  "{EXAMPLE_REQUIREMENT}"
"""

_COMPLETION_HELP = """\
For this and every later session, with register.py on the PATH as in an active .venv:
  echo 'eval "$(register.py completion bash)"' >> ~/.bashrc
  echo 'autoload -Uz compinit && compinit; eval "$(register.py completion zsh)"' >> ~/.zshrc
"""


_count = kinds.integer(0, MAX_COUNT)
_gib = kinds.integer(0, MAX_CAPACITY // GIB)
_days = kinds.integer(1, MAX_DAYS)
_seconds = kinds.integer(1, 7 * SECONDS_PER_DAY)


@dataclass(frozen=True)
class RenterOptions(OptionGroup, title="general"):
    """Where the renter's chain, wallet and files are."""

    netuid: int = again(NeuronOptions, "netuid")
    database: Path = again(NeuronOptions, "database")
    given_key_file: Path | None = option(
        "key.file",
        kinds.path,
        None,
        "0600 file with the key that seals the secrets in the database; made where missing.",
        metavar="PATH",
        default_text="the database's path with .key added",
    )
    config_file: Path | None = again(NeuronOptions, "config_file")
    subtensor: SubtensorOptions = field(default_factory=SubtensorOptions)
    wallet: WalletOptions = field(default_factory=WalletOptions)

    @property
    def key_file(self) -> Path:
        """The file with the key of the database's secrets, wherever it is."""
        return self.given_key_file or key_file_beside(self.database)


GROUPS: tuple[type[OptionGroup], ...] = (RenterOptions, SubtensorOptions, WalletOptions)


@dataclass(frozen=True)
class Invocation:
    """One parsed command line. ``remote`` is what followed ``--``."""

    command: str
    arguments: Mapping[str, Any]
    remote: tuple[str, ...]
    options: RenterOptions
    as_json: bool


def parse_renter(argv: Sequence[str], environ: Mapping[str, str]) -> Invocation:
    """Parse ``argv`` (without the program's name). Exits with 0 after help, with 2 on a usage error."""
    parser = build_parser()
    words = list(argv)
    remote: list[str] = []
    if "--" in words:
        cut = words.index("--")
        words, remote = words[:cut], words[cut + 1 :]
    namespace = parser.parse_args(words)
    command = namespace.command or "shell"
    if remote and command not in ("exec", "ssh"):
        parser.error(f"only exec and ssh take a command after --, not {command}")
    if command == "exec" and not remote:
        parser.error("exec needs the command after --, such as: exec brisk-otter -- nvidia-smi")
    options = RenterOptions.of(resolve(parser, GROUPS, namespace, environ))
    as_json = bool(getattr(namespace, "json", False))
    return Invocation(command, vars(namespace), tuple(remote), options, as_json)


def build_parser() -> OptionParser:
    """The whole parser, ready for ``parse_args``."""
    common = OptionParser(add_help=False)
    add_groups(common, GROUPS)
    common.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="JSON on stdout")
    parser = OptionParser(prog="register.py", description=_DESCRIPTION, epilog=_EPILOG, parents=[common])
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND", parser_class=OptionParser)

    def command(name: str, summary: str, *, takes: str = "", details: str = "") -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = commands.add_parser(
            name,
            help=summary,
            usage=f"register.py {name} [options] {takes}",
            description=summary[0].upper() + summary[1:] + ".",
            epilog=details,
            parents=[common],
        )
        return added

    offers = command("offers", "list what miners offer, and whether it is free")
    _add_filters(offers)
    offers.add_argument("--all", action="store_true", help="list those that cannot be rented now as well")
    offers.add_argument(
        "--sort", choices=("uid", "gpu", "vram", "ram", "cpus"), default="uid", help="order of the list [default: uid]"
    )

    allocate = command(
        "allocate", "rent the machine that fits a requirement best", takes="[REQUIREMENT]", details=_REQUIREMENT_HELP
    )
    _add_requirement(allocate, days=DEFAULT_DAYS)
    allocate.add_argument("--explain", action="store_true", help="only say which machine would be chosen, and why")

    by_hotkey = command(
        "allocate-hotkey", "rent the machine of one miner", takes="HOTKEY [REQUIREMENT]", details=_REQUIREMENT_HELP
    )
    by_hotkey.add_argument("hotkey", metavar="HOTKEY", help="ss58 address of the miner's hotkey")
    _add_requirement(by_hotkey, days=DEFAULT_HOTKEY_DAYS)

    command("list", "list your allocations")
    _add_name(command("show", "show one allocation, and ask the miner whether it lives", takes="NAME"))
    _add_name(
        command(
            "ssh",
            "log in with the system's ssh, or run what follows --",
            takes="NAME [-- COMMAND …]",
            details=_examples("ssh NAME -- top"),
        )
    )
    execute = command(
        "exec",
        "run what follows -- on the machine",
        takes="NAME -- COMMAND …",
        details=_examples("exec NAME -- python3 -c 'print(1)'"),
    )
    _add_name(execute)
    execute.add_argument(
        "--timeout", type=_seconds, default=300, metavar="SECONDS", help="end of patience [default: 300]"
    )

    deallocate = command("deallocate", "give machines back; what is stored on them is lost", takes="NAME …")
    deallocate.add_argument("names", nargs="*", metavar="NAME", help="name or hotkey")
    deallocate.add_argument("--all", action="store_true", help="every allocation")
    deallocate.add_argument(
        "--forget", action="store_true", help="only drop the record here, for a miner that will not answer again"
    )
    _add_yes(deallocate)

    _add_name(command("pause", "freeze a machine; its lease runs on", takes="NAME"))
    _add_name(command("resume", "thaw a paused machine", takes="NAME"))
    restart = command("restart", "restart a machine; what runs on it ends", takes="NAME")
    _add_name(restart)
    _add_yes(restart)
    extend = command("extend", "let a lease last longer", takes="NAME --days N")
    _add_name(extend)
    extend.add_argument("--days", type=_days, required=True, metavar="N", help="days from now, at least")
    exchange = command("exchange-key", "replace the key that logs in by a fresh one", takes="NAME")
    _add_name(exchange)
    exchange.add_argument(
        "--terminal", metavar="FILE", type=Path, help="instead let this public key of yours (FILE.pub) log in too"
    )

    penalize = command("penalize", "rent no more from a miner when choosing by requirement", takes="HOTKEY")
    penalize.add_argument("hotkey", metavar="HOTKEY")
    penalize.add_argument("--note", default="", help="why, for yourself")
    command("unpenalize", "lift a penalty", takes="HOTKEY").add_argument("hotkey", metavar="HOTKEY")
    command("penalized", "list the miners that you penalized")
    command("shell", "open the interactive shell, as without a command")
    completion = commands.add_parser(
        "completion",
        help="print what your shell needs to complete commands, options and names",
        usage="register.py completion {bash,zsh}",
        description="Print what your shell needs to complete commands, options and names.",
        epilog=_COMPLETION_HELP,
    )
    completion.add_argument("shell", choices=("bash", "zsh"))
    return parser


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpu", metavar="TYPE", help="part of the GPU's name, such as L4 or h100")
    parser.add_argument("--count", type=_count, metavar="N", help="GPUs in the machine, at least")
    parser.add_argument("--min-vram", type=_gib, metavar="GIB", help="memory of each GPU, at least")
    parser.add_argument("--min-ram", type=_gib, metavar="GIB", help="free RAM, at least")


def _add_requirement(parser: argparse.ArgumentParser, *, days: int) -> None:
    parser.add_argument("requirement", nargs="?", metavar="REQUIREMENT", help="a dictionary, see below")
    _add_filters(parser)
    parser.add_argument("--cpus", type=_count, metavar="N", help="CPUs, at least")
    parser.add_argument("--min-disk", type=_gib, metavar="GIB", help="free disk, at least")
    parser.add_argument("--days", type=_days, default=days, metavar="N", help=f"length of the lease [default: {days}]")
    parser.add_argument("--name", help="name for the allocation [default: made up]")
    parser.add_argument(
        "--dockerfile",
        type=Path,
        metavar="FILE",
        help="steps (RUN, ENV, WORKDIR) that the machine goes through before you get it, where its miner allows that",
    )
    parser.add_argument(
        "--trust-first-use",
        action="store_true",
        help="rent from miners too old to name their SSH host key: whoever answers first is trusted",
    )


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of the allocation, or hotkey of its miner")


def _add_yes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _examples(line: str) -> str:
    return f"example:\n  register.py {line}\n"
