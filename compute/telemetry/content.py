"""What the two neurons publish: plain data under the names that the network's tools read. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from compute import __version_as_int__
from compute.options import MinerOptions, ValidatorOptions
from compute.specs import MachineSpecs
from compute.validator.status import MinerRow


def miner_content(hotkey: str, options: MinerOptions, machine: MachineSpecs, *, allocated: bool) -> dict[str, Any]:
    """What a miner says of itself. It proves nothing, and no validator of this project reads it."""
    # Who knows a uuid could claim the card as his own.
    unnamed = tuple(replace(gpu, uuid=None, pci=None) for gpu in machine.gpus)
    return {
        "hotkey": hotkey,
        "role": "miner",
        "version": __version_as_int__,
        "config": {**_config(options), "ssh_port": options.ssh_port, "runtime": options.runtime.value},
        "specs": json.loads(machine.with_gpus(unnamed).to_json()),
        "allocated": allocated,
        # Only somebody outside can tell; a validator's proof does.
        "is_port_open": None,
    }


def validator_content(
    hotkey: str, options: ValidatorOptions, rows: Sequence[MinerRow], penalized: Collection[str]
) -> dict[str, Any]:
    """What a validator found: ``stats`` by uid, as ``--status --json`` has it."""
    return {
        "hotkey": hotkey,
        "role": "validator",
        "version": __version_as_int__,
        "config": _config(options),
        "allocated_hotkeys": sorted(row.hotkey for row in rows if row.allocated),
        "stats": {str(row.uid): row.to_json() for row in rows},
        "penalized_hotkeys": sorted(penalized),
        "penalized_hotkeys_checklist": sorted(penalized),
    }


def _config(options: MinerOptions | ValidatorOptions) -> Mapping[str, Any]:
    # No address and no path: an endpoint may hold a token, a path a name.
    return {"netuid": options.netuid, "auto_update": options.auto_update}
