"""The shipped table as a whole: every model's hardware under every claim, with the noise of real measurements.

``pytest tests/unit/proof/test_fingerprint_table.py -s`` prints the confusion matrix.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest

from compute.base.reasons import ProofReason
from compute.incentive.config import load_config
from compute.proof.fingerprint import judge_device, worth
from compute.proof.models import DeviceMeasurement, GpuModel
from compute.proof.statement import dims_for

CONFIG = load_config()
MODELS = CONFIG.models
NOISE = 0.03
"""The standard deviation of a measured rate, as a fraction."""
DRAWS = 30
"""How often each claim is measured on each hardware, for each of ``READS``."""
READS = (0.55, 0.7, 0.9)
"""Which part of its data sheet's bandwidth a card may reach; nobody has measured it."""

DATA_SHEET_GBS = {
    "NVIDIA H200": 4800.0,
    "NVIDIA H100 80GB HBM3": 3350.0,
    "NVIDIA H100": 2000.0,
    "NVIDIA A100-SXM4-80GB": 2039.0,
    "NVIDIA A100 80GB PCIe": 1935.0,
    "NVIDIA A100-SXM4-40GB": 1555.0,
    "NVIDIA L40s": 864.0,
    "NVIDIA L40": 864.0,
    "NVIDIA RTX 6000 Ada Generation": 960.0,
    "NVIDIA RTX A6000": 768.0,
    "NVIDIA RTX A5000": 768.0,
    "NVIDIA RTX A4500": 640.0,
    "NVIDIA RTX 4000 Ada Generation": 360.0,
    "NVIDIA A40": 696.0,
    "NVIDIA RTX 4090": 1008.0,
    "NVIDIA GeForce RTX 3090": 936.0,
    "NVIDIA L4": 300.0,
}

# Every claim above the hardware, in rate or memory, that is ever paid at the claim, and what that gains in score.
# The first three are tolerance pairs of the configuration. The last is closer than the noise of measurements allows to
# tell apart, 60 and 66.4 TFLOPS with the same memory.
GAINS_ABOVE = {
    ("NVIDIA A40", "NVIDIA RTX A6000"): 0.39,
    ("NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-80GB"): 0.25,
    ("NVIDIA RTX 6000 Ada Generation", "NVIDIA L40"): 0.10,
    ("NVIDIA RTX A5000", "NVIDIA GeForce RTX 3090"): 0.07,
}
# Claims of less hardware that the table scores higher than the more: what the scores say, and no matter of proof. Two
# cards have no score of their own.
GAINS_BELOW = {
    ("NVIDIA RTX A5000", "NVIDIA L4"): 0.07,
    ("NVIDIA A100-SXM4-40GB", "NVIDIA RTX 4090"): 0.68,
    ("NVIDIA A100-SXM4-40GB", "NVIDIA GeForce RTX 3090"): 0.43,
    ("NVIDIA A100-SXM4-40GB", "NVIDIA L4"): 0.43,
    ("NVIDIA A100-SXM4-40GB", "NVIDIA RTX A5000"): 0.36,
    ("NVIDIA A100-SXM4-40GB", "NVIDIA RTX A4500"): 0.34,
    ("NVIDIA RTX 4000 Ada Generation", "NVIDIA RTX A4500"): 0.34,
}


def measure(hardware: GpuModel, claim: GpuModel, noise: random.Random, reads: float) -> DeviceMeasurement | None:
    """What ``hardware`` measures as under ``claim``, or ``None`` if its memory cannot hold what is claimed.

    ``reads`` is the part of its data sheet's bandwidth that a pass reaches.
    """
    dims = dims_for(claim, CONFIG.proof)
    # B, a tile and the reserve are on the card too; a statement fits the memory that it was made for.
    if hardware.vram_gb < claim.vram_gb:
        return None
    rate = hardware.tflops16 * noise.gauss(1.0, NOISE)
    seconds = dims.operations / rate / 1e12
    bandwidth = reads * DATA_SHEET_GBS[hardware.name] * noise.gauss(1.0, NOISE)
    rehash = dims.passes * dims.resident_bytes / bandwidth / 1e9
    return DeviceMeasurement(
        index=0,
        reason=ProofReason.OK,
        tflops16=rate,
        vram_bytes=dims.resident_bytes,
        bandwidth_gbs=bandwidth,
        compute_seconds=seconds,
        rehash_seconds=rehash,
    )


def paid(hardware: GpuModel, claim: GpuModel, noise: random.Random, reads: float) -> str:
    """The model that is paid, or the reason why none is."""
    measured = measure(hardware, claim, noise, reads)
    if measured is None:
        return str(ProofReason.NOT_RESIDENT)
    found = judge_device(measured, dims_for(claim, CONFIG.proof), claim, MODELS, CONFIG.proof)
    if found.reason is not ProofReason.OK:
        return str(found.reason)
    return worth(found, claim, MODELS, CONFIG.tolerance_pairs)


@pytest.fixture(scope="module")
def matrix() -> dict[tuple[str, str], Counter[str]]:
    """Hardware and claim: how often what is paid."""
    noise = random.Random(20240229)
    return {
        (hardware.name, claim.name): Counter(
            paid(hardware, claim, noise, reads) for reads in READS for _ in range(DRAWS)
        )
        for hardware in MODELS.values()
        for claim in MODELS.values()
    }


def short(name: str) -> str:
    return name.removeprefix("NVIDIA ").removeprefix("GeForce ").replace(" Generation", "").replace(" 80GB", "")[:11]


def gains(matrix: dict[tuple[str, str], Counter[str]], *, above: bool) -> dict[tuple[str, str], float]:
    """Claims that are paid, ever, as a model of a higher score than the hardware's, and by how much."""
    found = {}
    for (hardware, claim), outcomes in matrix.items():
        has, says = MODELS[hardware], MODELS[claim]
        best = max((MODELS[name].score for name in outcomes.keys() & MODELS.keys()), default=0.0)
        is_above = says.tflops16 > has.tflops16 or says.vram_gb > has.vram_gb
        if best > has.score and is_above is above:
            found[hardware, claim] = round(best - has.score, 2)
    return found


def test_a_claim_above_the_hardware_is_not_paid_at_the_claim(matrix: dict[tuple[str, str], Counter[str]]) -> None:
    print_matrix(matrix)
    assert gains(matrix, above=True) == GAINS_ABOVE


def test_a_claim_below_the_hardware_gains_only_where_the_scores_say_so(
    matrix: dict[tuple[str, str], Counter[str]],
) -> None:
    assert gains(matrix, above=False) == GAINS_BELOW


def test_nothing_is_paid_above_the_claim(matrix: dict[tuple[str, str], Counter[str]]) -> None:
    for (_, claim), outcomes in matrix.items():
        for name in outcomes.keys() & MODELS.keys():
            assert MODELS[name].score <= MODELS[claim].score


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_an_honest_machine_is_paid_as_itself(model: GpuModel, reads: float) -> None:
    noise = random.Random(model.name)
    # Another model is within the noise of the RTX 3090: three deviations of one side leave 0.13 %.
    draws, most = (3000, 9) if model.name == "NVIDIA GeForce RTX 3090" else (300, 0)
    outcomes = Counter(paid(model, model, noise, reads) for _ in range(draws))
    assert outcomes[model.name] >= draws - most, outcomes


def recomputing(hardware: GpuModel, claim: GpuModel) -> DeviceMeasurement:
    """The best that ``hardware`` can do under a claim of more memory: it holds what fits and computes the rest again.

    In every pass, a tenth faster than the table says of it; and the first time as slowly as the claim allows.
    """
    dims = dims_for(claim, CONFIG.proof)
    missing = max(0.0, (claim.vram_gb - hardware.vram_gb) * 1e9 / dims.resident_bytes)
    rate = min(hardware.tflops16, claim.tflops16 * (1 - CONFIG.proof.time_tolerance) * 1.01)
    rehash = dims.passes * missing * dims.operations / (1.1 * hardware.tflops16) / 1e12
    return DeviceMeasurement(
        index=0,
        reason=ProofReason.OK,
        tflops16=rate,
        vram_bytes=dims.resident_bytes,
        bandwidth_gbs=dims.passes * dims.resident_bytes / max(rehash, 1e-3) / 1e9,
        compute_seconds=dims.operations / rate / 1e12,
        rehash_seconds=rehash,
    )


def gains_by_recomputing(models: Mapping[str, GpuModel]) -> dict[tuple[str, str], float]:
    found = {}
    for hardware in models.values():
        for claim in models.values():
            if claim.vram_gb <= hardware.vram_gb or claim.score <= hardware.score:
                continue
            measured = recomputing(hardware, claim)
            device = judge_device(measured, dims_for(claim, CONFIG.proof), claim, models, CONFIG.proof)
            if device.reason is ProofReason.OK:
                value = worth(device, claim, models, CONFIG.tolerance_pairs)
                gain = models[value].score - hardware.score
                if gain > 0:
                    found[hardware.name, claim.name] = round(gain, 2)
    return found


def test_nobody_computes_again_in_every_pass_what_does_not_fit() -> None:
    assert gains_by_recomputing(MODELS) == {}


def test_without_bandwidths_many_would() -> None:
    """Why the table has one for every model that it names."""
    without = {name: replace(model, bandwidth_gbs=None) for name, model in MODELS.items()}
    assert gains_by_recomputing(without)["NVIDIA H100 80GB HBM3", "NVIDIA H200"] == 0.7


def test_the_bandwidths_leave_an_honest_card_half_of_its_memory_s_speed_to_lose() -> None:
    least = 1 - CONFIG.proof.time_tolerance
    parts = {name: least * (model.bandwidth_gbs or 0.0) / DATA_SHEET_GBS[name] for name, model in MODELS.items()}
    assert parts == pytest.approx(dict.fromkeys(MODELS, 0.45))


def print_matrix(matrix: dict[tuple[str, str], Counter[str]]) -> None:
    """Rows are the hardware, columns the claim; a cell says what is paid most often, and how often in 100 times."""
    symbols = {"slower_than_claimed": "slow", "not_resident": "memory"}
    names = list(MODELS)
    print("\n" + " " * 12 + "".join(f"{short(claim):>16}" for claim in names))
    for hardware in names:
        cells = []
        for claim in names:
            (outcome, count), *_ = matrix[hardware, claim].most_common(1)
            what = "claim" if outcome == claim else symbols.get(outcome, short(outcome))
            cells.append(f"{what} {100 * count / (len(READS) * DRAWS):.0f}")
        print(f"{short(hardware):<12}" + "".join(f"{cell:>16}" for cell in cells))
