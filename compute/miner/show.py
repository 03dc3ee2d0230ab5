"""What a miner's machine is and who has it, printed: ``--status``. Neither chain nor SDK is needed."""

from __future__ import annotations

import sys
import time
from typing import Any

from compute.base.clock import duration, utc_short
from compute.base.console import Column, Output
from compute.base.errors import ComputeError, StoreEmpty
from compute.base.process import EXIT_CONFIG, EXIT_OK
from compute.base.store import Database
from compute.miner.hardware import hardware_of
from compute.miner.leases.store import Lease, LeaseStore
from compute.miner.options import MinerOptions
from compute.wire.keys import SecretBox
from compute.wire.lease_terms import GIB

SHOWN_LEASES = 10

LEASE_COLUMNS = (
    Column("lease"),
    Column("for"),
    Column("renter", drop_order=2),
    Column("since (UTC)", drop_order=1),
    Column("ends in", right=True),
    Column("reason", wrap=True),
)


def status(options: MinerOptions, output: Output | None = None) -> int:
    """Print the machine as it is, and its leases as the database has them, one a line; returns the exit code."""
    output = output or Output(sys.stdout, sys.stderr, as_json=options.json)
    try:
        machine = hardware_of(options).specs()
        leases = _leases(options)
    except ComputeError as error:
        output.error(str(error), reason=None, advice="Name the miner's database with --database.")
        return EXIT_CONFIG
    now = time.time()
    current = next((lease for lease in leases if lease.state.value != "free"), None)
    if options.json:
        output.data(
            {
                "gpus": [{"name": gpu.name, "capacity_mib": gpu.capacity_mib} for gpu in machine.gpus],
                "cpu_count": machine.cpu_count,
                "ram_total": machine.ram_total,
                "disk_free": machine.disk_free,
                "has_docker": machine.has_docker,
                "lease": None if current is None else _lease_json(current, now),
                "leases": [_lease_json(lease, now) for lease in leases],
            }
        )
        return EXIT_OK
    models = sorted({gpu.name for gpu in machine.gpus})
    output.pairs(
        {
            "GPUs": f"{len(machine.gpus)} × {' / '.join(models)}" if models else "none",
            "CPUs": str(machine.cpu_count),
            "RAM": f"{machine.ram_total / GIB:.0f} GiB",
            "free disk": f"{machine.disk_free / GIB:.0f} GiB",
            "Docker": "yes" if machine.has_docker else "no",
            "lease": "none" if current is None else f"{current.state.value}, {current.kind.value}",
            "renter": "none" if current is None else current.owner.hotkey,
        }
    )
    if leases:
        output.line("")
        output.table(LEASE_COLUMNS, [lease_cells(lease, now) for lease in leases])
    return EXIT_OK


def _leases(options: MinerOptions) -> list[Lease]:
    """What has the machine, and the last that had it; the newest first."""
    if not options.database.exists():
        return []
    database = Database(options.database, read_only=True)
    try:
        # No secrets are read, so any key does.
        store = LeaseStore(database, SecretBox(bytes(32)))
        return [*store.live()[::-1], *store.history()[: -SHOWN_LEASES - 1 : -1]]
    except StoreEmpty:
        # A miner that is about to start for the first time.
        return []
    finally:
        database.close()


def lease_cells(lease: Lease, now: float) -> list[str]:
    """One row of the table, as ``LEASE_COLUMNS``."""
    over = lease.state.value == "free"
    return [
        "ended" if over else lease.state.value,
        lease.kind.value,
        lease.owner.hotkey[:8] + "…",
        utc_short(lease.created_at),
        "–" if over else duration(lease.ends_at - now),
        lease.reason or "–",
    ]


def _lease_json(lease: Lease, now: float) -> dict[str, Any]:
    return {
        "state": lease.state.value,
        "kind": lease.kind.value,
        "owner": lease.owner.hotkey,
        "created_at": lease.created_at,
        "activated_at": lease.activated_at,
        "ends_at": lease.ends_at,
        "ends_in_seconds": round(lease.ends_at - now),
        "reason": lease.reason,
    }
