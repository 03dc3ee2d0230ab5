"""Facts → one score per hotkey of the subnet, each with its breakdown. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from compute.base.reasons import ProofReason
from compute.chain.subtensor import Metagraph, Neuron
from compute.incentive.config import Config
from compute.incentive.scoring import PENALIZED, score
from compute.proof.fingerprint import shared_devices
from compute.validator.eligibility import Standing, ip_keepers, rented, standing
from compute.validator.store import ScoreFact, SpecsFact, VerdictHistory


@dataclass(frozen=True)
class Known:
    """Everything that scores depend on; ``unqueried`` as in standing.

    ``answering`` have answered at the address that they announce, as in ``standing.unqueried``. ``allocated`` are the
    hotkeys with evidence that their machine is rented, each with the validator that rents it.
    """

    metagraph: Metagraph
    own_hotkey: str
    unqueried: Mapping[str, ProofReason]
    specs: Mapping[str, SpecsFact]
    histories: Mapping[str, VerdictHistory]
    allocated: Mapping[str, str]
    penalized: Collection[str]
    answering: Collection[str] = ()


def score_all(known: Known, config: Config, now: float) -> list[ScoreFact]:
    """Score every hotkey of the subnet but our own, by uid."""
    by_registration = sorted(known.metagraph.neurons, key=lambda neuron: (neuron.registered_at, neuron.uid))
    standings = {neuron.hotkey: _standing(known, config, neuron, now) for neuron in by_registration}
    # Who is not paid for a card has no claim to it: what was sold long ago must not be held against the buyer.
    proven = [
        (neuron, _proven_uuids(known, neuron.hotkey)) for neuron in by_registration if standings[neuron.hotkey].is_paid
    ]
    shared = shared_devices([(neuron.hotkey, uuids) for neuron, uuids in proven])
    around = circumstances(
        known.metagraph, ip_keepers(known.metagraph, known.own_hotkey, known.answering), shared, proven
    )
    facts = []
    for neuron in known.metagraph.neurons:
        if neuron.hotkey == known.own_hotkey:
            continue
        stands = Standing(ProofReason.SHARED_DEVICE) if neuron.hotkey in shared else standings[neuron.hotkey]
        penalties = [PENALIZED] if neuron.hotkey in known.penalized else []
        breakdown = score(
            stands.gpu,
            stands.count,
            gpu_scores=config.scores,
            reason=ProofReason.OK if stands.is_paid else stands.reason,
            allocated=neuron.hotkey in known.allocated,
            penalties=penalties,
        )
        # A kept verdict is paid, and still says what went wrong last.
        reason = stands.reason if stands.kept else breakdown.reason
        penalties_told = [asdict(penalty) for penalty in breakdown.penalties]  # asdict() is slow: of these few only
        details = (
            vars(breakdown)
            | {"penalties": penalties_told}
            | {"reason": reason.value, "kept": stands.kept, "gpu": stands.gpu}
            | {"rented_through": known.allocated.get(neuron.hotkey)}
        )
        details |= around[neuron.hotkey]
        facts.append(ScoreFact(neuron.hotkey, neuron.uid, breakdown.total, reason, details))
    return facts


def _proven_uuids(known: Known, hotkey: str) -> tuple[str, ...]:
    """Of the last proof that was ok: what a machine only claims must not take another's device away."""
    history = known.histories.get(hotkey)
    return history.last_ok.uuids if history is not None and history.last_ok is not None else ()


def _standing(known: Known, config: Config, neuron: Neuron, now: float) -> Standing:
    unqueried = known.unqueried.get(neuron.hotkey)
    if unqueried is not None:
        return Standing(unqueried)
    history = known.histories.get(neuron.hotkey, VerdictHistory())
    if neuron.hotkey in known.allocated:
        return rented(history, registered_at=neuron.registered_at, rounds=config.rounds)
    proven = standing(history, registered_at=neuron.registered_at, now=now, rounds=config.rounds)
    specs = known.specs.get(neuron.hotkey)
    if proven.reason is ProofReason.NOT_PROVEN_YET and specs is not None and specs.reason is not ProofReason.OK:
        return Standing(specs.reason)
    return proven


def circumstances(
    metagraph: Metagraph,
    keepers: Mapping[str, Neuron],
    shared: Mapping[str, str],
    proven: Sequence[tuple[Neuron, Sequence[str]]],
) -> dict[str, dict[str, Any]]:
    """By hotkey: its row of the metagraph, and who keeps its IP address or its GPU, where somebody else does.

    ``keepers`` are those of ``standing.ip_keepers``, ``shared`` is the result of ``shared_devices``; ``proven`` has the
    neurons in the order of their registration, with the uuids that each has proven.
    """
    owners: dict[str, Neuron] = {}
    for neuron, uuids in proven:
        for uuid in uuids:
            owners.setdefault(uuid, neuron)
    return {
        neuron.hotkey: {
            "neuron": {
                "registered_at": neuron.registered_at,
                "coldkey": neuron.coldkey,
                "ip": neuron.ip,
                "port": neuron.port,
                "version": neuron.version,
            },
            "ip_kept_by": _other(keepers.get(neuron.ip), neuron),
            "device_kept_by": _other(owners.get(shared.get(neuron.hotkey, "")), neuron),
            "device": shared.get(neuron.hotkey),
        }
        for neuron in metagraph.neurons
    }


def _other(keeper: Neuron | None, neuron: Neuron) -> dict[str, Any] | None:
    if keeper is None or keeper.hotkey == neuron.hotkey:
        return None
    return {"uid": keeper.uid, "hotkey": keeper.hotkey, "registered_at": keeper.registered_at}
