"""The validator's command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from compute.base.options import kinds, shared
from compute.base.options.option import OptionGroup, OptionParser, again, option

EXAMPLES = """\
examples:
  python neurons/validator.py --wallet.name validator --wallet.hotkey default
  python neurons/validator.py --netuid 15 --subtensor.network test --validator.specs.batch.size 32
  python neurons/validator.py --validator.perform.hardware.query false --no-auto_update
  python neurons/validator.py --status --json
  python neurons/validator.py explain 17
"""
_DAY_BLOCKS = 7200


@dataclass(frozen=True)
class GeneralOptions(shared.NeuronOptions, title="general"):
    """What both neurons can be told, and what a validator can be asked besides."""

    explain: str | None = option(
        "explain",
        kinds.text,
        None,
        "Print everything that led to a miner's score, and end. The same without the dashes: explain 17. Needs"
        " no chain.",
        metavar="UID|HOTKEY",
    )


@dataclass(frozen=True)
class RoundOptions(OptionGroup, title="rounds"):
    """How often and how much is asked. Intervals are in blocks."""

    perform_hardware_query: bool = option(
        "validator.perform.hardware.query",
        kinds.boolean,
        True,
        "Ask miners for their specs and prove their GPUs. Without it the scores stay as they are known.",
    )
    specs_batch_size: int = option(
        "validator.specs.batch.size",
        kinds.integer(1, 4096),
        64,
        "Miners asked for their specs at once; less needs less of this machine and takes longer.",
        metavar="N",
    )
    specs_interval_blocks: int = option(
        "validator.specs.interval",
        kinds.integer(1, 7 * _DAY_BLOCKS),
        150,
        "Blocks between two queries of the specs.",
        metavar="BLOCKS",
    )
    proof_interval_blocks: int = option(
        "validator.proof.interval",
        kinds.integer(1, 7 * _DAY_BLOCKS),
        360,
        "Blocks between two proofs of a machine.",
        metavar="BLOCKS",
    )
    rounds: int = option(
        "validator.rounds", kinds.integer(0, 10**9), 0, "End after this many rounds; 0 runs for ever.", metavar="N"
    )
    force_update_prometheus: bool = option(
        "validator.force.update.prometheus",
        kinds.boolean,
        False,
        "Publish this validator's version on the chain even where the chain has it already.",
    )


@dataclass(frozen=True)
class QueryOptions(OptionGroup, title="which miners"):
    """Which miners are asked, besides what the lists say."""

    whitelist_unrecognized: bool = option(
        "validator.whitelist.unrecognized", kinds.boolean, False, "Query miners that publish no version too."
    )
    updated_threshold_percent: int = option(
        "validator.whitelist.updated.threshold",
        kinds.percent,
        60,
        "Percentage of miners that must have updated before outdated ones are left out.",
        metavar="PERCENT",
    )


_UNUSED = "Accepted; a validator opens no axon."


@dataclass(frozen=True)
class AxonOptions(OptionGroup, title="axon (a validator opens none)"):
    """What others are told of this validator's address. ``external_ip`` None: none."""

    external_ip: str | None = again(
        shared.AxonOptions,
        "external_ip",
        help="Address that miners are told in the header of each request, and that the chain's record has.",
        default_text="none",
    )
    external_port: int | None = again(
        shared.AxonOptions,
        "external_port",
        help="Port in the chain's record of this validator's version; nothing listens there.",
    )
    port: int = again(
        shared.AxonOptions,
        "port",
        help="Port in the chain's record of this validator's version without --axon.external_port; nothing listens"
        " there.",
    )
    ip: str = again(shared.AxonOptions, "ip", help=_UNUSED)
    max_workers: int = again(shared.AxonOptions, "max_workers", help=_UNUSED)


@dataclass(frozen=True)
class RetiredOptions(OptionGroup, title="retired"):
    """What a validator still takes and no longer uses."""

    challenge_batch_size: int = option(
        "validator.challenge.batch.size",
        kinds.integer(1, 4096),
        256,
        "Accepted; hashcat challenges are no longer sent since 1.6.0.",
        metavar="N",
    )


@dataclass(frozen=True)
class ValidatorOptions(RoundOptions, QueryOptions, RetiredOptions, GeneralOptions):
    """Everything that a validator can be told on its command line."""

    axon: AxonOptions = field(default_factory=AxonOptions)


GROUPS: tuple[type[OptionGroup], ...] = (
    GeneralOptions,
    shared.SubtensorOptions,
    shared.WalletOptions,
    RoundOptions,
    QueryOptions,
    shared.ListOptions,
    shared.LoggingOptions,
    shared.MetricsOptions,
    AxonOptions,
    RetiredOptions,
)
"""What a validator can be told, in the order of its help."""


def parse_validator(argv: Sequence[str], environ: Mapping[str, str]) -> ValidatorOptions:
    """Read a validator's command line (without the program's name) and variables.

    Raises:
        SystemExit: code 2 on a usage error, with one line on stderr; code 0 after ``--help``.
    """
    parser = OptionParser(
        description="Find out what the miners' machines are, and set weights by it.",
        usage="%(prog)s [options]\n       %(prog)s explain UID|HOTKEY [options]",
        epilog=EXAMPLES,
    )
    if argv[:1] == ["explain"]:
        argv = ["--explain", *argv[1:]]
    return ValidatorOptions.of(shared.neuron_values(parser, GROUPS, argv, environ, questions=("status", "explain")))
