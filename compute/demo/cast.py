"""Who plays in the demo."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from compute.localnet.settings import H100


class Kind(str, Enum):
    """What a miner of the demo does. The values are what the table shows."""

    HONEST = "honest"
    LIAR = "liar"
    DYING = "dying"


LIE = H100
"""What the liar claims to have."""
LIE_MIB = 81_559


@dataclass(frozen=True)
class Actor:
    """One miner: its name, what it does, and how many CPU cores it offers as devices."""

    name: str
    kind: Kind
    devices: int = 1


def cast(miners: int) -> list[Actor]:
    """The first four are one honest device, two honest devices, the liar, and the one that dies; more are honest."""
    first = [
        Actor("honest-1", Kind.HONEST, 1),
        Actor("honest-2", Kind.HONEST, 2),
        Actor("liar", Kind.LIAR),
        Actor("dying", Kind.DYING),
    ]
    more = [Actor(f"honest-{number}", Kind.HONEST, 1) for number in range(3, miners - 1)]
    return (first + more)[:miners]
