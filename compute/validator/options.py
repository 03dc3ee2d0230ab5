"""The validator's command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from compute.base.options import kinds, shared
from compute.base.options.option import Group, Option, OptionParser, read

EXAMPLES = """\
examples:
  python neurons/validator.py --wallet.name validator --wallet.hotkey default
  python neurons/validator.py --netuid 15 --subtensor.network test --validator.specs.batch.size 32
  python neurons/validator.py --validator.perform.hardware.query false --no-auto_update
  python neurons/validator.py --status --json
  python neurons/validator.py explain 17
"""
_DAY_BLOCKS = 7200

EXPLAIN: Option[str | None] = Option(
    "explain",
    kinds.text,
    None,
    "Print everything that led to a miner's score, and end. The same without the dashes: explain 17. Needs no chain.",
    metavar="UID|HOTKEY",
)
WHITELIST_UNRECOGNIZED = Option(
    "validator.whitelist.unrecognized", kinds.boolean, False, "Query miners that publish no version too."
)
HARDWARE_QUERY = Option(
    "validator.perform.hardware.query",
    kinds.boolean,
    True,
    "Ask miners for their specs and prove their GPUs. Without it the scores stay as they are known.",
)
SPECS_BATCH = Option(
    "validator.specs.batch.size",
    kinds.integer(1, 4096),
    64,
    "Miners asked for their specs at once; less needs less of this machine and takes longer.",
    metavar="N",
)
CHALLENGE_BATCH = Option(
    "validator.challenge.batch.size",
    kinds.integer(1, 4096),
    256,
    "Accepted; hashcat challenges are no longer sent since 1.6.0.",
    metavar="N",
)
FORCE_PROMETHEUS = Option(
    "validator.force.update.prometheus",
    kinds.boolean,
    False,
    "Publish this validator's version on the chain even where the chain has it already.",
)
UPDATED_THRESHOLD = Option(
    "validator.whitelist.updated.threshold",
    kinds.percent,
    60,
    "Percentage of miners that must have updated before outdated ones are left out.",
    metavar="PERCENT",
)
ROUNDS = Option(
    "validator.rounds", kinds.integer(0, 10**9), 0, "End after this many rounds; 0 runs for ever.", metavar="N"
)
SPECS_INTERVAL = Option(
    "validator.specs.interval",
    kinds.integer(1, 7 * _DAY_BLOCKS),
    150,
    "Blocks between two queries of the specs.",
    metavar="BLOCKS",
)
PROOF_INTERVAL = Option(
    "validator.proof.interval",
    kinds.integer(1, 7 * _DAY_BLOCKS),
    360,
    "Blocks between two proofs of a machine.",
    metavar="BLOCKS",
)

GROUPS: tuple[Group, ...] = (
    replace(shared.GENERAL, options=(*shared.GENERAL.options, EXPLAIN)),
    shared.SUBTENSOR,
    shared.WALLET,
    Group("rounds", (HARDWARE_QUERY, SPECS_BATCH, SPECS_INTERVAL, PROOF_INTERVAL, ROUNDS, FORCE_PROMETHEUS)),
    Group("which miners", (WHITELIST_UNRECOGNIZED, UPDATED_THRESHOLD)),
    shared.LISTS,
    shared.LOGGING,
    shared.METRICS,
    shared.VALIDATOR_AXON,
    Group("retired", (CHALLENGE_BATCH,)),
)


@dataclass(frozen=True)
class ValidatorOptions(shared.NeuronOptions):
    """Everything that a validator can be told on its command line. Intervals are in blocks."""

    explain: str | None
    whitelist_unrecognized: bool
    perform_hardware_query: bool
    specs_batch_size: int
    challenge_batch_size: int
    force_update_prometheus: bool
    updated_threshold_percent: int
    rounds: int
    specs_interval_blocks: int
    proof_interval_blocks: int


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
    if argv[:1] == [EXPLAIN.name]:
        argv = [f"--{EXPLAIN.name}", *argv[1:]]
    values = read(parser, GROUPS, argv, environ)
    return ValidatorOptions(
        **vars(shared.neuron_options(parser, values, environ, questions=(shared.STATUS, EXPLAIN))),
        explain=values[EXPLAIN],
        whitelist_unrecognized=values[WHITELIST_UNRECOGNIZED],
        perform_hardware_query=values[HARDWARE_QUERY],
        specs_batch_size=values[SPECS_BATCH],
        challenge_batch_size=values[CHALLENGE_BATCH],
        force_update_prometheus=values[FORCE_PROMETHEUS],
        updated_threshold_percent=values[UPDATED_THRESHOLD],
        rounds=values[ROUNDS],
        specs_interval_blocks=values[SPECS_INTERVAL],
        proof_interval_blocks=values[PROOF_INTERVAL],
    )
