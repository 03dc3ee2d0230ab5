"""Facts → who is eligible, what a miner is paid for now, and when it is proven next. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import Enum

from compute.base.reasons import SAYS_NOTHING, ProofReason
from compute.chain.access_lists import AccessLists, enforced_version
from compute.chain.subtensor import Metagraph, Neuron
from compute.chain.versions import OWN
from compute.incentive.config import RoundSettings
from compute.proof.models import Claim
from compute.validator.store import VerdictHistory


@dataclass(frozen=True)
class QueryPolicy:
    """Which miners a validator talks to. ``minimal_versions`` are those of miners, asked at every use."""

    lists: AccessLists
    allow_unrecognized: bool = False
    updated_threshold_percent: int = 60
    minimal_versions: Callable[[], Iterable[int]] = lambda: (OWN.miner,)


def ineligible(
    metagraph: Metagraph, own_hotkey: str, policy: QueryPolicy, answering: Collection[str] = ()
) -> dict[str, ProofReason]:
    """Ineligible hotkeys and the reason: they are neither proven nor paid. Our own hotkey is always one of them.

    Of several uids at one external IP the earliest registered of those ``answering`` there keeps it, or of all where
    none does: an address is the miner's own claim, and nobody loses his to one who only claims it. A miner that
    publishes no version is asked only if the policy allows it, once the quorum of updated miners is reached; until
    then everybody is.
    """
    serving = _serving(metagraph, own_hotkey)
    enforced = enforced_version(
        (neuron.version for neuron in serving), policy.minimal_versions(), policy.updated_threshold_percent
    )
    keepers = ip_keepers(metagraph, own_hotkey, answering)
    reasons: dict[str, ProofReason] = {}
    for neuron in metagraph.neurons:
        white = policy.lists.whitelisted(neuron.hotkey, neuron.coldkey) is not None
        if neuron.hotkey == own_hotkey or not neuron.is_serving:
            reasons[neuron.hotkey] = ProofReason.NOT_SERVING
        elif policy.lists.blacklisted(neuron.hotkey, neuron.coldkey) is not None:
            reasons[neuron.hotkey] = ProofReason.BLACKLISTED
        elif keepers[neuron.ip].hotkey != neuron.hotkey:
            reasons[neuron.hotkey] = ProofReason.DUPLICATE_IP
        elif not white and neuron.version < enforced:
            unrecognized = neuron.version == 0
            if not (unrecognized and policy.allow_unrecognized):
                reasons[neuron.hotkey] = ProofReason.OLD_VERSION
    return reasons


def ip_keepers(metagraph: Metagraph, own_hotkey: str, answering: Collection[str] = ()) -> dict[str, Neuron]:
    """Who keeps each external IP: the earliest registered of those that answer there, or say that they serve there."""
    keepers: dict[str, Neuron] = {}
    by_rank = sorted(
        _serving(metagraph, own_hotkey),
        key=lambda neuron: (neuron.hotkey not in answering, neuron.registered_at, neuron.uid),
    )
    for neuron in by_rank:
        keepers.setdefault(neuron.ip, neuron)
    return keepers


def _serving(metagraph: Metagraph, own_hotkey: str) -> list[Neuron]:
    return [neuron for neuron in metagraph.neurons if neuron.is_serving and neuron.hotkey != own_hotkey]


@dataclass(frozen=True)
class Eligibility:
    """What a miner is paid for now: ``gpu`` and ``count`` of the verdict that counts, or nothing because of ``reason``.

    ``kept``: the latest proof failed because of ``reason``, or none can be made, and the last good one still counts.
    """

    reason: ProofReason
    gpu: str | None = None
    count: int = 0
    kept: bool = False

    @property
    def is_paid(self) -> bool:
        """Whether ``gpu`` and ``count`` are paid."""
        return self.reason is ProofReason.OK or self.kept


def eligibility(history: VerdictHistory, *, registered_at: int, now: float, rounds: RoundSettings) -> Eligibility:
    """What a hotkey is paid for by its verdicts at ``now`` (Unix seconds).

    Verdicts from before ``registered_at`` (a block) do not count. A failure keeps the last ok verdict for
    ``retry_limit`` retries and twice their time: a validator that was down meanwhile does not keep it for ever.
    """
    latest, last_ok = history.latest, history.last_ok
    if latest is None or latest.block < registered_at:
        return Eligibility(ProofReason.NOT_PROVEN_YET)
    if latest.reason is ProofReason.OK:
        return Eligibility(ProofReason.OK, latest.gpu, latest.count)
    window = 2 * rounds.retry_limit * max(rounds.retry_interval_seconds, 1.0)
    if (
        last_ok is not None
        and last_ok.block >= registered_at
        and history.failures <= rounds.retry_limit
        and now - latest.at <= window
    ):
        return Eligibility(latest.reason, last_ok.gpu, last_ok.count, kept=True)
    return Eligibility(latest.reason)


def eligibility_while_rented(history: VerdictHistory, *, registered_at: int, rounds: RoundSettings) -> Eligibility:
    """What a rented machine is paid for: what it was last proven to be, since nobody can prove it now.

    One that was never proven is paid nothing, and so is one that had used up its retries by failing proofs. Proofs
    that it only refused, or that could not reach it, do not count: it may have been rented already.
    """
    latest, last_ok = history.latest, history.last_ok
    if last_ok is None or last_ok.block < registered_at:
        failed = latest is not None and latest.block >= registered_at and latest.reason not in SAYS_NOTHING
        return Eligibility(latest.reason if failed and latest is not None else ProofReason.RENTED)
    if latest is not None and history.proven_failures > rounds.retry_limit:
        return Eligibility(latest.reason)
    return Eligibility(ProofReason.RENTED, last_ok.gpu, last_ok.count, kept=True)


class Due(Enum):
    """Why a machine is to be proven now."""

    FIRST = "it has never been"
    CHANGED = "it claims to be another machine than was proven"
    RETRY = "its last proof failed"
    ROUTINE = "its last proof is as old as the interval"


def due(
    history: VerdictHistory,
    claim: Claim | None,
    claimed_at: float,
    *,
    registered_at: int,
    block: int,
    now: float,
    interval_blocks: int,
    rounds: RoundSettings,
    changed_at_block: int = 0,
) -> Due | None:
    """Why a machine is to be proven at ``now``, or None where it is not.

    A retry is due ``retry_interval_seconds`` after a failure until the retries are used up, and after that once an
    unreachable machine has answered again; and after an ok verdict for another ``claim`` than now (None: the machine
    no longer claims anything, or no longer answers), or from before ``changed_at_block``, at which its hardware
    changed. ``claimed_at`` is when it last said so, in Unix seconds like ``now``.
    """
    latest = history.latest
    if latest is None or latest.block < registered_at:
        return Due.FIRST
    failed = latest.reason is not ProofReason.OK
    if now - latest.at >= rounds.retry_interval_seconds:
        is_back = latest.reason is ProofReason.UNREACHABLE and claim is not None and claimed_at > latest.at
        if failed and (is_back or history.failures <= rounds.retry_limit):
            return Due.RETRY
        if not failed and (claim != Claim(latest.claim_gpu, latest.claim_count) or latest.block < changed_at_block):
            return Due.CHANGED
    if block - latest.block >= interval_blocks:
        return Due.RETRY if failed else Due.ROUTINE
    return None
