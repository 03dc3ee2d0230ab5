"""Everything that led to one miner's score, in order. Reads the database; needs neither chain nor network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from compute.base.clock import utc
from compute.base.errors import ConfigError, NotFound
from compute.base.reasons import ProofReason
from compute.incentive.config import Config, RoundSettings
from compute.incentive.scoring import ALLOCATION_MULTIPLIER
from compute.proof.models import DeviceMeasurement, GpuModel, ProofSettings
from compute.proof.statement import dims_for
from compute.validator.store import (
    FactStore,
    ScoreFact,
    SpecsFact,
    VerdictFact,
    VerdictHistory,
    WeightsEntry,
    WeightsState,
)
from compute.wire.lease_terms import GIB
from compute.wire.specs import SpecsError, parse_specs

if TYPE_CHECKING:
    from compute.rental.evidence import Rental
    from compute.rental.records import Penalty

# Their detail says in words what the numbers say.
_NUMBERS_SAY_IT = (ProofReason.SLOWER_THAN_CLAIMED, ProofReason.NOT_RESIDENT)


@dataclass(frozen=True)
class Event:
    """One thing that counts. ``at`` is Unix seconds, None where only the block is known; ``data`` is for programs."""

    what: str
    at: float | None
    block: int | None
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data, stable keys."""
        return {"what": self.what, "at": self.at, "block": self.block, "text": self.text, **self.data}


@dataclass(frozen=True)
class Explanation:
    """A score, how it is computed, what its retries allow, and the events that led to it, oldest first.

    ``uid`` is None for a hotkey that is no longer scored; ``score`` is then 0.
    """

    uid: int | None
    hotkey: str
    score: float
    reason: ProofReason
    formula: str
    retries: str
    breakdown: Mapping[str, Any]
    events: Sequence[Event]

    def to_json(self) -> dict[str, Any]:
        """Plain data, stable keys."""
        return {
            "uid": self.uid,
            "hotkey": self.hotkey,
            "score": self.score,
            "reason": self.reason.value,
            "formula": self.formula,
            "retries": self.retries,
            "breakdown": dict(self.breakdown),
            "events": [event.to_json() for event in self.events],
        }


def explain(
    name: str,
    facts: FactStore,
    config: Config,
    *,
    rentals: Sequence[Rental] = (),
    penalties: Sequence[Penalty] = (),
) -> Explanation:
    """Explain the miner that goes by ``name``: a uid, a hotkey, or the beginning of one.

    Args:
        config: what the table asks of a model is as it stands there now.
        rentals, penalties: of the renter that shares the database.

    Raises:
        NotFound: no miner on record goes by that name, or several do.
        StoreError: the database cannot be read.
    """
    scores = {fact.hotkey: fact for fact in facts.scores()}
    specs, histories = facts.specs(), facts.histories()
    hotkey = _find(name, scores, {*scores, *specs, *histories})
    score = scores.get(hotkey)
    history = histories.get(hotkey, VerdictHistory())
    scored_at = facts.scored_at()
    events = [
        *_registration(score),
        *(_specs(fact) for fact in [specs.get(hotkey)] if fact is not None),
        *_proofs(facts, hotkey, config),
        *(Event(fact.kind.value, fact.at, fact.block, fact.detail) for fact in facts.rentals.events(hotkey)),
        *(_rental(rental, score) for rental in rentals if rental.hotkey == hotkey),
        *(_penalty(penalty) for penalty in penalties if penalty.hotkey == hotkey),
        *_scoring(score, scored_at),
        *_weights(facts, score),
    ]
    unknown = ProofReason.NOT_PROVEN_YET
    return Explanation(
        uid=score.uid if score is not None else None,
        hotkey=hotkey,
        score=score.total if score is not None else 0.0,
        reason=score.reason if score is not None else history.latest.reason if history.latest is not None else unknown,
        formula=_formula(score) if score is not None else "not scored: the hotkey is no longer on the subnet",
        retries=_retries(history, score, config.rounds),
        breakdown=score.breakdown if score is not None else {},
        events=sorted(events, key=lambda event: event.at if event.at is not None else float("-inf")),
    )


def _find(name: str, scores: Mapping[str, ScoreFact], hotkeys: set[str]) -> str:
    if name.isascii() and name.isdigit():
        found = [hotkey for hotkey, fact in scores.items() if fact.uid == int(name)]
    else:
        found = sorted(hotkey for hotkey in hotkeys if hotkey.startswith(name))
    if len(found) == 1:
        return found[0]
    problem = f"{len(found)} hotkeys begin with {name!r}" if found else f"no miner on record is {name!r}"
    raise NotFound(f"{problem}; --status lists them all")


def _registration(score: ScoreFact | None) -> Iterator[Event]:
    neuron = score.breakdown.get("neuron") if score is not None else None
    if score is None or not isinstance(neuron, dict):
        return
    version = f"version {neuron['version']}" if neuron["version"] else "no version published"
    text = f"uid {score.uid} at {neuron['ip']}:{neuron['port']}, {version}"
    yield Event("registered", None, neuron["registered_at"], text, {"neuron": neuron})


def _specs(fact: SpecsFact) -> Event:
    text = "" if fact.specs is None else _machine(fact.specs)
    if fact.reason is not ProofReason.OK:
        text = f"{fact.reason.value}: {fact.detail}" + (f"; before: {text}" if text else "")
    return Event("specs", fact.at, fact.block, text, {"reason": fact.reason.value, "detail": fact.detail})


def _machine(specs: str) -> str:
    try:
        machine = parse_specs(specs)
    except SpecsError as error:
        return str(error)
    models = sorted({f"{gpu.name} ({gpu.capacity_mib} MiB)" for gpu in machine.gpus})
    gpus = f"{len(machine.gpus)} × {' / '.join(models)}" if models else "no GPU"
    return f"{gpus}, {machine.cpu_count} CPUs, {machine.ram_total / GIB:.0f} GiB RAM"


def _proofs(facts: FactStore, hotkey: str, config: Config) -> Iterator[Event]:
    measured = facts.measurements(hotkey)
    for fact in facts.verdicts(hotkey):
        devices = measured.get(fact.id, [])
        model = config.models.get(fact.claim_gpu)
        asked = _asked(model, config.proof) if model is not None else None
        yield Event(
            "proof",
            fact.at,
            fact.block,
            _verdict(fact, devices, asked),
            {
                "reason": fact.reason.value,
                "seconds": fact.seconds,
                "claim": {"gpu": fact.claim_gpu, "count": fact.claim_count},
                "verdict": {"gpu": fact.gpu, "count": fact.count},
                "devices": [{**asdict(device), "reason": device.reason.value} for device in devices],
                "asked": asked,
                "detail": fact.detail,
            },
        )


def _asked(model: GpuModel, settings: ProofSettings) -> dict[str, float | None]:
    """The least that each device of a model must show; None: not judged."""
    least = 1 - settings.time_tolerance
    try:
        resident = dims_for(model, settings).resident_bytes / 1e9
    except ConfigError:
        resident = None
    return {
        "tflops16": least * model.tflops16,
        "vram_gb": resident,
        "bandwidth_gbs": least * model.bandwidth_gbs if model.bandwidth_gbs is not None else None,
    }


def _verdict(fact: VerdictFact, devices: Sequence[DeviceMeasurement], asked: Mapping[str, float | None] | None) -> str:
    claim = f"{fact.claim_count} × {fact.claim_gpu}" if fact.claim_count else "nothing"
    parts = [f"{fact.reason.value}: claims {claim}"]
    if fact.gpu is not None and (fact.gpu, fact.count) != (fact.claim_gpu, fact.claim_count):
        parts.append(f"worth {fact.count} × {fact.gpu}")
    if devices:
        lowest = _numbers(
            min((device.tflops16 for device in devices if device.tflops16 is not None), default=None),
            min(device.vram_bytes for device in devices) / 1e9,
            min((device.bandwidth_gbs for device in devices if device.bandwidth_gbs is not None), default=None),
        )
        parts.append(f"measured {lowest}" + (" (the least of all)" if len(devices) > 1 else ""))
        if asked is not None:
            least = _numbers(asked["tflops16"], asked["vram_gb"], asked["bandwidth_gbs"])
            parts.append(f"the table asks for {least}")
        looks = sorted({device.nearest for device in devices if device.nearest not in (None, fact.claim_gpu)})
        if looks:
            parts.append(f"looks like {', '.join(map(str, looks))}")
    if fact.detail and fact.reason not in _NUMBERS_SAY_IT:
        parts.append(fact.detail)
    return "; ".join([*parts, f"took {fact.seconds:.0f} s"])


def _numbers(tflops: float | None, gigabytes: float | None, bandwidth: float | None) -> str:
    rate = f"{tflops:.3g} TFLOPS" if tflops is not None else "no rate"
    held = f", {gigabytes:.3g} GB held" if gigabytes else ""
    return rate + held + (f", {bandwidth:.3g} GB/s" if bandwidth is not None else "")


def _rental(rental: Rental, score: ScoreFact | None) -> Event:
    alive = score is not None and bool(score.breakdown.get("allocated"))
    seen = "paused" if rental.is_paused else "answers" if alive else "does not answer"
    text = (
        f"by this validator's hotkey until {utc(rental.until)}; {rental.ip}:{rental.port} {seen} as {rental.host_key}"
    )
    return Event("leased", rental.since, None, text, {"rental": asdict(rental), "counts": alive})


def _penalty(penalty: Penalty) -> Event:
    text = f"by this validator's operator: {penalty.note or 'no note'}"
    return Event("penalized", penalty.since, None, text, {"note": penalty.note})


def _scoring(score: ScoreFact | None, scored_at: tuple[float, int] | None) -> Iterator[Event]:
    if score is None or scored_at is None:
        return
    at, block = scored_at
    if score.reason is ProofReason.DUPLICATE_IP and (keeper := score.breakdown.get("ip_kept_by")):
        text = f"its address is kept by {_keeper(keeper)}"
        yield Event("duplicate", at, block, text, {"kept_by": keeper})
    if score.reason is ProofReason.SHARED_DEVICE and (keeper := score.breakdown.get("device_kept_by")):
        device = score.breakdown.get("device")
        yield Event(
            "duplicate", at, block, f"GPU {device} is kept by {_keeper(keeper)}", {"kept_by": keeper, "device": device}
        )
    yield Event("scored", at, block, _formula(score), {"score": score.total})


def _keeper(keeper: Mapping[str, Any]) -> str:
    return f"uid {keeper['uid']} ({keeper['hotkey']}), registered at block {keeper['registered_at']}"


def _formula(score: ScoreFact) -> str:
    """The score with every number that went into it."""
    numbers = score.breakdown
    if not (score.total or score.reason is ProofReason.OK or numbers.get("kept")):
        return f"0: nothing is paid for {score.reason.value}"
    count = numbers["count"]
    terms = [
        f"{numbers['base']:g} ({numbers.get('gpu')})",
        f"{count} {'GPU' if count == 1 else 'GPUs'}",
        f"factor {numbers['factor']:.6g}",
    ]
    if numbers.get("allocated"):
        terms.append(f"{ALLOCATION_MULTIPLIER:g} (rented)")
    terms += [f"{penalty['multiplier']:g} ({penalty['name']})" for penalty in numbers.get("penalties", ())]
    return f"{' × '.join(terms)} = {score.total:.6g}"


def _retries(history: VerdictHistory, score: ScoreFact | None, rounds: RoundSettings) -> str:
    latest = history.latest
    if latest is None:
        return "no proof yet"
    if latest.reason is ProofReason.OK:
        return "none: the last proof was ok"
    if history.failures > rounds.retry_limit:
        return f"all {rounds.retry_limit} used up; the next proof comes at its interval"
    used = f"{history.failures} of {rounds.retry_limit}, {rounds.retry_interval_seconds:g} s apart"
    kept = score is not None and bool(score.breakdown.get("kept"))
    return f"{used}; the ok verdict before {'is still paid' if kept else 'no longer counts, or never was'}"


def _weights(facts: FactStore, score: ScoreFact | None) -> Iterator[Event]:
    latest, confirmed = facts.last_weights(), facts.last_weights((WeightsState.CONFIRMED,))
    for entry in [confirmed, latest] if latest != confirmed else [latest]:
        if entry is not None and score is not None:
            yield _weight(entry, score.uid, is_held=entry == confirmed)


def _weight(entry: WeightsEntry, uid: int, *, is_held: bool) -> Event:
    total = sum(entry.weights.values())
    share = entry.weights.get(uid, 0) / total if total else 0.0
    state = "on the chain" if is_held else f"intended, {entry.state.value}"
    text = f"{share:.1%} {state}" + (f": {entry.detail}" if entry.detail else "")
    data = {"state": entry.state.value, "on_chain": is_held, "u16": entry.weights.get(uid, 0), "share": share}
    return Event("weight", entry.at, entry.block, text, data)
