"""What a validator tells the world: its metrics, and what it publishes of the miners."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from compute import __version_as_int__
from compute.base.metrics import StoreCollector, by_reason
from compute.telemetry.wandb_run import public_config
from compute.validator.options import ValidatorOptions
from compute.validator.show import MinerRow
from compute.validator.store import FactStore, WeightsState


class ValidatorCollector(StoreCollector):
    """What a validator knows of the miners."""

    def __init__(self, facts: FactStore, hotkey: str, netuid: int) -> None:
        super().__init__("validator", hotkey, netuid)
        self._facts = facts

    def _read(self) -> Iterator[Metric]:
        scores = self._facts.scores()
        yield by_reason(
            "compute_miners",
            "Miners by the reason of their score, as --status shows it.",
            (score.reason.value for score in scores),
        )
        yield by_reason(
            "compute_specs",
            "Miners by the outcome of the last query of their specs.",
            (fact.reason.value for fact in self._facts.specs().values()),
        )
        latest = (history.latest for history in self._facts.histories().values())
        yield by_reason(
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


def validator_content(
    hotkey: str, options: ValidatorOptions, rows: Sequence[MinerRow], penalized: Collection[str]
) -> dict[str, Any]:
    """What a validator found: ``stats`` by uid, as ``--status --json`` has it."""
    return {
        "hotkey": hotkey,
        "role": "validator",
        "version": __version_as_int__,
        "config": public_config(options),
        "allocated_hotkeys": sorted(row.hotkey for row in rows if row.allocated),
        "stats": {str(row.uid): row.to_json() for row in rows},
        "penalized_hotkeys": sorted(penalized),
        "penalized_hotkeys_checklist": sorted(penalized),
    }
