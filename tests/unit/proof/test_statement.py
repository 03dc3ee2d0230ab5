from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.base.errors import ConfigError
from compute.incentive.config import load_config
from compute.proof.models import GpuModel, ProofSettings
from compute.proof.statement import compute_deadline_seconds, dims_for, rehash_deadline_seconds

SETTINGS = ProofSettings()
MODELS = load_config().models


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_every_model_of_the_table_has_a_statement_that_fits_and_lasts(model: GpuModel) -> None:
    dims = dims_for(model, SETTINGS)
    # Where the largest K is reached first, a product still lasts many round trips.
    least = SETTINGS.compute_seconds if dims.k < SETTINGS.max_k else 4.0
    assert dims.operations / (model.tflops16 * 1e12) >= least
    buffers = 2 * dims.k * dims.columns + dims.tile_rows * (2 * dims.k + 4 * dims.columns)
    assert dims.resident_bytes + buffers < (model.vram_gb - SETTINGS.reserved_gb) * 1e9
    # A card of three quarters of the memory could not hold it.
    assert dims.resident_bytes > 0.6 * model.vram_gb * 1e9
    assert dims.rows % 1024 == 0
    assert dims.k <= SETTINGS.max_k


@settings(max_examples=100)
@given(
    tflops16=st.floats(1, 5000),
    vram_gb=st.floats(12, 300),
    bandwidth_gbs=st.none() | st.floats(10, 20000),
)
def test_any_model_has_a_statement_within_its_memory(
    tflops16: float, vram_gb: float, bandwidth_gbs: float | None
) -> None:
    dims = dims_for(GpuModel("x", tflops16, vram_gb, bandwidth_gbs), SETTINGS)
    assert dims.resident_bytes < (vram_gb - SETTINGS.reserved_gb) * 1e9
    assert SETTINGS.min_passes <= dims.passes <= SETTINGS.max_passes
    assert dims.tile_rows <= dims.rows


def test_k_is_the_least_that_lasts() -> None:
    model = GpuModel("x", 44.0, 20.9, None)
    dims = dims_for(model, SETTINGS)
    assert dims.k < SETTINGS.max_k
    shorter = dims_for(model, ProofSettings(k=dims.k - 1024))
    assert shorter.operations / (model.tflops16 * 1e12) < SETTINGS.compute_seconds


def test_passes_last_as_long_as_asked() -> None:
    model = GpuModel("x", 600.0, 150.0, 4000.0)
    dims = dims_for(model, SETTINGS)
    assert dims.passes * dims.resident_bytes / (4000 * 1e9) >= SETTINGS.rehash_seconds


def test_a_card_without_room_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="4 GB"):
        dims_for(GpuModel("tiny", 10.0, 4.0, None), SETTINGS)


def test_given_rows_and_k_are_taken_whatever_the_claim() -> None:
    small = ProofSettings(device="cpu", rows=100, k=64, columns=32)
    dims = dims_for(GpuModel("NVIDIA H200", 610.0, 150.0, None), small)
    assert (dims.rows, dims.k, dims.columns, dims.tile_rows) == (100, 64, 32, 100)


def test_deadlines_leave_a_slow_machine_time_to_learn_its_rate() -> None:
    model = GpuModel("x", 100.0, 80.0, 1000.0)
    dims = dims_for(model, SETTINGS)
    expected = dims.operations / 1e14
    assert compute_deadline_seconds(dims, model, SETTINGS) == pytest.approx(max(20.0, 3 * expected))
    assert rehash_deadline_seconds(dims, model, SETTINGS) >= 20.0
    assert compute_deadline_seconds(dims, GpuModel("y", 1e6, 80.0, None), SETTINGS) == 20.0


def test_an_answer_has_one_size() -> None:
    dims = dims_for(MODELS["NVIDIA H200"], SETTINGS)
    rows = [0, dims.rows - 1, *range(1000, 1022)]
    assert dims.opened_bytes(rows, 3) == 24 * 4 * 32768 + 24 * 4 * (8 * 1024 + 32 * 12)


def test_the_last_block_of_an_answer_may_be_short() -> None:
    dims = dims_for(GpuModel("x", 1.0, 1.0, None), ProofSettings(device="cpu", rows=1030, k=2, columns=2))
    assert dims.opened_bytes([1029], 3) == 8 + 4 * (6 * 8 + 32)
