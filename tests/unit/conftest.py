"""A renter over a subnet of fakes, and its command line."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from compute.base.store import Database
from compute.cli import main as cli
from compute.cli.parser import RenterOptions
from compute.rental.records import RenterStore
from compute.rental.service import RenterService
from compute.testing.clock import ManualClock
from compute.testing.renter import FakeMiner, FakeRemote, FakeSubnet
from compute.wire.keys import RenterKey, SecretBox, SessionKey
from compute.wire.lease_client import LeaseKeys
from compute.wire.receipts import Issuer
from compute.wire.specs import Gpu, MachineSpecs

GIB = 1 << 30
SCORES = {"NVIDIA H200": 4.0, "NVIDIA L4": 0.43}
# Well-known development keys: valid ss58 addresses.
HOTKEYS = (
    "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY",
    "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty",
    "5FLSigC9HGRKVhB9FiEo4Y3koPsNmBmLJbpXg2mp1hXcS59Y",
)


class Clock(ManualClock):
    """Sleeps by moving itself on."""

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)
        await asyncio.sleep(0)


@dataclass
class Keyboard:
    """A terminal whose person types ``lines``; ``questions`` and ``called`` are what it was asked and told to run."""

    lines: list[str] = field(default_factory=list)
    is_interactive: bool = False
    questions: list[str] = field(default_factory=list)
    called: list[list[str]] = field(default_factory=list)
    on_call: Callable[[Sequence[str]], int] = lambda argv: 0

    def ask(self, question: str) -> str:
        self.questions.append(question)
        if not self.lines:
            raise EOFError
        return self.lines.pop(0)

    def call(self, argv: Sequence[str]) -> int:
        self.called.append(list(argv))
        return self.on_call(argv)


class Signer:
    """Signs a message with its first 64 bytes."""

    def sign(self, data: bytes) -> bytes:
        return data[:64]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@dataclass(frozen=True)
class Ran:
    """What one command line did."""

    code: int
    stdout: str
    stderr: str


class World:
    """Miners, a renter's database, and command lines against both."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.small = FakeMiner(HOTKEYS[0], machine("NVIDIA L4", 1, 23_034), ip="127.0.0.2")
        self.large = FakeMiner(HOTKEYS[1], machine("NVIDIA H200", 8, 143_771), ip="127.0.0.3")
        self.subnet = FakeSubnet(self.small, self.large)
        self.remote = FakeRemote(self.subnet)
        self.database = Database(":memory:")
        self.box = SecretBox(b"k" * 32)
        self.store = RenterStore(self.database, self.box)
        self.keyboard = Keyboard()
        self.issuer = Issuer(Signer(), "validator", 27, self.clock)
        self.opened: list[RenterOptions] = []
        self.service = RenterService(
            metagraph=self.subnet.metagraph,
            caller=self.subnet,
            store=self.store,
            remote=self.remote,
            clock=self.clock,
            gpu_scores=SCORES,
            issuer=lambda: self.issuer,
        )

    @asynccontextmanager
    async def open_service(self, options: RenterOptions) -> AsyncIterator[RenterService]:
        self.opened.append(options)
        yield self.service

    def run(self, *words: str, width: int | None = None, tty: bool = False, **environ: str) -> Ran:
        """Run a command line to its end."""
        stdout, stderr = (Terminal() if tty else io.StringIO()), io.StringIO()
        code = cli.main(
            words,
            environ=environ,
            open_service=self.open_service,
            terminal=self.keyboard,
            clock=self.clock,
            stdout=stdout,
            stderr=stderr,
            width=width,
        )
        return Ran(code, stdout.getvalue(), stderr.getvalue())

    def type(self, *lines: str) -> Ran:
        """Run the shell with ``lines`` typed into it."""
        self.keyboard.lines = list(lines)
        return self.run()


def machine(gpu: str, count: int, mib: int, **changes: Any) -> MachineSpecs:
    return MachineSpecs(
        **{
            "cpu_count": 8 * count,
            "cpu_frequency_mhz": 3000.0,
            "ram_total": 64 * count * GIB,
            "ram_available": 60 * count * GIB,
            "ram_used": 4 * count * GIB,
            "ram_free": 60 * count * GIB,
            "disk_total": 500 * GIB,
            "disk_used": 0,
            "disk_free": 500 * GIB,
            "gpus": tuple(Gpu(gpu, mib) for _ in range(count)),
            **changes,
        }
    )


_owner = RenterKey.generate()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Two miners: an L4 and eight H200. One RSA key serves all leases, because making one takes 100 ms."""

    async def generate() -> LeaseKeys:
        return LeaseKeys(owner=_owner, session=SessionKey.generate())

    monkeypatch.setattr(LeaseKeys, "generate", generate)
    return World()


@pytest.fixture
def hotkeys() -> tuple[str, ...]:
    return HOTKEYS


@pytest.fixture(scope="session")
def renter_keys() -> list[RenterKey]:
    return [RenterKey.generate() for _ in range(2)]
