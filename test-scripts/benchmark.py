"""What this machine can do, and what proving it costs.

    python test-scripts/benchmark.py proof                  this machine's GPUs, as a validator would measure them
    python test-scripts/benchmark.py proof --device cpu     the same with CPU cores as devices, for the localnet
    python test-scripts/benchmark.py proof --emit-config    the entries of config.yaml for them
    python test-scripts/benchmark.py verify                 the validator's own cost
    python test-scripts/benchmark.py hashcat                the legacy benchmark; asks what to run
    python test-scripts/benchmark.py hashcat --difficulty "6 7" --count 2

Without a command it is hashcat, as it was before there was a proof; scores have not depended on that since version
1.6.0. Results go to stdout, questions and progress to stderr.
Exit codes: 0 done, 1 the machine could not be measured, 2 usage, 75 other programs used the processors meanwhile, so
that proof and verify say nothing, 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import hashcat
import yaml
from benches.proof import verification

from compute.base.console import Column, Output
from compute.base.contention import EXIT_BUSY, Control
from compute.base.errors import ComputeError
from compute.base.reasons import ProofReason
from compute.incentive.config import load_config
from compute.proof.calibrate import Calibration, calibrate_cpu, calibrate_cuda
from compute.proof.fingerprint import nearest_model
from compute.proof.models import DeviceMeasurement
from compute.proof.statement import dims_for

T = TypeVar("T")

_INTERRUPTED = 130
_DIFFICULTIES = "What challenge difficulties would you like to benchmark? 6 to 12, such as 6, or 7 8 9, or all."
_COUNT = "How many benchmarks would you like to perform?"
_PROFILE = "What hashcat workload profile (1, 2, 3, or 4) would you like to use?"
_OPTIONS = (
    "Enter any extra hashcat options to use. Leave this empty to use the recommended -O option. Enter None for no "
    "extended options."
)


def main(argv: Sequence[str]) -> int:
    """Run with ``argv`` (without the program's name); returns the exit code."""
    options = _parser().parse_args(argv or ["hashcat"])
    output = Output(sys.stdout, sys.stderr, as_json=options.json)
    # hashcat takes as long as it takes: its challenges are solved or not.
    control = None if options.run is _hashcat else Control()
    code = 0
    try:
        options.run(options, output)
    except ComputeError as error:
        output.note(f"error: {error}")
        code = 1
    except KeyboardInterrupt:
        output.note("interrupted")
        return _INTERRUPTED
    if control is not None and control.is_busy():
        output.note(control.words())
        return EXIT_BUSY
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="command")
    proof = commands.add_parser("proof", help="measure this machine's devices as a validator would")
    proof.set_defaults(run=_proof)
    proof.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    proof.add_argument("--devices", type=_positive, default=1, help="how many at once (default: 1)")
    proof.add_argument("--runs", type=_positive, default=3, help="proofs, of which the median counts (default: 3)")
    proof.add_argument("--emit-config", action="store_true", help="print the entries for config.yaml")
    verify = commands.add_parser("verify", help="measure what a proof costs the validator")
    verify.set_defaults(run=_verify)
    legacy = commands.add_parser("hashcat", help="crack challenges as they were before version 1.6.0")
    legacy.set_defaults(run=_hashcat)
    legacy.add_argument("--difficulty", metavar="LIST", help="6 to 12, several, or all; given, nothing is asked")
    legacy.add_argument("--count", metavar="N", help="how often each difficulty (default: 1)")
    # The second names are the miner's own, which take effect here only.
    legacy.add_argument(
        "--workload-profile", "--miner.hashcat.workload.profile", metavar="1..4", help="hashcat's -w (default: 3)"
    )
    legacy.add_argument(
        "--options",
        "--miner.hashcat.extended.options",
        metavar="TEXT",
        help="extra options, None for none: --options=-O (the default)",
    )
    legacy.add_argument(
        "--hashcat-path",
        "--miner.hashcat.path",
        metavar="PATH",
        default="hashcat",
        help="the program (default: hashcat)",
    )
    legacy.add_argument(
        "--time-limit",
        metavar="SECONDS",
        type=_seconds,
        default=hashcat.TIME_LIMIT_SECONDS,
        help="for one challenge (default: %(default)g)",
    )
    for command in (proof, verify, legacy):
        command.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _verify(options: argparse.Namespace, output: Output) -> None:
    _print(verification(), output)


def _proof(options: argparse.Namespace, output: Output) -> None:
    start = time.monotonic()
    measure = calibrate_cuda if options.device == "cuda" else calibrate_cpu
    # The rates of a GPU are learnt in a run of their own.
    runs = options.runs + (1 if options.device == "cuda" else 0)
    with output.bar("proofs", runs) as step:
        calibration = asyncio.run(measure(devices=options.devices, runs=options.runs, on_run=step))
    if options.emit_config:
        entries = {"gpu_performance": calibration.performance_entry(), "merkle_proof": calibration.settings_entry()}
        if output.as_json:
            output.data(entries)
        else:
            output.raw(yaml.safe_dump(entries, sort_keys=False), "")
        return
    model = calibration.model
    result: dict[str, object] = {
        "device": options.device,
        "devices": options.devices,
        "name": model.name,
        "tflops16": model.tflops16,
        "bandwidth_gbs": model.bandwidth_gbs,
        "vram_gb": model.vram_gb,
        "total_seconds": round(time.monotonic() - start, 1),
    }
    if options.device == "cuda":
        result["nearest_in_config"] = _nearest(calibration)
    _print(result, output)


def _nearest(calibration: Calibration) -> str | None:
    config = load_config()
    model = calibration.model
    measured = DeviceMeasurement(
        index=0,
        reason=ProofReason.OK,
        tflops16=model.tflops16,
        bandwidth_gbs=model.bandwidth_gbs,
        vram_bytes=dims_for(model, config.proof).resident_bytes,
    )
    return nearest_model(measured, config.models, config.proof)


def _hashcat(options: argparse.Namespace, output: Output) -> None:
    program = hashcat.find_hashcat(options.hashcat_path)
    asks = options.difficulty is None

    def answer(given: str | None, question: str, parse: Callable[[str], T]) -> T:
        return parse(_ask(question, output) if given is None and asks else given or "")

    plan = hashcat.Plan(
        difficulties=answer(options.difficulty, _DIFFICULTIES, hashcat.parse_difficulties),
        count=answer(options.count, _COUNT, hashcat.parse_count),
        workload_profile=answer(options.workload_profile, _PROFILE, hashcat.parse_workload_profile),
        options=answer(options.options, _OPTIONS, hashcat.parse_options),
    )
    output.note(
        f"benchmarks {plan.benchmarks}, workload profile {plan.workload_profile}, "
        f"extra options {' '.join(plan.options) or 'none'}"
    )
    with output.bar("challenges", len(plan.benchmarks)) as step:
        attempts = hashcat.run_plan(program, plan, time_limit_seconds=options.time_limit, on_attempt=step)
    if output.as_json:
        output.data(
            {
                "workload_profile": plan.workload_profile,
                "options": plan.options,
                "time_limit_seconds": options.time_limit,
                "benchmarks": [vars(attempt) for attempt in attempts],
            }
        )
        return
    output.table(
        [Column("difficulty", right=True), Column("solved", right=True), Column("mean seconds", right=True)],
        [
            (str(difficulty), f"{solved} of {count}", "–" if mean is None else f"{mean:.2f}")
            for difficulty, count, solved, mean in hashcat.summary(attempts)
        ],
    )


def _ask(question: str, output: Output) -> str:
    """One line from stdin; empty where that has ended. The question is no data, so it does not go where data goes."""
    output.note(question)
    try:
        return input()
    except EOFError:
        return ""


def _print(result: Mapping[str, object], output: Output) -> None:
    if output.as_json:
        output.data(result)
    else:
        output.table([Column("figure"), Column("value", right=True)], [(key, str(result[key])) for key in result])


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
