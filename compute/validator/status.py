"""What a validator's database says of every miner, one row each: for ``--status``, the demo and scripts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compute.reasons import ProofReason
from compute.specs import SpecsError, parse_specs
from compute.validator.facts import FactStore, VerdictHistory, WeightsState
from compute.validator.standing import claim_of


@dataclass(frozen=True)
class MinerRow:
    """One miner as the last scores saw it. ``weight`` is the share of 1 that the chain was last seen to hold."""

    uid: int
    hotkey: str
    claim_gpu: str | None
    claim_count: int
    gpu: str | None
    count: int
    reason: ProofReason
    tflops16: float | None
    score: float
    weight: float
    allocated: bool
    proven_at: float | None
    detail: str

    def to_json(self) -> dict[str, Any]:
        """Plain data, stable keys."""
        return {
            "uid": self.uid,
            "hotkey": self.hotkey,
            "claim": {"gpu": self.claim_gpu, "count": self.claim_count},
            "verdict": {"gpu": self.gpu, "count": self.count, "reason": self.reason.value},
            "tflops16": self.tflops16,
            "score": self.score,
            "weight": self.weight,
            "allocated": self.allocated,
            "proven_at": self.proven_at,
            "detail": self.detail,
        }


def miner_rows(facts: FactStore) -> list[MinerRow]:
    """All miners, by uid. Reads only.

    Raises:
        StoreError: the database cannot be read.
    """
    specs = facts.specs()
    histories = facts.histories()
    confirmed = facts.last_weights((WeightsState.CONFIRMED,))
    held = confirmed.weights if confirmed is not None else {}
    total = sum(held.values())
    rows = []
    for score in facts.scores():
        fact = specs.get(score.hotkey)
        history = histories.get(score.hotkey, VerdictHistory())
        claim_gpu, claim_count = _claim(fact.specs if fact is not None else None)
        latest = history.latest
        paid = bool(score.total) or score.reason is ProofReason.OK
        rows.append(
            MinerRow(
                uid=score.uid,
                hotkey=score.hotkey,
                claim_gpu=claim_gpu,
                claim_count=claim_count,
                gpu=score.breakdown.get("gpu") if paid else latest.gpu if latest is not None else None,
                count=int(score.breakdown.get("count", 0)) if paid else latest.count if latest is not None else 0,
                reason=score.reason,
                tflops16=latest.tflops16 if latest is not None else None,
                score=score.total,
                weight=held.get(score.uid, 0) / total if total else 0.0,
                allocated=bool(score.breakdown.get("allocated")),
                proven_at=latest.at if latest is not None else None,
                detail=latest.detail if latest is not None else fact.detail if fact is not None else "",
            )
        )
    return rows


def _claim(specs: str | None) -> tuple[str | None, int]:
    if specs is None:
        return None, 0
    try:
        claim = claim_of(parse_specs(specs), {})
    except SpecsError:
        return None, 0
    return (claim.gpu, claim.count) if claim is not None else (None, 0)
