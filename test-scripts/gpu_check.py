"""The CUDA path of the proof of GPU, run for real on this machine's NVIDIA GPUs.

    test-scripts/gpu_check.sh

Checks that honest proofs pass and what rates they measure, that C is the exact product and lies in the GPU's memory,
that a prover which drops C is caught; times every step against a bare torch.mm and a copy in the same run; and prints
the entries for config.yaml. Needs torch and numpy, no network, and less than eight minutes.
The result is a table on stdout and build/gpu_check.json. Exit codes: 0 all checks passed, 1 one did not, 2 usage, 3 no
GPU here, so nothing was checked, 75 one did not while other programs used the processors, so that it says nothing.
With --device cpu the same runs in small on a CPU, to test this script.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import hashlib
import json
import math
import secrets
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

from compute.base.contention import EXIT_BUSY, Control
from compute.base.errors import NotFound, ProofError
from compute.base.reasons import ProofReason
from compute.proof.calibrate import Calibration, calibrate, calibrate_cuda, devices_here, prove_here
from compute.proof.models import CPU_MODEL, Claim, GpuModel, MachineVerdict, ProofSettings
from compute.proof.statement import dims_for

_SCRIPT = str(Path(__file__).resolve())
_RESULT = Path(__file__).resolve().parents[1] / "build" / "gpu_check.json"
_NO_GPU = 3
_TIME_LIMIT_SECONDS = 470
_RUNS = 3
_STEP_SECONDS = {"cuda": 1.0, "cpu": 0.02}
_DROP_C = "--drop-c"
_ANY_RATE = 1e-6
_HONEST = "honest proofs pass"
_SMALL = ProofSettings(
    device="cpu", rows=8192, k=1024, columns=1024, tile_rows=512, min_passes=8, max_passes=8, rehash_seconds=0.5
)
_CAUGHT = (ProofReason.NOT_RESIDENT, ProofReason.SLOWER_THAN_CLAIMED)
_TIMES = (*_CAUGHT, ProofReason.TIMEOUT)
"""What other programs on this machine can make of an honest proof."""
_GOALS = (
    ("proof_over_mm_ratio", 0.85, math.inf, "the proof's rate is 85 % of a bare torch.mm"),
    ("copy_over_pass_ratio", 0.0, 2.0, "a pass is within 2x of the copy bandwidth"),
    ("end_to_end_seconds", 0.0, 20.0, "a proof takes less than 20 s"),
)


@dataclass(frozen=True)
class Check:
    """Something that must be so, whether it is, and the numbers that say it.

    ``timed``: where it is not so, other programs on this machine may be the reason.
    """

    name: str
    ok: bool
    detail: str
    timed: bool = False


@dataclass
class Report:
    """What was found; ``figures`` have their unit in their name."""

    device: str
    gpu: str = ""
    devices: int = 0
    torch: str = ""
    busy: bool = False
    seconds: float = 0.0
    checks: list[Check] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    config: dict[str, object] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return bool(self.checks) and all(check.ok for check in self.checks)

    def check(self, name: str, ok: bool, detail: str, *, timed: bool = False) -> None:
        self.checks.append(Check(name, ok, detail, timed))

    def may_be_disturbed(self) -> bool:
        """Whether all that has failed could be other programs' doing."""
        failed = [check for check in self.checks if not check.ok]
        return bool(failed) and all(check.timed for check in failed)

    def goals(self) -> list[tuple[str, bool]]:
        """What the design wants of a data-centre card; missing one fails nothing."""
        known = [goal for goal in _GOALS if goal[0] in self.figures]
        return [(text, low <= self.figures[name] <= high) for name, low, high, text in known]

    def document(self) -> dict[str, object]:
        """Everything, for JSON."""
        goals = [{"goal": text, "met": met} for text, met in self.goals()]
        return {"ok": self.ok, **asdict(self), "goals": goals}


def main(argv: Sequence[str]) -> int:
    """Run with ``argv`` (without the program's name); returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, default=_RESULT, help="where the JSON goes (default: build)")
    parser.add_argument(_DROP_C, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.drop_c:
        serve_without_c()
        return 0
    report = Report(options.device)
    control = Control()
    start = time.monotonic()
    try:
        asyncio.run(_examine(report))
    except NotFound as error:
        print(f"no GPU here, so the CUDA path has not run: {error}", file=sys.stderr)
        return _NO_GPU
    except Exception as error:  # what was found before is worth having, whatever torch raises on this machine
        traceback.print_exc()
        report.check("the check runs to its end", False, f"{type(error).__name__}: {error}")
    report.busy = report.may_be_disturbed() and control.is_busy()
    report.seconds = round(time.monotonic() - start, 1)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report.document(), indent=2) + "\n", encoding="utf-8")
    print("\n".join(lines(report)))
    print(f"written to {options.output}", file=sys.stderr)
    if report.busy:
        print(control.words(), file=sys.stderr)
        return EXIT_BUSY
    return 0 if report.ok else 1


async def _examine(report: Report) -> None:
    # What needs the GPU's whole memory in processes of its own comes first: this one takes none before the last step.
    calibration = await (_calibrate_gpus(report) if report.device == "cuda" else _calibrate_a_core(report))
    if report.ok:
        model = calibration.model
        report.config = {
            "gpu_performance": calibration.performance_entry(),
            "merkle_proof": calibration.settings_entry(),
        }
        report.figures |= {"tflops16": model.tflops16, "bandwidth_gbs": model.bandwidth_gbs or 0.0}
        if report.device == "cuda":
            await _prove_the_entry(report, calibration)
        await _catch_a_dropper(report, calibration)
    _inspect(report, calibration)


async def _calibrate_gpus(report: Report) -> Calibration:
    """What honest proofs measure; if they fail, a statement of full size under which to find out why."""
    _say("looking for GPUs")
    hello = await devices_here("cuda")
    if not hello.devices:
        raise NotFound(f"torch {hello.torch} under {sys.executable} sees none")
    report.gpu, report.devices, report.torch = hello.devices[0].name, len(hello.devices), hello.torch
    _say(f"proving {report.devices} × {report.gpu}, {1 + _RUNS} times")
    try:
        calibration = await calibrate_cuda(devices=report.devices, runs=_RUNS)
    except ProofError as error:
        report.check(_HONEST, False, f"{error.reason}: {error}", timed=error.reason in _TIMES)
        settings = ProofSettings(k=ProofSettings.max_k)
        vram_gb = hello.devices[0].memory_bytes // 10**8 / 10
        return Calibration(GpuModel(report.gpu, _ANY_RATE, vram_gb, bandwidth_gbs=None), settings)
    _passed(report, calibration.model)
    return calibration


async def _calibrate_a_core(report: Report) -> Calibration:
    _say("proving a CPU core")
    report.gpu, report.devices = CPU_MODEL, 1
    model = await calibrate(settings=_SMALL, name=CPU_MODEL, vram_gb=1.0, devices=1, runs=1)
    _passed(report, model)
    return Calibration(model, _SMALL)


def _passed(report: Report, model: GpuModel) -> None:
    report.check(_HONEST, True, f"{model.tflops16:g} TFLOPS, {model.bandwidth_gbs:g} GB/s a device")


async def _prove_the_entry(report: Report, calibration: Calibration) -> None:
    """The claim that the new entry makes, judged by it as a validator would."""
    _say("proving the claim that the entry makes")
    model = calibration.model
    start = time.monotonic()
    verdict = await prove_here(Claim(model.name, report.devices), model, calibration.settings)
    report.figures["end_to_end_seconds"] = time.monotonic() - start
    timed = verdict.reason in _TIMES
    report.check("a claim of the new entry is proven", verdict.ok, _words(verdict), timed=timed)


async def _catch_a_dropper(report: Report, calibration: Calibration) -> None:
    _say("proving with a prover that drops C and computes it again for every pass")
    verdict = await drop_c(calibration.model, calibration.settings)
    # Where computing C took long, computing it again in every pass does not stand out.
    timed = verdict.reason in (ProofReason.OK, ProofReason.TIMEOUT)
    report.check("a prover that drops C is caught", verdict.reason in _CAUGHT, _words(verdict), timed=timed)


async def drop_c(model: GpuModel, settings: ProofSettings) -> MachineVerdict:
    """The verdict on one device that commits honestly, then drops C."""
    if settings.device == "cpu":
        # A CPU's rate wavers with all else that it does. Here it is the pass that must give the prover away.
        model = replace(model, tflops16=_ANY_RATE)
    passes = settings.opened_passes
    # Time enough to answer, so that the verdict says more than that it did not.
    patient = replace(settings, min_passes=passes, max_passes=passes, phase_deadline_floor_seconds=120.0)
    argv = [sys.executable, _SCRIPT, _DROP_C]
    return await prove_here(Claim(model.name, 1), model, patient, argv=argv)


def serve_without_c() -> None:
    """Be that prover, on stdin and stdout."""
    import torch

    from compute.proof import worker

    class OneTile:
        """In place of C: whatever rows are asked for, it is the same tile."""

        def __init__(self, tile: Any, rows: int) -> None:
            self._tile, self._rows = tile, rows

        def __getitem__(self, wanted: slice) -> Any:
            return self._tile[: min(wanted.stop, self._rows) - wanted.start]

    class DropsC(worker.Device):
        """Keeps one tile of C after the commitment, and is right in everything that it says."""

        def compute(self, nonce: bytes) -> None:
            super().compute(nonce)
            self.c = OneTile(self.c[: self.tile_rows].clone(), self.rows)

        def rehash(self, key: bytes, passes: int) -> None:
            for _ in range(passes):
                key_words = self.pass_keys(key)
                tops = range(0, self.rows, self.tile_rows)
                root = self.finish_pass(key, [self.commit(key_words, self.fill_tile(top)) for top in tops])
                key = hashlib.sha256(root).digest()

        def open(self, lines: Sequence[Sequence[int]]) -> None:
            self.c = self.c_tile.new_zeros((self.rows, self.columns), dtype=torch.int16)
            for top in range(0, self.rows, self.tile_rows):
                self.fill_tile(top)
            super().open(lines)

    stream = sys.stdin.buffer
    stream.read(int(stream.readline()))  # the worker that it was asked to run
    with mock.patch.object(worker, "Device", DropsC):
        worker.main()


def _inspect(report: Report, calibration: Calibration) -> None:
    _say("computing C here and comparing it")
    # Not before now: it loads torch into this process, and its memory is counted against the proofs above.
    from gpu_inspection import Inspection

    dims = dims_for(calibration.model, calibration.settings)
    inspection = Inspection(calibration.settings.device, dims, secrets.token_bytes(32))
    report.figures |= {"rows": dims.rows, "k": dims.k, "columns": dims.columns, "passes": dims.passes}
    wrong, compared, largest = inspection.wrong_entries()
    detail = f"{wrong} of {compared} entries differ at {dims.rows} × {dims.k} × {dims.columns}"
    report.check("C is the exact product", wrong == 0, f"{detail}; the largest is {largest / 2**24:.2f} of 2^24")
    held = inspection.resident_bytes()
    report.check(
        "C lies in the device's memory",
        held == dims.resident_bytes,
        f"{held / 1e9:.4g} of {dims.resident_bytes / 1e9:.4g} GB",
    )
    _say("timing every step")
    figures = inspection.figures(_STEP_SECONDS[calibration.settings.device])
    report.figures |= figures
    if calibration.model.bandwidth_gbs is not None:
        report.figures["proof_over_mm_ratio"] = calibration.model.tflops16 / figures["mm_tflops"]
        report.figures["copy_over_pass_ratio"] = figures["copy_gbs"] / calibration.model.bandwidth_gbs


def lines(report: Report) -> list[str]:
    """The report as text: checks, goals, figures, and the entries as YAML."""
    title = f"{report.devices} × {report.gpu}" + (f", torch {report.torch}" if report.torch else "")
    text = [title, ""]
    bad = "busy  " if report.busy else "FAILED"
    text += [f"{'ok    ' if check.ok else bad}  {check.name}: {check.detail}" for check in report.checks]
    if report.device == "cuda":
        text += [f"{'met   ' if met else 'missed'}  goal: {goal}" for goal, met in report.goals()]
    width = max((len(name) for name in report.figures), default=0)
    text += ["", *(f"{name:<{width}}  {value:>12.6g}" for name, value in report.figures.items())]
    return [*text, "", "# for config.yaml", *_yaml(report.config, 0)]


def _yaml(mapping: Mapping[str, object], depth: int) -> list[str]:
    """Nested mappings of numbers and words; a JSON word is one of YAML too."""
    text: list[str] = []
    for key, value in mapping.items():
        name = "  " * depth + (key if key.replace("_", "").isalnum() else json.dumps(key))
        if isinstance(value, Mapping):
            text += [f"{name}:", *_yaml(value, depth + 1)] if value else [f"{name}: {{}}"]
        else:
            text.append(f"{name}: {json.dumps(value)}")
    return text


def _words(verdict: MachineVerdict) -> str:
    times = [
        f"computing {device.compute_seconds or 0.0:.4g} s, passes {device.rehash_seconds or 0.0:.4g} s"
        for device in verdict.devices
    ]
    return "; ".join([str(verdict.reason), *times, *([verdict.detail] if verdict.detail else [])])


def _say(what: str) -> None:
    print(f"{what} …", file=sys.stderr, flush=True)


if __name__ == "__main__":
    faulthandler.dump_traceback_later(_TIME_LIMIT_SECONDS, exit=True)
    sys.exit(main(sys.argv[1:]))
