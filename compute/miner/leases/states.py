"""The life of a lease, as a table.

::

    free → reserved → starting → active ⇄ paused → stopping → free
              └───────────┴────────┴───────┴─→ failed → stopping

``starting`` is entered again from ``active`` and ``paused`` by a restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType


class LeaseState(str, Enum):
    """Where a lease is in its life. The values are the database form."""

    FREE = "free"
    RESERVED = "reserved"
    STARTING = "starting"
    ACTIVE = "active"
    PAUSED = "paused"
    STOPPING = "stopping"
    FAILED = "failed"


_ALLOWED: Mapping[LeaseState, frozenset[LeaseState]] = MappingProxyType(
    {
        LeaseState.FREE: frozenset({LeaseState.RESERVED}),
        LeaseState.RESERVED: frozenset({LeaseState.STARTING, LeaseState.STOPPING, LeaseState.FAILED}),
        LeaseState.STARTING: frozenset({LeaseState.ACTIVE, LeaseState.STOPPING, LeaseState.FAILED}),
        LeaseState.ACTIVE: frozenset({LeaseState.PAUSED, LeaseState.STARTING, LeaseState.STOPPING, LeaseState.FAILED}),
        LeaseState.PAUSED: frozenset({LeaseState.ACTIVE, LeaseState.STARTING, LeaseState.STOPPING, LeaseState.FAILED}),
        LeaseState.STOPPING: frozenset({LeaseState.FREE}),
        LeaseState.FAILED: frozenset({LeaseState.STOPPING}),
    }
)

HOLDING = frozenset({LeaseState.RESERVED, LeaseState.STARTING, LeaseState.ACTIVE, LeaseState.PAUSED})
"""The owner has the machine, or is about to: at most one lease at a time is in one of these."""

DRAINING = frozenset({LeaseState.FAILED, LeaseState.STOPPING})
"""The lease is over for its owner; what is left of it on the machine is being removed."""


def may_move(current: LeaseState, following: LeaseState) -> bool:
    """Whether the table allows a lease to go from ``current`` to ``following``."""
    return following in _ALLOWED[current]
