"""Facts about a machine -> its score. Pure.

``factor = 50 / (8 × highest base in the table)``; ``score = base × min(count, 8) × factor``, doubled while allocated:
from 0 to 50 for a free machine, to 100 for an allocated one. Every number that went into a score comes with it, so that
a miner can be told why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compute.base.reasons import ProofReason

MAX_COUNTED_GPUS = 8
FREE_MAXIMUM = 50.0
ALLOCATION_MULTIPLIER = 2.0


@dataclass(frozen=True)
class Penalty:
    """A reason to score lower: ``multiplier`` from 0 (nothing is left) to 1 (no effect)."""

    name: str
    multiplier: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.multiplier <= 1.0:
            raise ValueError(f"penalty {self.name!r}: multiplier {self.multiplier} is not from 0 to 1")


PENALIZED = Penalty("penalized", 0.0)
"""The operator of the validator has put the hotkey on the list of penalized ones."""


@dataclass(frozen=True)
class ScoreBreakdown:
    """A score and how it came about: ``total = base × count × factor × (2 if allocated) × penalties``, 0 unless ``ok``.

    ``base`` is the table's value for the proven GPU (0 if it has none), ``count`` the GPUs that count, at most 8.
    """

    base: float
    count: int
    factor: float
    allocated: bool
    penalties: tuple[Penalty, ...]
    total: float
    reason: ProofReason


def scaling_factor(gpu_scores: Mapping[str, float]) -> float:
    """What makes eight of the best GPU of the table score 50.

    Raises:
        ValueError: the table is empty, or has a value that is not a positive finite number.
    """
    for name, base in gpu_scores.items():
        if not (math.isfinite(base) and base > 0):
            raise ValueError(f"gpu_scores: {name!r} is {base}; it must be a positive number")
    if not gpu_scores:
        raise ValueError("gpu_scores is empty; it must list at least one GPU")
    return FREE_MAXIMUM / (MAX_COUNTED_GPUS * max(gpu_scores.values()))


def score(
    gpu: str | None,
    count: int,
    *,
    gpu_scores: Mapping[str, float],
    reason: ProofReason = ProofReason.OK,
    allocated: bool = False,
    penalties: Sequence[Penalty] = (),
) -> ScoreBreakdown:
    """Score one machine.

    Args:
        gpu: the model that the proof found, as the table spells it; None if it found none.
        count: how many GPUs proved themselves.
        gpu_scores: base score per model.
        reason: of the proof's verdict; anything but ``ok`` scores 0.
        allocated: whether there is evidence of a lease.
        penalties: multiply the score, each.

    Raises:
        ValueError: as ``scaling_factor``.
    """
    factor = scaling_factor(gpu_scores)
    counted = max(0, min(count, MAX_COUNTED_GPUS))
    base = gpu_scores.get(gpu, 0.0) if gpu is not None else 0.0
    if reason is ProofReason.OK and (gpu is None or counted == 0):
        reason = ProofReason.NO_GPU
    elif reason is ProofReason.OK and gpu not in gpu_scores:
        reason = ProofReason.UNKNOWN_MODEL
    total = 0.0
    if reason is ProofReason.OK:
        total = base * counted * factor
        total *= ALLOCATION_MULTIPLIER if allocated else 1.0
        total *= math.prod(penalty.multiplier for penalty in penalties)
        # The factor is rounded: eight of the best must not end a hair above the maximum.
        total = min(total, FREE_MAXIMUM * (ALLOCATION_MULTIPLIER if allocated else 1.0))
    return ScoreBreakdown(base, counted, factor, allocated, tuple(penalties), total, reason)
