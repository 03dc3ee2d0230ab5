"""What the proof of GPU finds on this machine, and what it costs a validator.

    python test-scripts/benchmark.py proof                  this machine's GPUs, as a validator would measure them
    python test-scripts/benchmark.py proof --device cpu     the same with CPU cores as devices, for the localnet
    python test-scripts/benchmark.py proof --emit-config    the entries of config.yaml for them
    python test-scripts/benchmark.py verify                 the validator's own cost

Results go to stdout, progress to stderr. Exit codes: 0 done, 1 the machine could not be measured, 2 usage.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence

import yaml

from compute.config import load_config
from compute.errors import ComputeError
from compute.proof.bench import verification
from compute.proof.calibrate import Calibration, calibrate_cpu, calibrate_cuda
from compute.proof.fingerprint import nearest_model
from compute.proof.models import DeviceMeasurement
from compute.proof.statement import dims_for
from compute.reasons import ProofReason


def main(argv: Sequence[str]) -> int:
    """Run with ``argv`` (without the program's name); returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        if options.command == "verify":
            _print(verification(), options.json)
        else:
            _proof(options)
    except ComputeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    proof = commands.add_parser("proof", help="measure this machine's devices as a validator would")
    proof.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    proof.add_argument("--devices", type=_positive, default=1, help="how many at once (default: 1)")
    proof.add_argument("--runs", type=_positive, default=3, help="proofs, of which the median counts (default: 3)")
    proof.add_argument("--emit-config", action="store_true", help="print the entries for config.yaml")
    verify = commands.add_parser("verify", help="measure what a proof costs the validator")
    for command in (proof, verify):
        command.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _proof(options: argparse.Namespace) -> None:
    progress = _progress(options.runs + (1 if options.device == "cuda" else 0))
    start = time.monotonic()
    measure = calibrate_cuda if options.device == "cuda" else calibrate_cpu
    calibration = asyncio.run(measure(devices=options.devices, runs=options.runs, on_run=progress))
    if options.emit_config:
        entries = {"gpu_performance": calibration.performance_entry(), "merkle_proof": calibration.settings_entry()}
        print(json.dumps(entries) if options.json else yaml.safe_dump(entries, sort_keys=False), end="")
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
    _print(result, options.json)


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


def _print(result: dict[str, object] | dict[str, float], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    width = max(map(len, result))
    for key, value in result.items():
        print(f"{key:<{width}}  {value}")


def _progress(total: int) -> Callable[[], None]:
    """A function that counts one more of ``total`` runs on stderr, where that is a terminal."""
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            print(
                f"\r[{'#' * done}{'.' * (total - done)}] {done} of {total} runs", end=end, file=sys.stderr, flush=True
            )

    return step


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
