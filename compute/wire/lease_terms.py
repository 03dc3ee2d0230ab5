"""What both ends of a lease must agree on, each once: its numbers, its kinds, and what its owner may do to it."""

from __future__ import annotations

import re
from enum import Enum

GIB = 1 << 30
"""Bytes in a GiB."""
MIB_PER_GIB = 1024

SECONDS_PER_DAY = 86_400

MAX_DAYS = 366
"""The longest that a customer's lease may last from now."""
DEFAULT_DAYS = 90
"""How long a renter's lease lasts where nobody says."""
DEFAULT_HOTKEY_DAYS = 30
"""The same, where the renter names the miner."""

PROBE_SECONDS = 600.0
"""The longest that a probe's lease may last, whatever it asks for."""

MAX_RETRY_AFTER_SECONDS = float(SECONDS_PER_DAY)
"""The largest ``retry_after`` of a refusal."""

HOST_KEY = re.compile(r"SHA256:[A-Za-z0-9+/]{43}\Z")
"""The fingerprint of an SSH host key, as OpenSSH prints it."""


class LeaseKind(str, Enum):
    """Who leases: a customer, or a validator that only looks. The values are the database form."""

    CUSTOMER = "customer"
    PROBE = "probe"

    @property
    def container_name(self) -> str:
        """The name that peers on the network know."""
        return "ssh-container" if self is LeaseKind.CUSTOMER else "ssh-test-container"


class KeyLine(str, Enum):
    """Which line of ``authorized_keys``: 1 is the user's, 2 the terminal's."""

    USER = "user"
    TERMINAL = "terminal"


class Change(str, Enum):
    """What an owner may do to a live lease: ``docker_action.action`` on the wire. Peers also say ``resume``."""

    EXCHANGE_KEY = "exchange_key"
    RESTART = "restart"
    PAUSE = "pause"
    UNPAUSE = "unpause"
    RECEIPT = "receipt"
    EXTEND = "extend"
