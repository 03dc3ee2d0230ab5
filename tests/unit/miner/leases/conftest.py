"""A miner's lease room without Docker, network or real time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from compute.base.store import Database
from compute.miner.allocate_handler import AllocateService
from compute.miner.leases.manager import LeaseManager, LeaseRequest
from compute.miner.leases.states import LeaseState
from compute.miner.leases.store import Lease, LeaseStore, Owner
from compute.testing.clock import ManualClock
from compute.testing.runtime import FakeContainer, FakeRuntime
from compute.wire.keys import RenterKey, SecretBox, SessionKey
from compute.wire.lease_terms import LeaseKind
from compute.wire.requirements import DeviceRequirement
from compute.wire.specs import Gpu, MachineSpecs

DAY = 86_400.0

SPECS = MachineSpecs(
    cpu_count=8,
    cpu_frequency_mhz=3000.0,
    ram_total=64 << 30,
    ram_available=32 << 30,
    ram_used=32 << 30,
    ram_free=16 << 30,
    disk_total=1 << 40,
    disk_used=1 << 39,
    disk_free=1 << 39,
    gpus=(
        Gpu("NVIDIA L4", 23_034, uuid="GPU-0"),
        Gpu("NVIDIA A100-SXM4-80GB", 81_920, uuid="GPU-1"),
        Gpu("NVIDIA A100-SXM4-80GB", 81_920, uuid="GPU-2"),
    ),
)


@dataclass
class Miner:
    """One life of a miner process; ``again`` gives the next one on the same disk and the same machine."""

    folder: Path
    clock: ManualClock
    box: SecretBox
    machines: dict[str, FakeContainer] = field(default_factory=dict)
    specs: MachineSpecs = SPECS
    stand_ready: bool = False
    runtime: FakeRuntime = field(init=False)
    store: LeaseStore = field(init=False)
    manager: LeaseManager = field(init=False)
    service: AllocateService = field(init=False)

    def __post_init__(self) -> None:
        self.runtime = FakeRuntime(self.machines)
        self.database = Database(self.folder / "miner.db")
        self.store = LeaseStore(self.database, self.box)
        self.manager = LeaseManager(
            store=self.store,
            runtime=self.runtime,
            specs=lambda: self.specs,
            clock=self.clock,
            answer_seconds=20,
            stand_ready=self.stand_ready,
        )
        self.service = AllocateService(self.manager)

    async def again(self) -> Miner:
        """The next life, started; the old one is closed as far as it still lives."""
        await self.close()
        miner = Miner(self.folder, self.clock, self.box, self.machines, self.specs, self.stand_ready)
        await miner.manager.start()
        return miner

    async def close(self) -> None:
        await self.manager.close()
        self.database.close()

    def states(self) -> list[LeaseState]:
        return [lease.state for lease in self.store.live()]

    def only(self) -> Lease:
        (lease,) = self.store.live()
        return lease


@pytest.fixture
def alice(renter_keys: list[RenterKey]) -> Owner:
    return Owner("5Alice", renter_keys[0].public_pem)


@pytest.fixture
def bob(renter_keys: list[RenterKey]) -> Owner:
    return Owner("5Bob", renter_keys[1].public_pem)


@pytest.fixture
def ssh_key() -> SessionKey:
    return SessionKey.generate()


@pytest.fixture
async def miner(tmp_path: Path) -> AsyncIterator[Miner]:
    miner = Miner(tmp_path, ManualClock(), SecretBox(bytes(32)))
    await miner.manager.start()
    yield miner
    await miner.close()


@pytest.fixture
def miner_type() -> type[Miner]:
    return Miner


MakeRequest = Callable[..., LeaseRequest]


@pytest.fixture
def request_of(ssh_key: SessionKey) -> MakeRequest:
    def make(owner: Owner, *, kind: LeaseKind = LeaseKind.CUSTOMER, days: float = 2, gpus: int = 1) -> LeaseRequest:
        requirement = DeviceRequirement(cpu_count=1, gpu_count=gpus)
        return LeaseRequest(owner, kind, requirement, "ubuntu", ssh_key.public_line, days * DAY)

    return make
