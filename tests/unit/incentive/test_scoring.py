from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.base.reasons import ProofReason
from compute.incentive.scoring import PENALIZED, Penalty, ScoreBreakdown, scaling_factor, score

# The table of the subnet's documentation, and for each model the scores of one free card and of eight allocated ones.
TABLE = {
    "NVIDIA H200": 4.00,
    "NVIDIA H100 80GB HBM3": 3.30,
    "NVIDIA H100": 2.80,
    "NVIDIA A100-SXM4-80GB": 1.90,
    "NVIDIA A100 80GB PCIe": 1.65,
    "NVIDIA L40s": 1.10,
    "NVIDIA L40": 1.00,
    "NVIDIA RTX 6000 Ada Generation": 0.90,
    "NVIDIA RTX A6000": 0.78,
    "NVIDIA RTX 4090": 0.68,
    "NVIDIA GeForce RTX 3090": 0.43,
    "NVIDIA L4": 0.43,
    "NVIDIA A40": 0.39,
    "NVIDIA RTX A5000": 0.36,
    "NVIDIA RTX A4500": 0.34,
}
EXPECTED = {
    "NVIDIA H200": (6.25, 100.0),
    "NVIDIA H100 80GB HBM3": (5.15625, 82.5),
    "NVIDIA H100": (4.375, 70.0),
    "NVIDIA A100-SXM4-80GB": (2.96875, 47.5),
    "NVIDIA A100 80GB PCIe": (2.578125, 41.25),
    "NVIDIA L40s": (1.71875, 27.5),
    "NVIDIA L40": (1.5625, 25.0),
    "NVIDIA RTX 6000 Ada Generation": (1.40625, 22.5),
    "NVIDIA RTX A6000": (1.21875, 19.5),
    "NVIDIA RTX 4090": (1.0625, 17.0),
    "NVIDIA GeForce RTX 3090": (0.671875, 10.75),
    "NVIDIA L4": (0.671875, 10.75),
    "NVIDIA A40": (0.609375, 9.75),
    "NVIDIA RTX A5000": (0.5625, 9.0),
    "NVIDIA RTX A4500": (0.53125, 8.5),
}
BAD_REASONS = [reason for reason in ProofReason if reason is not ProofReason.OK]
models = st.sampled_from(sorted(TABLE))


def test_eight_free_h200_score_50_exactly() -> None:
    assert score("NVIDIA H200", 8, gpu_scores=TABLE) == ScoreBreakdown(
        base=4.0, count=8, factor=1.5625, allocated=False, penalties=(), total=50.0, reason=ProofReason.OK
    )


def test_two_allocated_rtx_4090_score_4_25_exactly() -> None:
    assert score("NVIDIA RTX 4090", 2, gpu_scores=TABLE, allocated=True) == ScoreBreakdown(
        base=0.68, count=2, factor=1.5625, allocated=True, penalties=(), total=4.25, reason=ProofReason.OK
    )


@pytest.mark.parametrize("gpu", TABLE)
def test_every_row_of_the_table(gpu: str) -> None:
    one_free, eight_allocated = EXPECTED[gpu]
    assert score(gpu, 1, gpu_scores=TABLE).total == pytest.approx(one_free, abs=1e-12)
    assert score(gpu, 8, gpu_scores=TABLE, allocated=True).total == pytest.approx(eight_allocated, abs=1e-12)


@pytest.mark.parametrize("reason", BAD_REASONS)
def test_a_proof_that_is_not_ok_scores_nothing_and_keeps_its_reason(reason: ProofReason) -> None:
    breakdown = score("NVIDIA H200", 8, gpu_scores=TABLE, reason=reason, allocated=True)
    assert breakdown.total == 0.0
    assert breakdown.reason is reason
    assert (breakdown.base, breakdown.count) == (4.0, 8)
    for gpu, count in ((None, 0), ("NVIDIA GTX 970", 8)):
        assert score(gpu, count, gpu_scores=TABLE, reason=reason).reason is reason


@pytest.mark.parametrize(
    ("gpu", "count", "reason"),
    [
        (None, 8, ProofReason.NO_GPU),
        ("NVIDIA H200", 0, ProofReason.NO_GPU),
        ("NVIDIA H200", -1, ProofReason.NO_GPU),
        ("NVIDIA GTX 970", 8, ProofReason.UNKNOWN_MODEL),
        ("NVIDIA H200 ", 8, ProofReason.UNKNOWN_MODEL),
        ("", 1, ProofReason.UNKNOWN_MODEL),
    ],
)
def test_what_cannot_be_scored_says_why(gpu: str | None, count: int, reason: ProofReason) -> None:
    breakdown = score(gpu, count, gpu_scores=TABLE)
    assert (breakdown.total, breakdown.reason) == (0.0, reason)
    assert breakdown.base == TABLE.get(gpu or "", 0.0)


@given(gpu=models, count=st.integers(0, 100), allocated=st.booleans())
@settings(max_examples=100)
def test_monotone_in_the_count_up_to_eight_and_bounded(gpu: str, count: int, allocated: bool) -> None:
    here = score(gpu, count, gpu_scores=TABLE, allocated=allocated).total
    more = score(gpu, count + 1, gpu_scores=TABLE, allocated=allocated).total
    assert 0.0 <= here <= (100.0 if allocated else 50.0)
    assert more >= here
    assert (more > here) is (count < 8)


@given(gpu=models, count=st.integers(1, 20))
@settings(max_examples=60)
def test_allocation_doubles(gpu: str, count: int) -> None:
    free = score(gpu, count, gpu_scores=TABLE).total
    assert score(gpu, count, gpu_scores=TABLE, allocated=True).total == 2 * free


@given(
    table=st.dictionaries(st.text(min_size=1, max_size=5), st.floats(1e-3, 1e3), min_size=1, max_size=6),
    count=st.integers(0, 20),
    allocated=st.booleans(),
)
@settings(max_examples=100)
def test_any_table_ends_at_50_and_100(table: dict[str, float], count: int, allocated: bool) -> None:
    for gpu in table:
        assert 0.0 <= score(gpu, count, gpu_scores=table, allocated=allocated).total <= (100.0 if allocated else 50.0)
    best = max(table, key=lambda gpu: table[gpu])
    assert score(best, 8, gpu_scores=table).total == pytest.approx(50.0)


def test_rounding_lifts_nobody_above_the_maximum() -> None:
    factor = scaling_factor({"a": 0.3})
    assert 8 * 0.3 * factor > 50.0
    assert score("a", 8, gpu_scores={"a": 0.3}).total == 50.0
    assert score("a", 8, gpu_scores={"a": 0.3}, allocated=True).total == 100.0


@given(first=models, second=models, count=st.integers(1, 8))
@settings(max_examples=60)
def test_a_better_card_never_scores_less(first: str, second: str, count: int) -> None:
    if TABLE[first] >= TABLE[second]:
        assert score(first, count, gpu_scores=TABLE).total >= score(second, count, gpu_scores=TABLE).total


def test_penalties_multiply() -> None:
    half = Penalty("late", 0.5)
    assert score("NVIDIA H200", 8, gpu_scores=TABLE, penalties=[half, half]).total == 12.5
    breakdown = score("NVIDIA H200", 8, gpu_scores=TABLE, allocated=True, penalties=[half, PENALIZED])
    assert breakdown.total == 0.0
    assert breakdown.penalties == (half, PENALIZED)
    assert breakdown.reason is ProofReason.OK
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="multiplier"):
            Penalty("wrong", bad)


@pytest.mark.parametrize("table", [{}, {"a": 0.0}, {"a": 1.0, "b": -1.0}, {"a": float("nan")}, {"a": float("inf")}])
def test_a_table_that_cannot_scale_is_refused(table: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="gpu_scores"):
        scaling_factor(table)
