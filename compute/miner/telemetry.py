"""What a miner tells the world: its metrics, and what it publishes of itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from compute import __version_as_int__
from compute.base.metrics import StoreCollector
from compute.miner.leases.states import LeaseState
from compute.miner.leases.store import LeaseStore
from compute.miner.options import MinerOptions
from compute.telemetry.wandb_run import public_config
from compute.wire.specs import MachineSpecs


class MinerCollector(StoreCollector):
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


def miner_content(hotkey: str, options: MinerOptions, machine: MachineSpecs, *, allocated: bool) -> dict[str, Any]:
    """What a miner says of itself. It proves nothing, and no validator of this project reads it."""
    # Who knows a uuid could claim the card as his own.
    unnamed = tuple(replace(gpu, uuid=None, pci=None) for gpu in machine.gpus)
    return {
        "hotkey": hotkey,
        "role": "miner",
        "version": __version_as_int__,
        "config": {**public_config(options), "ssh_port": options.ssh_port, "runtime": options.runtime.value},
        "specs": json.loads(machine.with_gpus(unnamed).to_json()),
        "allocated": allocated,
        # Only somebody outside can tell; a validator's proof does.
        "is_port_open": None,
    }
