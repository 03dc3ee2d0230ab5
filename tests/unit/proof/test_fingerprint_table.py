"""The shipped table as a whole: every model's hardware under every claim, with the noise of real measurements.

``pytest tests/unit/proof/test_fingerprint_table.py -s`` prints the confusion matrix.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest

from compute.config import load_config
from compute.proof.fingerprint import judge_device, worth
from compute.proof.models import DeviceMeasurement, GpuModel
from compute.proof.statement import dims_for
from compute.reasons import ProofReason

CONFIG = load_config()
MODELS = CONFIG.models
NOISE = 0.03
"""The standard deviation of a measured rate, as a fraction."""

# Every claim above the hardware, in rate or memory, that is ever paid at the claim, and what that gains in score.
# The first three are tolerance pairs of the configuration. The last is closer than the noise of measurements allows to
# tell apart, 60 and 66.4 TFLOPS with the same memory; their bandwidths, once measured, will.
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


def measure(hardware: GpuModel, claim: GpuModel, noise: random.Random) -> DeviceMeasurement | None:
    """What ``hardware`` measures as under ``claim``, or ``None`` if its memory cannot hold what is claimed."""
    dims = dims_for(claim, CONFIG.proof)
    # B, a tile and the reserve are on the card too; a statement fits the memory that it was made for.
    if hardware.vram_gb < claim.vram_gb:
        return None
    rate = hardware.tflops16 * noise.gauss(1.0, NOISE)
    seconds = dims.operations / rate / 1e12
    reads = None if hardware.bandwidth_gbs is None else hardware.bandwidth_gbs * noise.gauss(1.0, NOISE)
    # Without a figure in the table: a pass that takes a twentieth of computing, as on a healthy card.
    rehash = dims.passes * (seconds / 20 if reads is None else dims.resident_bytes / reads / 1e9)
    return DeviceMeasurement(
        index=0,
        reason=ProofReason.OK,
        tflops16=rate,
        vram_bytes=dims.resident_bytes,
        bandwidth_gbs=dims.passes * dims.resident_bytes / rehash / 1e9,
        compute_seconds=seconds,
        rehash_seconds=rehash,
    )


def paid(hardware: GpuModel, claim: GpuModel, noise: random.Random) -> str:
    """The model that is paid, or the reason why none is."""
    measured = measure(hardware, claim, noise)
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
        (hardware.name, claim.name): Counter(paid(hardware, claim, noise) for _ in range(200))
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


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_an_honest_machine_is_paid_as_itself(model: GpuModel) -> None:
    noise = random.Random(model.name)
    outcomes = Counter(paid(model, model, noise) for _ in range(3000))
    assert outcomes[model.name] >= 0.999 * 3000, outcomes


# Without bandwidths in the table a pass is bound by half of the time of computing only. A card that holds what fits and
# computes the rest again in every pass then proves these larger claims: hardware, claim, gain in score.
GAINS_WITHOUT_BANDWIDTH = {
    ("NVIDIA H100 80GB HBM3", "NVIDIA H200"): 0.7,
    ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB"): 1.9,
    ("NVIDIA A100-SXM4-40GB", "NVIDIA A100 80GB PCIe"): 1.65,
    ("NVIDIA A100-SXM4-40GB", "NVIDIA L40s"): 1.0,
    ("NVIDIA A100-SXM4-40GB", "NVIDIA L40"): 1.0,
    ("NVIDIA A100-SXM4-40GB", "NVIDIA RTX 6000 Ada Generation"): 0.9,
    ("NVIDIA A100-SXM4-40GB", "NVIDIA RTX A6000"): 0.78,
    ("NVIDIA A100-SXM4-40GB", "NVIDIA A40"): 0.39,
    ("NVIDIA RTX A5000", "NVIDIA RTX A6000"): 0.42,
    ("NVIDIA RTX A5000", "NVIDIA A40"): 0.03,
    ("NVIDIA RTX 4000 Ada Generation", "NVIDIA RTX A6000"): 0.78,
    ("NVIDIA RTX 4000 Ada Generation", "NVIDIA RTX A5000"): 0.36,
    ("NVIDIA RTX 4000 Ada Generation", "NVIDIA A40"): 0.39,
    ("NVIDIA RTX 4000 Ada Generation", "NVIDIA GeForce RTX 3090"): 0.43,
    ("NVIDIA RTX 4000 Ada Generation", "NVIDIA L4"): 0.34,
    ("NVIDIA RTX 4090", "NVIDIA L40"): 0.32,
    ("NVIDIA RTX 4090", "NVIDIA RTX 6000 Ada Generation"): 0.22,
    ("NVIDIA RTX 4090", "NVIDIA RTX A6000"): 0.1,
    ("NVIDIA GeForce RTX 3090", "NVIDIA RTX A6000"): 0.35,
}


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


def recomputing(hardware: GpuModel, claim: GpuModel) -> DeviceMeasurement:
    """The best that ``hardware`` can do under a claim of more memory: C in part, as slow as the claim allows."""
    dims = dims_for(claim, CONFIG.proof)
    missing = max(0.0, (claim.vram_gb - hardware.vram_gb) * 1e9 / dims.resident_bytes)
    rate = min(hardware.tflops16, claim.tflops16 * (1 - CONFIG.proof.time_tolerance) * 1.01)
    rehash = dims.passes * missing * dims.operations / hardware.tflops16 / 1e12
    return DeviceMeasurement(
        index=0,
        reason=ProofReason.OK,
        tflops16=rate,
        vram_bytes=dims.resident_bytes,
        bandwidth_gbs=dims.passes * dims.resident_bytes / max(rehash, 1e-3) / 1e9,
        compute_seconds=dims.operations / rate / 1e12,
        rehash_seconds=rehash,
    )


def gains_by_recomputing(bandwidths: Mapping[str, float]) -> dict[tuple[str, str], float]:
    found = {}
    for hardware in MODELS.values():
        for claim in MODELS.values():
            if claim.vram_gb <= hardware.vram_gb or claim.score <= hardware.score:
                continue
            judged_as = replace(claim, bandwidth_gbs=bandwidths.get(claim.name))
            measured = recomputing(hardware, claim)
            device = judge_device(measured, dims_for(claim, CONFIG.proof), judged_as, MODELS, CONFIG.proof)
            if device.reason is ProofReason.OK:
                value = worth(device, claim, MODELS, CONFIG.tolerance_pairs)
                gain = MODELS[value].score - hardware.score
                if gain > 0:
                    found[hardware.name, claim.name] = round(gain, 2)
    return found


def test_what_a_table_without_bandwidths_lets_through() -> None:
    assert gains_by_recomputing({}) == GAINS_WITHOUT_BANDWIDTH


def test_with_bandwidths_nobody_recomputes_what_does_not_fit() -> None:
    """Even where a figure is only half of what the card's data sheet says.

    But for one without a score that computes six times faster than what it plays, and lacks an eighth of its memory.
    """
    unscored = "NVIDIA A100-SXM4-40GB"
    assert MODELS.keys() == DATA_SHEET_GBS.keys()
    assert gains_by_recomputing({name: figure / 2 for name, figure in DATA_SHEET_GBS.items()}) == {
        (unscored, "NVIDIA RTX A6000"): 0.78,
        (unscored, "NVIDIA A40"): 0.39,
    }


def print_matrix(matrix: dict[tuple[str, str], Counter[str]]) -> None:
    """Rows are the hardware, columns the claim; a cell says what is paid most often, and how often in 100."""
    symbols = {"slower_than_claimed": "slow", "not_resident": "memory"}
    names = list(MODELS)
    print("\n" + " " * 12 + "".join(f"{short(claim):>16}" for claim in names))
    for hardware in names:
        cells = []
        for claim in names:
            (outcome, count), *_ = matrix[hardware, claim].most_common(1)
            what = "claim" if outcome == claim else symbols.get(outcome, short(outcome))
            cells.append(f"{what} {count / 2:.0f}")
        print(f"{short(hardware):<12}" + "".join(f"{cell:>16}" for cell in cells))
