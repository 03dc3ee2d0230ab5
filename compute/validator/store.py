"""What the validator knows: specs, verdicts, scores and the journal of weights, in SQLite.

Facts are kept by hotkey, so the new owner of a uid inherits nothing.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from compute.base.reasons import SAYS_NOTHING, ProofReason
from compute.base.store import Database
from compute.proof.models import DeviceMeasurement, MachineVerdict
from compute.validator.rental_table import RentalTable
from compute.validator.row_cache import RowCache, among, at_once, values
from compute.validator.schema import SCHEMA
from compute.wire.lease_terms import SECONDS_PER_DAY

# Every hotkey with a verdict, by one step in the index for each: GROUP BY and DISTINCT read all verdicts there are,
# some hundreds of each hotkey, while the event loop stands still.
_PROVEN = """
    proven (hotkey) AS (
        SELECT min(hotkey) FROM verdict
        UNION ALL
        SELECT (SELECT min(hotkey) FROM verdict WHERE hotkey > proven.hotkey) FROM proven WHERE hotkey IS NOT NULL
    )
"""

_VERDICT = """
    verdict.id, verdict.hotkey, verdict.at, verdict.block, verdict.seconds, verdict.reason, verdict.claim_gpu,
    verdict.claim_count, verdict.gpu, verdict.count, verdict.tflops16, verdict.detail, verdict.devices
"""

_VERDICTS_KEPT_PER_HOTKEY = 200
_JOURNAL_KEPT = 500
_ABSENT_KEPT_SECONDS = 7.0 * SECONDS_PER_DAY


@dataclass(frozen=True)
class SpecsFact:
    """The last answer to ``Specs``; ``specs`` is the JSON text of the last that had one. Times are Unix seconds."""

    hotkey: str
    at: float
    block: int
    reason: ProofReason
    specs: str | None
    detail: str


@dataclass(frozen=True)
class VerdictFact:
    """One proof of one machine, and how long it took in seconds. ``tflops16`` is the sum over its devices."""

    id: int
    hotkey: str
    at: float
    block: int
    seconds: float
    reason: ProofReason
    claim_gpu: str
    claim_count: int
    gpu: str | None
    count: int
    tflops16: float | None
    detail: str
    uuids: tuple[str, ...] = ()
    """Of the devices that proved themselves, as the worker says them."""


@dataclass(frozen=True)
class VerdictHistory:
    """What matters of a hotkey's verdicts: the last, the last that was ok, and the failures since.

    ``proven_failures`` are those of them in which the machine was there to be proven (``reasons.SAYS_NOTHING`` is the
    reason of all others).
    """

    latest: VerdictFact | None = None
    last_ok: VerdictFact | None = None
    failures: int = 0
    proven_failures: int = 0


@dataclass(frozen=True)
class ScoreFact:
    """The score of one hotkey as the last weights used it; ``breakdown`` is plain data for people."""

    hotkey: str
    uid: int
    total: float
    reason: ProofReason
    breakdown: Mapping[str, Any]


class WeightsState(str, Enum):
    """How far a vector of weights got. The last three are ends: the chain holds it, does not, said no to it."""

    INTENT = "intent"
    SUBMITTED = "submitted"
    CONFIRMED = "confirmed"
    FAILED = "failed"
    REFUSED = "refused"


@dataclass(frozen=True)
class WeightsEntry:
    """One entry of the journal: the u16 weights by uid that were meant, and what became of them."""

    id: int
    at: float
    block: int
    state: WeightsState
    weights: Mapping[int, int]
    detail: str


class FactStore:
    """The validator's tables. Every method may raise StoreError; every write is one transaction."""

    def __init__(self, database: Database) -> None:
        database.migrate("validator", SCHEMA)
        self._database = database
        self._specs = RowCache(database, self._read_specs)
        self._histories = RowCache(database, self._read_histories)
        self.rentals = RentalTable(database)

    def record_specs(self, facts: Iterable[SpecsFact]) -> None:
        """Replace what is known of these hotkeys' specs; an answer without specs keeps the text of the last with."""
        rows = [(fact.hotkey, fact.at, fact.block, fact.reason.value, fact.specs, fact.detail) for fact in facts]
        with self._specs.writing([hotkey for hotkey, *_ in rows]) as connection:
            connection.execute(
                f"INSERT INTO specs {values(6)} ON CONFLICT (hotkey) DO UPDATE SET at = excluded.at,"
                " block = excluded.block, reason = excluded.reason, specs = coalesce(excluded.specs, specs),"
                " detail = excluded.detail",
                (json.dumps(rows),),
            )

    def specs(self) -> Mapping[str, SpecsFact]:
        """The last specs by hotkey."""
        return self._specs.rows()

    def _read_specs(self, hotkeys: Collection[str] | None) -> dict[str, SpecsFact]:
        which, parameters = among(hotkeys)
        rows = at_once(
            self._database,
            f"SELECT json_group_array(json_array(hotkey, at, block, reason, specs, detail)) FROM specs {which}",  # noqa: S608
            parameters,
        )
        return {
            hotkey: SpecsFact(hotkey, at, block, ProofReason(reason), specs, detail)
            for hotkey, at, block, reason, specs, detail in rows
        }

    def record_verdict(self, hotkey: str, verdict: MachineVerdict, *, at: float, block: int, seconds: float) -> None:
        """Append a verdict and forget the oldest beyond what is kept."""
        rates = [device.tflops16 for device in verdict.devices if device.tflops16 is not None]
        devices = json.dumps([asdict(device) for device in verdict.devices])
        with self._histories.writing([hotkey]) as connection:
            connection.execute(
                "INSERT INTO verdict (hotkey, at, block, seconds, reason, claim_gpu, claim_count, gpu, count, tflops16,"
                " devices, detail) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    hotkey,
                    at,
                    block,
                    seconds,
                    verdict.reason.value,
                    verdict.claim.gpu,
                    verdict.claim.count,
                    verdict.gpu,
                    verdict.count,
                    sum(rates) if rates else None,
                    devices,
                    verdict.detail,
                ),
            )
            connection.execute(
                "DELETE FROM verdict WHERE hotkey = ?1 AND id NOT IN"
                " (SELECT id FROM verdict WHERE hotkey = ?1 ORDER BY id DESC LIMIT ?2)"
                " AND id NOT IN (SELECT max(id) FROM verdict WHERE hotkey = ?1 AND reason = 'ok')",
                (hotkey, _VERDICTS_KEPT_PER_HOTKEY),
            )

    def histories(self) -> Mapping[str, VerdictHistory]:
        """What matters of every hotkey's verdicts."""
        return self._histories.rows()

    def _read_histories(self, hotkeys: Collection[str] | None) -> dict[str, VerdictHistory]:
        if hotkeys is None:
            hotkeys = at_once(
                self._database,
                f"WITH RECURSIVE {_PROVEN} SELECT json_group_array(hotkey) FROM proven WHERE hotkey IS NOT NULL",  # noqa: S608
            )
        rows = at_once(
            self._database,
            f"""
            WITH ends AS (
                SELECT value AS hotkey, (
                    SELECT max(id) FROM verdict WHERE verdict.hotkey = value
                ) AS latest, (
                    SELECT id FROM verdict WHERE verdict.hotkey = value AND reason = 'ok' ORDER BY id DESC LIMIT 1
                ) AS last_ok
                FROM json_each(?1)
            )
            SELECT json_group_array(json_array(ends.latest, ends.last_ok, (
                SELECT count(*) FROM verdict AS later
                WHERE later.hotkey = ends.hotkey AND later.id > coalesce(ends.last_ok, 0)
            ), (
                SELECT count(*) FROM verdict AS later
                WHERE later.hotkey = ends.hotkey AND later.id > coalesce(ends.last_ok, 0)
                AND later.reason NOT IN (SELECT value FROM json_each(?2))
            ), {_VERDICT}))
            FROM ends JOIN verdict ON verdict.id IN (ends.latest, ends.last_ok)
            """,  # noqa: S608
            (json.dumps(list(hotkeys)), json.dumps([reason.value for reason in SAYS_NOTHING])),
        )
        histories: dict[str, VerdictHistory] = {}
        for latest, last_ok, failures, proven_failures, *columns in rows:
            fact = _verdict(columns)
            known = histories.get(fact.hotkey, VerdictHistory())
            histories[fact.hotkey] = VerdictHistory(
                latest=fact if fact.id == latest else known.latest,
                last_ok=fact if fact.id == last_ok else known.last_ok,
                failures=failures,
                proven_failures=proven_failures,
            )
        return histories

    def verdicts(self, hotkey: str) -> list[VerdictFact]:
        """All verdicts that are kept of one hotkey, oldest first."""
        return [
            _verdict(tuple(row))
            for row in self._database.query(
                f"SELECT {_VERDICT} FROM verdict WHERE hotkey = ? ORDER BY id",  # noqa: S608
                (hotkey,),
            )
        ]

    def measurements(self, hotkey: str) -> dict[int, list[DeviceMeasurement]]:
        """What was measured of each device, by the id of the verdict."""
        rows = self._database.query("SELECT id, devices FROM verdict WHERE hotkey = ?", (hotkey,))
        return {
            row["id"]: [
                DeviceMeasurement(**{**device, "reason": ProofReason(device["reason"])})
                for device in json.loads(row["devices"])
            ]
            for row in rows
        }

    def record_scores(self, scores: Iterable[ScoreFact], *, at: float, block: int) -> None:
        """Replace all scores."""
        rows = [
            (fact.hotkey, fact.uid, at, block, fact.total, fact.reason.value, json.dumps(fact.breakdown))
            for fact in scores
        ]
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM score")
            connection.execute(f"INSERT INTO score {values(7)}", (json.dumps(rows),))

    def scores(self) -> list[ScoreFact]:
        """The last scores, by uid."""
        return [
            ScoreFact(row["hotkey"], row["uid"], row["total"], ProofReason(row["reason"]), json.loads(row["breakdown"]))
            for row in self._database.query("SELECT * FROM score ORDER BY uid")
        ]

    def scored_at(self) -> tuple[float, int] | None:
        """When the last scores were made: Unix seconds and block; None before the first."""
        rows = self._database.query("SELECT at, block FROM score LIMIT 1")
        return (rows[0]["at"], rows[0]["block"]) if rows else None

    def begin_weights(self, weights: Mapping[int, int], *, at: float, block: int) -> int:
        """Write down what is about to be submitted; returns the entry's id."""
        with self._database.transaction() as connection:
            cursor = connection.execute(
                "INSERT INTO weights_journal (at, block, state, weights, detail) VALUES (?, ?, ?, ?, '')",
                (at, block, WeightsState.INTENT.value, json.dumps(sorted(weights.items()))),
            )
            connection.execute("DELETE FROM weights_journal WHERE id <= ?", ((cursor.lastrowid or 0) - _JOURNAL_KEPT,))
            return int(cursor.lastrowid or 0)

    def advance_weights(self, entry: int, state: WeightsState, detail: str = "") -> None:
        """Note what became of an entry."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE weights_journal SET state = ?, detail = ? WHERE id = ?", (state.value, detail, entry)
            )

    def last_weights(self, states: Collection[WeightsState] = tuple(WeightsState)) -> WeightsEntry | None:
        """The newest entry of the journal whose state is one of ``states``."""
        marks = ", ".join("?" * len(states))
        rows = self._database.query(
            f"SELECT * FROM weights_journal WHERE state IN ({marks}) ORDER BY id DESC LIMIT 1",  # noqa: S608
            [state.value for state in states],
        )
        if not rows:
            return None
        row = rows[0]
        weights = {int(uid): int(weight) for uid, weight in json.loads(row["weights"])}
        return WeightsEntry(row["id"], row["at"], row["block"], WeightsState(row["state"]), weights, row["detail"])

    def forget_absent(self, present: Collection[str], now: float) -> None:
        """Drop the facts of hotkeys that left the subnet a week ago or more."""
        before, hotkeys = now - _ABSENT_KEPT_SECONDS, json.dumps(list(present))
        with self._database.transaction() as connection:
            changes = connection.total_changes
            connection.execute(
                "DELETE FROM specs WHERE at < ? AND hotkey NOT IN (SELECT value FROM json_each(?))", (before, hotkeys)
            )
            self.rentals.forget_absent(connection, present, before)
            connection.execute(
                f"WITH RECURSIVE {_PROVEN} DELETE FROM verdict WHERE at < ? AND hotkey IN"  # noqa: S608
                " (SELECT hotkey FROM proven WHERE hotkey NOT IN (SELECT value FROM json_each(?)))",
                (before, hotkeys),
            )
            has_dropped = connection.total_changes > changes
        if has_dropped:
            self._specs.forget()
            self._histories.forget()
            self.rentals.forget_cache()


def _verdict(columns: Sequence[Any]) -> VerdictFact:
    """From the columns of ``_VERDICT``."""
    number, hotkey, at, block, seconds, reason, claim_gpu, claim_count, gpu, count, tflops16, detail, devices = columns
    return VerdictFact(
        id=number,
        hotkey=hotkey,
        at=at,
        block=block,
        seconds=seconds,
        reason=ProofReason(reason),
        claim_gpu=claim_gpu,
        claim_count=claim_count,
        gpu=gpu,
        count=count,
        tflops16=tflops16,
        detail=detail,
        uuids=_proven_uuids(devices),
    )


@functools.lru_cache(1024)
def _proven_uuids(devices: str) -> tuple[str, ...]:
    return tuple(
        device["uuid"] for device in json.loads(devices) if device["uuid"] and device["reason"] == ProofReason.OK.value
    )
