"""What this machine measures as, by the real worker and verifier through real pipes: the numbers for a table entry."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, dataclass, fields, replace

from compute.base.clock import SystemClock
from compute.base.errors import ProofError
from compute.base.reasons import ProofReason
from compute.proof.bootstrap import bootstrap_argv
from compute.proof.conversation import Conversation
from compute.proof.frames import Hello
from compute.proof.models import CPU_MODEL, Claim, DeviceKind, GpuModel, MachineVerdict, ProofSettings
from compute.proof.pipes import local_worker
from compute.proof.session import Target, prove_batch
from compute.proof.statement import dims_for

CPU_SETTINGS = ProofSettings(
    device="cpu",
    columns=1024,
    k=4096,
    rows=8192,
    tile_rows=512,
    compute_seconds=1.2,
    rehash_seconds=0.5,
    # Cores are shared with everything else on a machine; two devices on one core still measure a half.
    time_tolerance=0.4,
    phase_deadline_floor_seconds=15.0,
)
"""The small statement of the CPU device. ``rows`` is what a calibration starts from; 8192 rows are 17 MB of C."""

_HELLO_SECONDS = 90.0
DISTURBED = (ProofReason.NOT_RESIDENT, ProofReason.TIMEOUT)
"""What a busy computer can make of an honest proof."""
_MOST_ROWS = 40960
_ROW_STEP = 1024
_ANY_RATE = 1e-6
"""A claim that every device fulfils, so that it is measured and not judged."""


@dataclass(frozen=True)
class Calibration:
    """A model of this machine's device and the settings under which it was measured and is to be proven."""

    model: GpuModel
    settings: ProofSettings

    def performance_entry(self) -> dict[str, dict[str, float]]:
        """The model in the shape of ``gpu_performance`` in ``config.yaml``."""
        model = self.model
        entry = {"GPU_TFLOPS_FP16": {model.name: model.tflops16}, "GPU_VRAM_GB": {model.name: model.vram_gb}}
        if model.tflops32 is not None:
            entry["GPU_TFLOPS_FP32"] = {model.name: model.tflops32}
        if model.bandwidth_gbs is not None:
            entry["GPU_BANDWIDTH_GBS"] = {model.name: model.bandwidth_gbs}
        return entry

    def settings_entry(self) -> dict[str, object]:
        """The settings in the shape of ``merkle_proof`` in ``config.yaml``: what differs from the defaults."""
        entry: dict[str, object] = {}
        for field in fields(ProofSettings):
            value = getattr(self.settings, field.name)
            if field.default is not MISSING and value != field.default:
                entry[field.name] = value
        return entry


async def prove_here(
    claim: Claim, model: GpuModel, settings: ProofSettings, *, argv: Sequence[str] | None = None
) -> MachineVerdict:
    """The verdict that a validator would give this machine, through a pipe instead of a network.

    ``argv`` starts what proves it; by default the bootstrap, as everywhere.
    """
    with ThreadPoolExecutor(1) as executor:
        target = Target("this-machine", claim, lambda: local_worker(argv))
        (verdict,) = await prove_batch(
            [target],
            validator_hotkey="this-validator",
            models={model.name: model},
            tolerance_pairs=[],
            settings=settings,
            on_verdict=lambda target, verdict: None,
            executor=executor,
            clock=SystemClock(),
        )
    return verdict


async def calibrate(
    *,
    settings: ProofSettings,
    name: str,
    vram_gb: float,
    devices: int,
    runs: int = 3,
    python: str = sys.executable,
    on_run: Callable[[], None] = lambda: None,
) -> GpuModel:
    """Measure ``devices`` devices of this machine at once: per run the slowest device, over the runs the median.

    ``vram_gb`` decides how much memory is filled, where ``settings`` do not. ``on_run`` is called after each run. A
    run that other programs disturbed is repeated, at most ``runs`` times in all.

    Raises:
        ProofError: too many runs did not end well; the last one's reason says why.
    """
    model = GpuModel(name, tflops16=_ANY_RATE, vram_gb=vram_gb, bandwidth_gbs=None)
    verdicts: list[MachineVerdict] = []
    repeats = runs
    while len(verdicts) < runs:
        verdict = await prove_here(Claim(name, devices), model, settings, argv=bootstrap_argv(python))
        if verdict.ok:
            verdicts.append(verdict)
            on_run()
        elif repeats == 0 or verdict.reason not in DISTURBED:
            raise ProofError(verdict.reason, f"this machine's own proof failed: {verdict.reason} {verdict.detail}")
        else:
            repeats -= 1
    return GpuModel(
        name=name,
        tflops16=_round(statistics.median(min(d.tflops16 or 0.0 for d in verdict.devices) for verdict in verdicts)),
        vram_gb=vram_gb,
        bandwidth_gbs=_round(
            statistics.median(min(d.bandwidth_gbs or 0.0 for d in verdict.devices) for verdict in verdicts)
        ),
    )


async def calibrate_cpu(
    *, devices: int = 2, runs: int = 3, python: str = sys.executable, on_run: Callable[[], None] = lambda: None
) -> Calibration:
    """The entry for one core of this machine as a device, with ``devices`` cores at work at once.

    Takes about two seconds a run. The statement is sized so that computing takes ``CPU_SETTINGS.compute_seconds`` on
    an honest device, within 84 MB of C.

    Raises:
        ProofError: as ``calibrate``.
    """
    model = await calibrate(
        settings=CPU_SETTINGS,
        name=CPU_MODEL,
        vram_gb=_ANY_RATE,
        devices=devices,
        runs=runs,
        python=python,
        on_run=on_run,
    )
    return cpu_calibration(model)


async def calibrate_cuda(
    *,
    devices: int = 1,
    runs: int = 3,
    python: str = sys.executable,
    settings: ProofSettings | None = None,
    on_run: Callable[[], None] = lambda: None,
) -> Calibration:
    """The entry for this machine's GPUs: one run to learn the rates, then ``runs`` of the statement they call for.

    Raises:
        ProofError: as ``calibrate``; or torch sees no GPU.
    """
    settings = settings or ProofSettings()
    found = (await devices_here("cuda", python=python)).devices
    if not found:
        raise ProofError(ProofReason.NO_GPU, f"torch sees no GPU under {python}; try --device cpu")
    name, vram_gb = found[0].name, math.floor(found[0].memory_bytes / 1e8) / 10
    largest = replace(settings, k=settings.max_k)
    first = await calibrate(
        settings=largest, name=name, vram_gb=vram_gb, devices=devices, runs=1, python=python, on_run=on_run
    )
    dims = dims_for(first, settings)
    sized = replace(settings, k=dims.k, min_passes=dims.passes)
    model = await calibrate(
        settings=sized, name=name, vram_gb=vram_gb, devices=devices, runs=runs, python=python, on_run=on_run
    )
    return Calibration(model, settings)


async def devices_here(device: DeviceKind, *, python: str = sys.executable) -> Hello:
    """What a worker says of this machine.

    Raises:
        ProofError: it does not start.
    """
    async with local_worker(bootstrap_argv(python)) as channel:
        return await Conversation(channel, SystemClock()).hello(device, 1, timeout_seconds=_HELLO_SECONDS)


def cpu_calibration(measured: GpuModel) -> Calibration:
    """Size the CPU device's statement by its measured rate."""
    assert CPU_SETTINGS.k is not None
    per_row = 2 * CPU_SETTINGS.k * CPU_SETTINGS.columns
    wanted = CPU_SETTINGS.compute_seconds * measured.tflops16 * 1e12 / per_row
    rows = min(max(round(wanted / _ROW_STEP), 1) * _ROW_STEP, _MOST_ROWS)
    settings = replace(CPU_SETTINGS, rows=rows)
    return Calibration(replace(measured, vram_gb=2 * rows * settings.columns / 1e9), settings)


def _round(value: float) -> float:
    return float(f"{value:.3g}")
