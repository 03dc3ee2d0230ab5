"""What people and programs see of allocations, offers and rankings: rows of text, and JSON without a single secret."""

from __future__ import annotations

from collections.abc import Sequence

from compute.base.clock import duration, utc
from compute.base.console import Column
from compute.rental.market import Offer
from compute.rental.records import Allocation, Penalty
from compute.rental.selection import Explanation
from compute.wire.lease_terms import GIB, MIB_PER_GIB
from compute.wire.specs import MachineSpecs

ALLOCATION_COLUMNS = (
    Column("NAME"),
    Column("MACHINE"),
    Column("STATE"),
    Column("ENDS IN", 1),
    Column("SSH", 3),
    Column("HOTKEY", 4),
    Column("SINCE", 5),
)
OFFER_COLUMNS = (
    Column("UID", right=True),
    Column("GPU"),
    Column("GPUS", 1, right=True),
    Column("GIB EACH", 2, right=True),
    Column("CPUS", 4, right=True),
    Column("RAM GIB", 3, right=True),
    Column("DISK GIB", 5, right=True),
    Column("PROVEN", 6),
    Column("STATUS", wrap=True),
    Column("HOTKEY", 7),
)
RANKING_COLUMNS = (
    Column("RANK", right=True),
    Column("UID", right=True),
    Column("WHY", wrap=True),
    Column("HOTKEY", 1),
)
PENALTY_COLUMNS = (Column("HOTKEY"), Column("SINCE", 1), Column("NOTE"))


def allocation_json(allocation: Allocation, now: float) -> dict[str, object]:
    """One allocation for programs."""
    return {
        "name": allocation.name,
        "hotkey": allocation.hotkey,
        "machine": allocation.machine,
        "state": allocation_state(allocation, now),
        "host": allocation.peer.ip,
        "port": allocation.login and allocation.login.port,
        "username": allocation.login and allocation.login.username,
        "host_key": allocation.host_key,
        "trusted_on_first_use": allocation.trusted_on_first_use,
        "requirement": allocation.requirement,
        "created_at": utc(allocation.created_at),
        "ends_at": utc(allocation.ends_at),
    }


def allocation_rows(allocations: Sequence[Allocation], now: float) -> list[list[str]]:
    """Rows for ``ALLOCATION_COLUMNS``."""
    return [
        [
            allocation.name,
            allocation.machine,
            allocation_state(allocation, now),
            duration(allocation.ends_at - now),
            _login(allocation),
            allocation.hotkey,
            utc(allocation.created_at),
        ]
        for allocation in allocations
    ]


def allocation_pairs(allocation: Allocation, now: float) -> dict[str, str]:
    """One allocation in full, for people."""
    host_key = allocation.host_key or "not known yet"
    return {
        "name": allocation.name,
        "state": allocation_state(allocation, now),
        "machine": allocation.machine,
        "hotkey": allocation.hotkey,
        "ssh": _login(allocation),
        "host key": f"{host_key} (trusted on first use)" if allocation.trusted_on_first_use else host_key,
        "since": utc(allocation.created_at),
        "ends": f"{utc(allocation.ends_at)} (in {duration(allocation.ends_at - now)})",
    }


def allocation_state(allocation: Allocation, now: float) -> str:
    """The state on allocation, or ``ended`` once the lease's time is over."""
    return "ended" if allocation.ends_at <= now else allocation.state.value


def offer_json(offer: Offer) -> dict[str, object]:
    """One offer for programs; memory in MiB for GPUs, in bytes else."""
    specs = offer.specs
    machine = None
    if specs is not None:
        machine = {
            "gpus": [{"name": gpu.name, "capacity_mib": gpu.capacity_mib} for gpu in specs.gpus],
            "cpu_count": specs.cpu_count,
            "ram_total": specs.ram_total,
            "ram_available": specs.ram_available,
            "disk_free": specs.disk_free,
        }
    proven = None if offer.proven is None else {"gpu": offer.proven.gpu, "count": offer.proven.count}
    return {
        "uid": offer.uid,
        "hotkey": offer.peer.hotkey,
        "claims": machine,
        "proven": proven,
        "free": offer.problem is None,
        "problem": offer.problem,
    }


def offer_rows(offers: Sequence[Offer]) -> list[list[str]]:
    """Rows for ``OFFER_COLUMNS``."""
    return [
        [
            str(offer.uid),
            *_machine_cells(offer.specs),
            "-" if offer.proven is None else f"{offer.proven.count} × {offer.proven.gpu}",
            offer.problem or "free",
            offer.peer.hotkey,
        ]
        for offer in offers
    ]


def explanation_json(explanation: Explanation) -> dict[str, object]:
    """One line of a ranking for programs."""
    candidate = explanation.candidate
    return {"rank": explanation.rank, "uid": candidate.uid, "hotkey": candidate.hotkey, "why": explanation.why}


def explanation_rows(ranking: Sequence[Explanation]) -> list[list[str]]:
    """Rows for ``RANKING_COLUMNS``."""
    return [[str(entry.rank or "-"), str(entry.candidate.uid), entry.why, entry.candidate.hotkey] for entry in ranking]


def penalty_json(penalty: Penalty) -> dict[str, object]:
    """One penalty for programs."""
    return {"hotkey": penalty.hotkey, "note": penalty.note, "since": utc(penalty.since)}


def penalty_rows(penalties: Sequence[Penalty]) -> list[list[str]]:
    """Rows for ``PENALTY_COLUMNS``."""
    return [[penalty.hotkey, utc(penalty.since), penalty.note] for penalty in penalties]


def _login(allocation: Allocation) -> str:
    login = allocation.login
    return "-" if login is None else f"{login.username}@{allocation.peer.ip}:{login.port}"


def _machine_cells(specs: MachineSpecs | None) -> list[str]:
    if specs is None:
        return ["-"] * 6
    models = sorted({gpu.name for gpu in specs.gpus})
    each = sorted({gpu.capacity_mib / MIB_PER_GIB for gpu in specs.gpus})
    return [
        " / ".join(models) or "-",
        str(len(specs.gpus)),
        "/".join(f"{gib:.0f}" for gib in each) or "-",
        str(specs.cpu_count),
        f"{specs.ram_available / GIB:.0f}",
        f"{specs.disk_free / GIB:.0f}",
    ]
