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
from compute.validator.eligibility import Eligibility, eligibility, eligibility_while_rented, ip_keepers
from compute.validator.store import ScoreFact, SpecsFact, VerdictHistory


@dataclass(frozen=True)
class ScoreInputs:
    """Everything that scores depend on. ``ineligible`` and ``answering`` are those of ``eligibility.ineligible``.

    ``allocated`` are the hotkeys with evidence that their machine is rented, each with the validator that rents it.
    """

    metagraph: Metagraph
    own_hotkey: str
    ineligible: Mapping[str, ProofReason]
    specs: Mapping[str, SpecsFact]
    histories: Mapping[str, VerdictHistory]
    allocated: Mapping[str, str]
    penalized: Collection[str]
    answering: Collection[str] = ()


def score_all(inputs: ScoreInputs, config: Config, now: float) -> list[ScoreFact]:
    """Score every hotkey of the subnet but our own, by uid."""
    by_registration = sorted(inputs.metagraph.neurons, key=lambda neuron: (neuron.registered_at, neuron.uid))
    eligibilities = {neuron.hotkey: _eligibility(inputs, config, neuron, now) for neuron in by_registration}
    # Who is not paid for a card has no claim to it: what was sold long ago must not be held against the buyer.
    proven = [
        (neuron, _proven_uuids(inputs, neuron.hotkey))
        for neuron in by_registration
        if eligibilities[neuron.hotkey].is_paid
    ]
    shared = shared_devices([(neuron.hotkey, uuids) for neuron, uuids in proven])
    context = score_context(
        inputs.metagraph, ip_keepers(inputs.metagraph, inputs.own_hotkey, inputs.answering), shared, proven
    )
    facts = []
    for neuron in inputs.metagraph.neurons:
        if neuron.hotkey == inputs.own_hotkey:
            continue
        eligible = Eligibility(ProofReason.SHARED_DEVICE) if neuron.hotkey in shared else eligibilities[neuron.hotkey]
        penalties = [PENALIZED] if neuron.hotkey in inputs.penalized else []
        breakdown = score(
            eligible.gpu,
            eligible.count,
            gpu_scores=config.scores,
            reason=ProofReason.OK if eligible.is_paid else eligible.reason,
            allocated=neuron.hotkey in inputs.allocated,
            penalties=penalties,
        )
        # A kept verdict is paid, and still says what went wrong last.
        reason = eligible.reason if eligible.kept else breakdown.reason
        penalties_told = [asdict(penalty) for penalty in breakdown.penalties]  # asdict() is slow: of these few only
        details = (
            vars(breakdown)
            | {"penalties": penalties_told}
            | {"reason": reason.value, "kept": eligible.kept, "gpu": eligible.gpu}
            | {"rented_through": inputs.allocated.get(neuron.hotkey)}
        )
        details |= context[neuron.hotkey]
        facts.append(ScoreFact(neuron.hotkey, neuron.uid, breakdown.total, reason, details))
    return facts


def _proven_uuids(inputs: ScoreInputs, hotkey: str) -> tuple[str, ...]:
    """Of the last proof that was ok: what a machine only claims must not take another's device away."""
    history = inputs.histories.get(hotkey)
    return history.last_ok.uuids if history is not None and history.last_ok is not None else ()


def _eligibility(inputs: ScoreInputs, config: Config, neuron: Neuron, now: float) -> Eligibility:
    reason = inputs.ineligible.get(neuron.hotkey)
    if reason is not None:
        return Eligibility(reason)
    history = inputs.histories.get(neuron.hotkey, VerdictHistory())
    if neuron.hotkey in inputs.allocated:
        return eligibility_while_rented(history, registered_at=neuron.registered_at, rounds=config.rounds)
    proven = eligibility(history, registered_at=neuron.registered_at, now=now, rounds=config.rounds)
    specs = inputs.specs.get(neuron.hotkey)
    if proven.reason is ProofReason.NOT_PROVEN_YET and specs is not None and specs.reason is not ProofReason.OK:
        return Eligibility(specs.reason)
    return proven


def score_context(
    metagraph: Metagraph,
    keepers: Mapping[str, Neuron],
    shared: Mapping[str, str],
    proven: Sequence[tuple[Neuron, Sequence[str]]],
) -> dict[str, dict[str, Any]]:
    """By hotkey: its row of the metagraph, and who keeps its IP address or its GPU, where somebody else does.

    ``keepers`` is what ``eligibility.ip_keepers`` returns, ``shared`` what ``shared_devices`` does; ``proven`` has the
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
