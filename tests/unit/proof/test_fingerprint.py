from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.base.reasons import ProofReason
from compute.incentive.config import load_config
from compute.proof.fingerprint import judge_device, machine_verdict, nearest_model, shared_devices, worth
from compute.proof.models import Claim, DeviceMeasurement, GpuModel, ProofSettings
from compute.proof.statement import Dims, dims_for

SETTINGS = ProofSettings()
MODELS = {
    "Small": GpuModel("Small", 50.0, 24.0, 400.0),
    "Medium": GpuModel("Medium", 100.0, 48.0, 800.0),
    "Medium+": GpuModel("Medium+", 120.0, 48.0, 850.0),
    "Large": GpuModel("Large", 400.0, 80.0, 3000.0),
}


def measured(claim: str, tflops16: float, bandwidth_gbs: float | None, index: int = 0) -> DeviceMeasurement:
    """What a device measures that was asked for the statement of ``claim``."""
    dims = dims_for(MODELS[claim], SETTINGS)
    return DeviceMeasurement(
        index=index,
        reason=ProofReason.OK,
        tflops16=tflops16,
        vram_bytes=dims.resident_bytes,
        bandwidth_gbs=bandwidth_gbs,
        compute_seconds=dims.operations / tflops16 / 1e12,
        rehash_seconds=None if bandwidth_gbs is None else dims.passes * dims.resident_bytes / bandwidth_gbs / 1e9,
    )


def judged(claim: str, tflops16: float, bandwidth_gbs: float | None) -> DeviceMeasurement:
    model = MODELS[claim]
    return judge_device(measured(claim, tflops16, bandwidth_gbs), dims_for(model, SETTINGS), model, MODELS, SETTINGS)


@pytest.mark.parametrize("name", MODELS)
def test_a_healthy_card_is_nearest_to_itself_and_passes(name: str) -> None:
    model = MODELS[name]
    found = judged(name, model.tflops16, model.bandwidth_gbs)
    assert (found.reason, found.nearest) == (ProofReason.OK, name)
    assert worth(found, model, MODELS, []) == name


@pytest.mark.parametrize("model", load_config().models.values(), ids=lambda model: model.name)
def test_every_model_of_the_table_is_worth_itself(model: GpuModel) -> None:
    config = load_config()
    dims = dims_for(model, config.proof)
    device = DeviceMeasurement(0, ProofReason.OK, tflops16=model.tflops16, vram_bytes=dims.resident_bytes)
    found = judge_device(device, dims, model, config.models, config.proof)
    assert worth(found, model, config.models, config.tolerance_pairs) == model.name


@pytest.mark.parametrize(
    ("tflops16", "bandwidth_gbs", "reason"),
    [
        (100.0, 800.0, ProofReason.OK),
        (75.0, 600.0, ProofReason.OK),
        (74.9, 800.0, ProofReason.SLOWER_THAN_CLAIMED),
        (50.0, 400.0, ProofReason.SLOWER_THAN_CLAIMED),
        (100.0, 599.0, ProofReason.SLOWER_THAN_CLAIMED),
        (1000.0, 5000.0, ProofReason.OK),
        (100.0, None, ProofReason.OK),
        (74.9, None, ProofReason.SLOWER_THAN_CLAIMED),
    ],
)
def test_rates_are_judged_against_the_claim(tflops16: float, bandwidth_gbs: float | None, reason: ProofReason) -> None:
    assert judged("Medium", tflops16, bandwidth_gbs).reason is reason


@pytest.mark.parametrize(("part", "reason"), [(0.4, ProofReason.OK), (0.6, ProofReason.NOT_RESIDENT)])
def test_a_pass_that_takes_as_long_as_computing_shows_that_c_was_not_there(part: float, reason: ProofReason) -> None:
    model = GpuModel("x", 100.0, 48.0, None)
    dims = dims_for(model, SETTINGS)
    device = DeviceMeasurement(
        0,
        ProofReason.OK,
        tflops16=100.0,
        vram_bytes=dims.resident_bytes,
        bandwidth_gbs=1.0,
        compute_seconds=4.0,
        rehash_seconds=4.0 * part * dims.passes,
    )
    assert judge_device(device, dims, model, {"x": model}, SETTINGS).reason is reason


@pytest.mark.parametrize(
    ("rate", "part", "reason"),
    [
        (0.8, 0.49, ProofReason.OK),
        (0.8, 0.51, ProofReason.NOT_RESIDENT),
        (2.0, 0.24, ProofReason.OK),
        (2.0, 0.26, ProofReason.NOT_RESIDENT),
    ],
)
def test_a_pass_is_compared_with_the_faster_of_device_and_claim(rate: float, part: float, reason: ProofReason) -> None:
    """``rate`` and ``part``, the length of a pass, are fractions of the claim's rate and time. A device that computes
    slowly on purpose must not gain time in which it computes C anew in every pass."""
    model = GpuModel("x", 100.0, 48.0, None)
    dims = dims_for(model, SETTINGS)
    seconds = dims.operations / 100e12
    device = DeviceMeasurement(
        0,
        ProofReason.OK,
        tflops16=100.0 * rate,
        vram_bytes=dims.resident_bytes,
        bandwidth_gbs=1.0,
        compute_seconds=seconds / rate,
        rehash_seconds=part * seconds * dims.passes,
    )
    assert judge_device(device, dims, model, {"x": model}, SETTINGS).reason is reason


@settings(max_examples=200)
@given(
    claim=st.sampled_from(sorted(MODELS)),
    tflops16=st.floats(1e-3, 1e4),
    bandwidth_gbs=st.none() | st.floats(1e-3, 1e5),
)
def test_nobody_is_worth_more_than_the_claim_or_the_claim_more_than_the_rate(
    claim: str, tflops16: float, bandwidth_gbs: float | None
) -> None:
    found = judged(claim, tflops16, bandwidth_gbs)
    value = MODELS[worth(found, MODELS[claim], MODELS, [])]
    assert value.tflops16 <= MODELS[claim].tflops16
    if found.reason is ProofReason.OK:
        assert tflops16 >= 0.75 * MODELS[claim].tflops16


def test_a_lesser_model_within_the_tolerance_is_worth_what_it_looks_like() -> None:
    found = judged("Medium+", 100.0, 800.0)
    assert (found.reason, found.nearest) == (ProofReason.OK, "Medium")
    assert worth(found, MODELS["Medium+"], MODELS, []) == "Medium"


@pytest.mark.parametrize(("tflops16", "value"), [(108.0, "Medium+"), (107.9, "Medium")])
def test_a_rate_within_a_tenth_of_the_claim_is_the_claim_s(tflops16: float, value: str) -> None:
    found = judged("Medium+", tflops16, 850.0)
    assert found.nearest == "Medium"
    assert worth(found, MODELS["Medium+"], MODELS, []) == value


@pytest.mark.parametrize("pair", [("Medium", "Medium+"), ("Medium+", "Medium")])
def test_models_that_nothing_separates_are_worth_the_claim(pair: tuple[str, str]) -> None:
    found = judged("Medium+", 100.0, 800.0)
    assert worth(found, MODELS["Medium+"], MODELS, [pair]) == "Medium+"


def test_nothing_measured_looks_like_nothing() -> None:
    assert nearest_model(DeviceMeasurement(0, ProofReason.TIMEOUT), MODELS, SETTINGS) is None
    assert nearest_model(DeviceMeasurement(0, ProofReason.OK, tflops16=100.0), MODELS, SETTINGS) == "Medium"


@pytest.mark.parametrize("name", ["tflops16", "compute_seconds", "rehash_seconds", "bandwidth_gbs"])
def test_what_was_not_measured_disproves_nothing(name: str) -> None:
    device = replace(measured("Large", 400.0, 3000.0), **{name: None})
    found = judge_device(device, dims_for(MODELS["Large"], SETTINGS), MODELS["Large"], MODELS, SETTINGS)
    assert found.reason is ProofReason.OK
    assert worth(found, MODELS["Large"], MODELS, []) == "Large"


def test_a_machine_is_its_proven_devices_and_the_lowest_of_their_models() -> None:
    devices = [judged("Medium+", 120.0, 850.0), judged("Medium+", 100.0, 800.0)]
    verdict = machine_verdict(Claim("Medium+", 2), devices, MODELS, [])
    assert (verdict.reason, verdict.gpu, verdict.count) == (ProofReason.OK, "Medium", 2)
    assert verdict.detail == ""


def test_a_machine_with_a_failed_device_is_not_ok_and_counts_the_others() -> None:
    good = judged("Medium", 100.0, 800.0)
    slow = judged("Medium", 50.0, 400.0)
    forged = replace(good, reason=ProofReason.WRONG_ROW)
    verdict = machine_verdict(Claim("Medium", 3), [slow, good, forged], MODELS, [])
    assert (verdict.reason, verdict.gpu, verdict.count) == (ProofReason.WRONG_ROW, "Medium", 1)


def test_the_detail_of_a_slow_machine_names_both_rates_and_what_it_looks_like() -> None:
    verdict = machine_verdict(Claim("Large", 1), [judged("Large", 100.0, 800.0)], MODELS, [])
    assert verdict.gpu is None
    assert "100 TFLOPS and 800 GB/s" in verdict.detail
    assert "400 TFLOPS and 3000 GB/s" in verdict.detail


def test_the_detail_of_several_slow_devices_has_the_lowest_of_each_rate() -> None:
    devices = [judged("Large", 100.0, 900.0), judged("Large", 110.0, 800.0)]
    assert "measured 100 TFLOPS and 800 GB/s;" in machine_verdict(Claim("Large", 2), devices, MODELS, []).detail
    nothing = [DeviceMeasurement(0, ProofReason.NOT_RESIDENT)]
    assert "measured 0 TFLOPS;" in machine_verdict(Claim("Large", 1), nothing, MODELS, []).detail


def test_no_devices_prove_nothing() -> None:
    verdict = machine_verdict(Claim("Large", 1), [], MODELS, [])
    assert (verdict.ok, verdict.count, verdict.gpu) == (False, 0, None)


def test_the_later_registered_shares_the_device() -> None:
    proven = [("first", ["a", "b"]), ("second", ["c"]), ("third", ["d", "b"]), ("fourth", ["c", "a"])]
    assert shared_devices(proven) == {"third": "b", "fourth": "c"}
    assert shared_devices([("first", ["a", "b"])]) == {}


def test_the_smallest_statement_is_judged_without_memory_to_tell_models_apart() -> None:
    cpu = ProofSettings(device="cpu", rows=100, k=64, columns=32)
    models = {"CPU core": GpuModel("CPU core", 0.1, 0.03, 1.5), "Large": MODELS["Large"]}
    device = DeviceMeasurement(0, ProofReason.OK, tflops16=0.09, vram_bytes=6400, bandwidth_gbs=1.4)
    dims = Dims(rows=100, k=64, columns=32, passes=8, tile_rows=100)
    found = judge_device(device, dims, models["Large"], models, cpu)
    assert (found.reason, found.nearest) == (ProofReason.SLOWER_THAN_CLAIMED, "CPU core")
