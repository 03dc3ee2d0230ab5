"""Scores → the weights that the chain holds (pure). Setting, reading back and the journal are the validator's.

The chain stores u16 numbers scaled so that the largest is 65535; only their ratios matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

U16_MAX = 65_535


@dataclass(frozen=True)
class WeightRules:
    """What the chain asks of a weight vector: the fewest entries, and the largest share (0 to 1) of one entry."""

    min_allowed_weights: int = 1
    max_weight_share: float = 1.0


def normalise(scores: Mapping[int, float]) -> dict[int, float]:
    """Scores by uid → L1-normalised weights by uid, zeros dropped; empty where nobody scores.

    Raises:
        ValueError: a score is negative or not a number.
    """
    for uid, score in scores.items():
        if not math.isfinite(score) or score < 0:
            raise ValueError(f"score of uid {uid} is {score!r}; scores are finite and at least 0")
    total = math.fsum(scores.values())
    if total <= 0:
        return {}
    # A share may round to nothing although its score did not.
    return {uid: score / total for uid, score in sorted(scores.items()) if score / total > 0}


def to_chain(scores: Mapping[int, float], rules: WeightRules, uids: int) -> dict[int, int]:
    """The u16 weights by uid that the chain shall hold for these scores: what is sent, and what is read back.

    A share above ``max_weight_share`` is cut to it. Where fewer than ``min_allowed_weights`` uids score, the vector is
    filled with the smallest weight (1 of 65535, 0.0015 % of the best) at the lowest other uids: the chain takes no
    shorter one. ``uids`` is the number of uids on the subnet; a uid at or above it has been pruned and is dropped.
    """
    weights = _capped(normalise({uid: score for uid, score in scores.items() if uid < uids}), rules.max_weight_share)
    if not weights:
        return {}
    top = max(weights.values())
    chain = {uid: max(1, round(weight / top * U16_MAX)) for uid, weight in weights.items()}
    for uid in range(uids):
        if len(chain) >= rules.min_allowed_weights:
            break
        chain.setdefault(uid, 1)
    return dict(sorted(chain.items()))


def _capped(weights: dict[int, float], limit: float) -> dict[int, float]:
    """Cut every share to ``limit`` of the sum, as the chain measures it: after the cut."""
    if not weights or limit * len(weights) <= 1.0:
        # So few entries that only the equal split comes near the limit.
        return dict.fromkeys(weights, 1.0) if weights and limit < 1.0 else weights
    capped: set[int] = set()
    while True:
        free = math.fsum(weight for uid, weight in weights.items() if uid not in capped)
        room = 1.0 - limit * len(capped)
        over = {uid for uid, weight in weights.items() if uid not in capped and weight / free * room > limit}
        if not over:
            return {uid: limit if uid in capped else weight / free * room for uid, weight in weights.items()}
        capped |= over


def matches(expected: Mapping[int, int], held: Mapping[int, int]) -> bool:
    """Whether the chain holds what was sent, to one unit of 65535 per entry (the chain scales once more)."""
    held = {uid: weight for uid, weight in held.items() if weight > 0}
    return expected.keys() == held.keys() and all(abs(expected[uid] - held[uid]) <= 1 for uid in expected)
