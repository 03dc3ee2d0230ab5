"""What a validator's database says, printed: ``--status`` and ``explain``. Neither chain nor SDK is needed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from compute.base.clock import duration, utc_short
from compute.base.console import Column, Output
from compute.base.errors import ComputeError, NotFound, StoreEmpty
from compute.base.process import EXIT_CONFIG, EXIT_OK
from compute.base.reasons import ProofReason
from compute.base.store import Database
from compute.incentive.config import load_config
from compute.validator.explain import Explanation, explain
from compute.validator.options import ValidatorOptions
from compute.validator.store import FactStore, VerdictHistory, WeightsState
from compute.wire.specs import SpecsError, claim_of, parse_specs

STATUS_COLUMNS = (
    Column("uid", right=True),
    Column("hotkey", drop_order=6),
    Column("claims", drop_order=4),
    Column("verdict"),
    Column("reason"),
    Column("TFLOPS", drop_order=7, right=True),
    Column("score", right=True),
    Column("weight", right=True),
    Column("leased", drop_order=5),
    Column("last proof", drop_order=3, right=True),
)
EVENT_COLUMNS = (
    Column("UTC"),
    Column("block", drop_order=1, right=True),
    Column("event"),
    Column("details", wrap=True),
)


def status(options: ValidatorOptions, output: Output | None = None) -> int:
    """Print what the database knows of every miner; returns the exit code."""
    output = output or Output(sys.stdout, sys.stderr, as_json=options.json)
    rows: list[MinerRow] = []
    try:
        # Before its first start, and at its beginning, a validator knows nothing, which is no error.
        if options.database.exists():
            with suppress(StoreEmpty), _reading(options) as database:
                rows = miner_rows(FactStore(database))
    except ComputeError as error:
        output.error(str(error), reason=None, advice="Name the validator's database with --database.")
        return EXIT_CONFIG
    if options.json:
        output.data([row.to_json() for row in rows])
    elif rows:
        now = time.time()
        output.table(STATUS_COLUMNS, [status_cells(row, now) for row in rows])
    else:
        output.note(f"{options.database} holds no scores yet: the validator has not finished a round.")
    return EXIT_OK


def status_cells(row: MinerRow, now: float) -> list[str]:
    """One row of the status table, as ``STATUS_COLUMNS``."""
    return [
        str(row.uid),
        row.hotkey[:8] + "…",
        f"{row.claim_count} × {row.claim_gpu}" if row.claim_gpu else "–",
        f"{row.count} × {row.gpu}" if row.gpu else "–",
        row.reason.value,
        f"{row.tflops16:.3g}" if row.tflops16 is not None else "–",
        f"{row.score:.2f}",
        f"{row.weight:.1%}",
        "yes" if row.allocated else "",
        f"{duration(max(1.0, now - row.proven_at))} ago" if row.proven_at is not None else "–",
    ]


def explain_miner(options: ValidatorOptions, name: str, output: Output | None = None) -> int:
    """Print everything that led to one miner's score; returns the exit code."""
    output = output or Output(sys.stdout, sys.stderr, as_json=options.json)
    # Its tables are the renter's, whose module imports the SDK: --status can do without.
    from compute.rental.evidence import RentalEvidence

    try:
        config = load_config(options.config_file)
        with _reading(options) as database:
            evidence = RentalEvidence(database)
            explanation = explain(
                name,
                FactStore(database),
                config,
                rentals=evidence.rentals(time.time()),
                penalties=evidence.penalties(),
            )
    except NotFound as error:
        output.error(str(error), reason=None, advice="Take a uid, a hotkey, or the beginning of one, from --status.")
        return EXIT_CONFIG
    except ComputeError as error:
        output.error(str(error), reason=None, advice="Name the validator's database with --database.")
        return EXIT_CONFIG
    if options.json:
        output.data(explanation.to_json())
    else:
        output.pairs(
            {
                "miner": f"{explanation.hotkey}, uid {explanation.uid if explanation.uid is not None else 'none'}",
                "score": f"{explanation.score:.6g} ({explanation.reason.value})",
                "because": explanation.formula,
                "retries": explanation.retries,
            }
        )
        output.line("")
        output.table(EVENT_COLUMNS, _event_rows(explanation))
    return EXIT_OK


def _event_rows(explanation: Explanation) -> list[list[str]]:
    return [
        [
            utc_short(event.at) if event.at is not None else "",
            str(event.block) if event.block is not None else "",
            event.what,
            event.text,
        ]
        for event in explanation.events
    ]


@contextmanager
def _reading(options: ValidatorOptions) -> Iterator[Database]:
    database = Database(options.database, read_only=True)
    try:
        yield database
    finally:
        database.close()


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
