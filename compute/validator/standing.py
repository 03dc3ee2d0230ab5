"""Facts → who may be asked, what a miner is worth now, and when it is proven next. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from compute.access import AccessLists, enforced_version
from compute.chain import Metagraph, Neuron
from compute.config import RoundSettings
from compute.proof.models import Claim
from compute.reasons import ProofReason
from compute.specs import MachineSpecs
from compute.validator.facts import VerdictHistory
from compute.versions import OWN


@dataclass(frozen=True)
class QueryPolicy:
    """Which miners a validator talks to. ``minimal_versions`` are those of miners, asked at every use."""

    lists: AccessLists
    allow_unrecognized: bool = False
    updated_threshold_percent: int = 60
    minimal_versions: Callable[[], Iterable[int]] = lambda: (OWN.miner,)


def unqueried(metagraph: Metagraph, own_hotkey: str, policy: QueryPolicy) -> dict[str, ProofReason]:
    """The hotkeys that are not asked, and why; everybody else is. Our own hotkey is never asked.

    Of several uids at one external IP the earliest registered keeps it. A miner that publishes no version is asked
    only if the policy allows it, once the quorum of updated miners is reached; until then everybody is.
    """
    serving = _serving(metagraph, own_hotkey)
    enforced = enforced_version(
        (neuron.version for neuron in serving), policy.minimal_versions(), policy.updated_threshold_percent
    )
    keepers = ip_keepers(metagraph, own_hotkey)
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


def ip_keepers(metagraph: Metagraph, own_hotkey: str) -> dict[str, Neuron]:
    """Who keeps each external IP: the earliest registered of those that serve there."""
    keepers: dict[str, Neuron] = {}
    for neuron in sorted(_serving(metagraph, own_hotkey), key=lambda neuron: (neuron.registered_at, neuron.uid)):
        keepers.setdefault(neuron.ip, neuron)
    return keepers


def _serving(metagraph: Metagraph, own_hotkey: str) -> list[Neuron]:
    return [neuron for neuron in metagraph.neurons if neuron.is_serving and neuron.hotkey != own_hotkey]


@dataclass(frozen=True)
class Standing:
    """What a miner is worth now. ``gpu`` and ``count`` are those of the verdict that stands.

    ``kept``: the last proof failed with ``reason``, but the one before stands until the retries are used up.
    """

    reason: ProofReason
    gpu: str | None = None
    count: int = 0
    kept: bool = False

    @property
    def is_paid(self) -> bool:
        """Whether ``gpu`` and ``count`` are paid."""
        return self.reason is ProofReason.OK or self.kept


def standing(history: VerdictHistory, *, registered_at: int, now: float, rounds: RoundSettings) -> Standing:
    """What a hotkey's verdicts are worth at ``now`` (Unix seconds).

    Verdicts from before ``registered_at`` (a block) do not count. A failure keeps the last ok verdict for
    ``retry_limit`` retries and twice their time: a validator that was down meanwhile does not keep it for ever.
    """
    latest, last_ok = history.latest, history.last_ok
    if latest is None or latest.block < registered_at:
        return Standing(ProofReason.NOT_PROVEN_YET)
    if latest.reason is ProofReason.OK:
        return Standing(ProofReason.OK, latest.gpu, latest.count)
    window = 2 * rounds.retry_limit * max(rounds.retry_interval_seconds, 1.0)
    if (
        last_ok is not None
        and last_ok.block >= registered_at
        and history.failures <= rounds.retry_limit
        and now - latest.at <= window
    ):
        return Standing(latest.reason, last_ok.gpu, last_ok.count, kept=True)
    return Standing(latest.reason)


def is_due(
    history: VerdictHistory,
    claim: Claim | None,
    claimed_at: float,
    *,
    registered_at: int,
    block: int,
    now: float,
    interval_blocks: int,
    rounds: RoundSettings,
) -> bool:
    """Whether a machine is to be proven: never yet, its interval is over, or a retry is due.

    A retry is due ``retry_interval_seconds`` after a failure until the retries are used up, and after that once an
    unreachable machine has answered again; and after an ok verdict for another ``claim`` than now (None: the machine
    no longer claims anything, or no longer answers). ``claimed_at`` is when it last said so, in Unix seconds like
    ``now``.
    """
    latest = history.latest
    if latest is None or latest.block < registered_at:
        return True
    if block - latest.block >= interval_blocks:
        return True
    if now - latest.at < rounds.retry_interval_seconds:
        return False
    if latest.reason is not ProofReason.OK:
        is_back = latest.reason is ProofReason.UNREACHABLE and claim is not None and claimed_at > latest.at
        return is_back or history.failures <= rounds.retry_limit
    return claim != Claim(latest.claim_gpu, latest.claim_count)


def claim_of(specs: MachineSpecs, aliases: Mapping[str, str]) -> Claim | None:
    """What a machine's specs claim, by the table's name for it; None without a GPU.

    ``aliases`` are names that drivers use. Mixed models claim the first: the count then falls short.
    """
    names = [aliases.get(gpu.name, gpu.name) for gpu in specs.gpus]
    return Claim(gpu=names[0], count=names.count(names[0])) if names else None
