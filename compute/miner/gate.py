"""Who may call this miner, by the last snapshot of the subnet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from compute.base.clock import Clock
from compute.base.metrics import REQUESTS_REFUSED
from compute.base.reasons import AccessReason
from compute.chain.access_lists import enforced_version
from compute.chain.subtensor import Metagraph, Neuron
from compute.chain.versions import OWN
from compute.miner.access import AccessPolicy, RateLimiter, decide, priority

logger = logging.getLogger(__name__)

_PER_SECOND = 5.0
_BURST = 60
_LOG_SECONDS = 600.0
_LOGGED_CALLERS = 1024
_LOG = "the log itself"


@dataclass(frozen=True)
class _Snapshot:
    callers: Mapping[str, Neuron]
    enforced_version: int
    known: bool


class MinerGate:
    """A ``transport.server.Gate``. ``update`` swaps a whole snapshot, so the server's thread needs no lock."""

    def __init__(
        self,
        policy: AccessPolicy,
        clock: Clock,
        minimal_versions: Callable[[], Iterable[int]] = lambda: (OWN.validator,),
    ) -> None:
        """``minimal_versions`` are those of validators, asked at each ``update``."""
        self._policy = policy
        self._minimal_versions = minimal_versions
        self._limiter = RateLimiter(clock, per_second=_PER_SECOND, burst=_BURST)
        self._log_limiter = RateLimiter(clock, per_second=1 / _LOG_SECONDS, burst=1, capacity=_LOGGED_CALLERS)
        self._snapshot = _Snapshot({}, enforced_version=0, known=False)

    def update(self, metagraph: Metagraph) -> None:
        """Decide by ``metagraph`` from now on."""
        validators = [neuron.version for neuron in metagraph.neurons if neuron.validator_permit]
        self._snapshot = _Snapshot(
            callers=metagraph.by_hotkey,
            enforced_version=enforced_version(
                validators, self._minimal_versions(), self._policy.updated_threshold_percent
            ),
            known=True,
        )

    def refusal(self, hotkey: str, synapse_name: str) -> str | None:
        snapshot = self._snapshot
        decision = decide(
            hotkey,
            snapshot.callers.get(hotkey),
            policy=self._policy,
            enforced_version=snapshot.enforced_version,
            metagraph_known=snapshot.known,
        )
        if not decision.allowed:
            REQUESTS_REFUSED.labels(decision.reason.value).inc()
            self._log_refusal(hotkey[:48], synapse_name, decision.reason)
            return decision.reason.value
        return None

    def _log_refusal(self, hotkey: str, synapse_name: str, reason: AccessReason) -> None:
        """Each refusal once in ten minutes, and five a second in all: the hotkey is anybody's claim."""
        if self._log_limiter.take(f"{hotkey} {reason.value}") == 0 and self._limiter.take(_LOG) == 0:
            logger.info("caller refused", extra={"synapse": synapse_name, "hotkey": hotkey, "reason": reason})

    def overuse(self, hotkey: str) -> str | None:
        """Like ``refusal``, of a caller whose signature is verified: whether it has asked too often."""
        if self._limiter.take(hotkey) == 0:
            return None
        REQUESTS_REFUSED.labels(AccessReason.RATE_LIMITED.value).inc()
        return AccessReason.RATE_LIMITED.value

    def priority(self, hotkey: str, synapse_name: str) -> float:
        neuron = self._snapshot.callers.get(hotkey)
        return priority(neuron.stake if neuron is not None else 0.0, synapse_name)
