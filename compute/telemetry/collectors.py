"""Metrics that a neuron's database knows: read anew at each scrape, so that no count can be wrong after a restart."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from compute import __version__
from compute.allocation.leases import LeaseStore
from compute.allocation.states import LeaseState
from compute.errors import StoreError
from compute.validator.facts import FactStore, WeightsState


class _StoreCollector(Collector):
    """A database that cannot be read is a metric too, and not a scrape that fails."""

    def __init__(self, role: str, hotkey: str, netuid: int) -> None:
        self._info = {"role": role, "hotkey": hotkey, "netuid": str(netuid), "version": __version__}

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("compute_neuron", "Which neuron this is.", self._info)
        try:
            found = list(self._read())
        except StoreError:
            found = []
        yield GaugeMetricFamily("compute_store_readable", "1 if the database could be read.", float(bool(found)))
        yield from found

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read."""
        return []

    @abstractmethod
    def _read(self) -> Iterator[Metric]:
        """The metrics of the role, at least one. May raise StoreError."""


class ValidatorCollector(_StoreCollector):
    """What a validator knows of the miners."""

    def __init__(self, facts: FactStore, hotkey: str, netuid: int) -> None:
        super().__init__("validator", hotkey, netuid)
        self._facts = facts

    def _read(self) -> Iterator[Metric]:
        scores = self._facts.scores()
        yield _by_reason(
            "compute_miners",
            "Miners by the reason of their score, as --status shows it.",
            (score.reason.value for score in scores),
        )
        yield _by_reason(
            "compute_specs",
            "Miners by the outcome of the last query of their specs.",
            (fact.reason.value for fact in self._facts.specs().values()),
        )
        latest = (history.latest for history in self._facts.histories().values())
        yield _by_reason(
            "compute_verdicts",
            "Machines by the reason of their last verdict.",
            (fact.reason.value for fact in latest if fact is not None),
        )
        score = GaugeMetricFamily("compute_score", "Score of a miner, 0 to 100.", labels=["uid", "hotkey"])
        for fact in scores:
            score.add_metric([str(fact.uid), fact.hotkey], fact.total)
        yield score
        scored_at = self._facts.scored_at()
        scored = GaugeMetricFamily("compute_scores_block", "Block of the last scores.")
        if scored_at is not None:
            scored.add_metric([], scored_at[1])
        yield scored
        yield from self._weights()

    def _weights(self) -> Iterator[Metric]:
        block = GaugeMetricFamily(
            "compute_weights_block", "Block of the last weights that got so far.", labels=["state"]
        )
        for state in WeightsState:
            entry = self._facts.last_weights((state,))
            if entry is not None:
                block.add_metric([state.value], entry.block)
        yield block
        confirmed = self._facts.last_weights((WeightsState.CONFIRMED,))
        held = confirmed.weights if confirmed is not None else {}
        weight = GaugeMetricFamily(
            "compute_weight", "Share of the weights that the chain holds, 0 to 1.", labels=["uid"]
        )
        for uid, value in held.items():
            weight.add_metric([str(uid)], value / sum(held.values()))
        yield weight


class MinerCollector(_StoreCollector):
    """Who has the machine."""

    def __init__(self, leases: LeaseStore, hotkey: str, netuid: int) -> None:
        super().__init__("miner", hotkey, netuid)
        self._leases = leases

    def _read(self) -> Iterator[Metric]:
        holder = self._leases.holder()
        state, kind = (holder.state.value, holder.kind.value) if holder is not None else (LeaseState.FREE.value, "")
        lease = GaugeMetricFamily("compute_lease", "1 at the lease that has the machine.", labels=["state", "kind"])
        lease.add_metric([state, kind], 1.0)
        yield lease
        ends = GaugeMetricFamily("compute_lease_ends_timestamp_seconds", "When it ends; absent without one.")
        if holder is not None:
            ends.add_metric([], holder.ends_at)
        yield ends


def _by_reason(name: str, text: str, reasons: Iterable[str]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["reason"])
    for reason, count in sorted(Counter(reasons).items()):
        family.add_metric([reason], count)
    return family
