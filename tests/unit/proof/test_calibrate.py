from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from compute.base.errors import ProofError
from compute.base.reasons import ProofReason
from compute.incentive.config import parse_config
from compute.proof.calibrate import Calibration, calibrate, cpu_calibration, devices_here
from compute.proof.models import CPU_MODEL, GpuModel, ProofSettings
from compute.proof.statement import dims_for
from tests.waiting import DEADLINE_SECONDS


def core(tflops16: float) -> GpuModel:
    return GpuModel(CPU_MODEL, tflops16=tflops16, vram_gb=1.0, bandwidth_gbs=1.5)


@pytest.mark.parametrize("tflops16", [0.001, 0.02, 0.1, 0.3, 2.0])
def test_the_statement_follows_the_rate_within_bounds(tflops16: float) -> None:
    found = cpu_calibration(core(tflops16))
    dims = dims_for(found.model, found.settings)
    seconds = dims.operations / (tflops16 * 1e12)
    if 0.02 <= tflops16 <= 0.25:
        assert 0.8 < seconds < 1.6
    assert 1024 <= dims.rows <= 40960
    # C, B and the tiles of one device.
    entries = dims.k * dims.columns + dims.tile_rows * (dims.k + dims.columns)
    assert dims.resident_bytes + 4 * entries < 150e6


def test_the_entries_are_a_valid_configuration_of_the_same_proof() -> None:
    found = cpu_calibration(core(0.123))
    performance = {**found.performance_entry(), "gpu_scores": {CPU_MODEL: 1.0}}
    config = parse_config(yaml.safe_dump({"gpu_performance": performance, "merkle_proof": found.settings_entry()}))
    assert config.models == {CPU_MODEL: replace(found.model, score=1.0)}
    assert config.proof == found.settings


def test_settings_that_are_defaults_are_left_out() -> None:
    assert Calibration(core(1.0), ProofSettings()).settings_entry() == {}


async def test_a_calibration_measures_the_real_worker() -> None:
    # A pass is a few hundredths of computing, and they are many, so that a busy computer does not make them a half.
    settings = ProofSettings(
        device="cpu",
        rows=2048,
        k=4096,
        columns=256,
        tile_rows=512,
        min_passes=64,
        max_passes=64,
        phase_deadline_floor_seconds=DEADLINE_SECONDS,
    )
    runs: list[int] = []
    model = await calibrate(
        settings=settings, name=CPU_MODEL, vram_gb=0.5, devices=2, runs=1, on_run=lambda: runs.append(1)
    )
    assert (model.name, model.vram_gb, runs) == (CPU_MODEL, 0.5, [1])
    assert 0 < model.tflops16 < 100
    assert model.bandwidth_gbs is not None


async def test_a_python_without_a_worker_fails_with_a_reason() -> None:
    with pytest.raises(ProofError) as caught:
        await devices_here("cpu", python="/bin/false")
    assert caught.value.reason is ProofReason.WORKER_FAILED
