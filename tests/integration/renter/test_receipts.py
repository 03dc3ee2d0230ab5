"""A rental that another validator can see: real axon, dendrites, signatures, sshd; the chain alone is in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace

import bittensor
import pytest

from compute.base.clock import SystemClock
from compute.base.store import Database
from compute.chain.access_lists import AccessLists
from compute.miner.access import AccessPolicy
from compute.miner.allocate_handler import AllocateService
from compute.miner.gate import MinerGate
from compute.miner.hardware import FixedHardware
from compute.miner.leases.manager import LeaseManager
from compute.miner.leases.store import LeaseStore
from compute.miner.runtimes.local import LocalRuntime
from compute.miner.service import MinerService
from compute.rental.records import RenterStore
from compute.rental.remote import SshRemote
from compute.rental.service import RenterService
from compute.testing.chain import FakeChain
from compute.testing.clock import ManualClock
from compute.validator.rented import LOOK_SECONDS, OwnRentals, RentedMachines
from compute.validator.specs_query import query_specs
from compute.validator.store import FactStore
from compute.wire.client import DendriteCaller
from compute.wire.keys import SecretBox
from compute.wire.receipts import Issuer, Receipt, check
from compute.wire.requirements import DeviceRequirement
from compute.wire.server import AxonServer
from compute.wire.signing import SignerMemory, verify_signature
from compute.wire.specs import Gpu, MachineSpecs
from tests.waiting import until_async

GIB = 1 << 30
MACHINE = MachineSpecs(2, 3000.0, 8 * GIB, 8 * GIB, 0, 0, 50 * GIB, 0, 50 * GIB, (Gpu("NVIDIA L4", 23_034),))
MINER, RENTER, OTHER = (bittensor.Keypair.create_from_uri(f"//{name}") for name in ("miner", "renter", "other"))
NETUID = 27


class World:
    """One miner, a validator that rents, and another validator that looks."""

    def __init__(self, folder: Path, ssh_port: int) -> None:
        self.chain = FakeChain(MINER.ss58_address, NETUID)
        self.chain.add(RENTER.ss58_address, stake=2000.0, validator_permit=True)
        self.chain.add(OTHER.ss58_address, stake=2000.0, validator_permit=True)
        self.chain.add(MINER.ss58_address, ip="0.0.0.0", port=0)
        clock = SystemClock()
        self.miner_database, self.renter_database = Database(folder / "miner.db"), Database(folder / "renter.db")
        self.runtime = LocalRuntime(folder / "leases", chain_endpoint="ws://127.0.0.1:9944", bind_address="127.0.0.2")
        self.manager = LeaseManager(
            store=LeaseStore(self.miner_database, SecretBox(b"m" * 32)),
            runtime=self.runtime,
            specs=lambda: MACHINE,
            clock=clock,
            ssh_port=ssh_port,
        )
        gate = MinerGate(AccessPolicy(), clock)
        wallet = SimpleNamespace(hotkey=MINER, coldkeypub=bittensor.Keypair.create_from_uri("//cold"))
        self.server = AxonServer(wallet, gate, ip="127.0.0.2", port=0, external_ip="127.0.0.2")

        def check_receipt(receipt: Receipt) -> None:
            check(receipt, netuid=NETUID, miner=MINER.ss58_address, now=clock.now(), verify=verify_signature)

        self.miner = MinerService(
            hotkey=MINER,
            own_hotkey=MINER.ss58_address,
            chain=self.chain,
            server=self.server,
            gate=gate,
            allocation=AllocateService(self.manager, check_receipt),
            hardware=FixedHardware(MACHINE),
            signers=SignerMemory(self.miner_database),
            clock=clock,
        )
        self.renters_caller = DendriteCaller(RENTER, external_ip="127.0.0.1")
        self.renter = RenterService(
            metagraph=self.chain.metagraph,
            caller=self.renters_caller,
            store=RenterStore(self.renter_database, SecretBox(b"r" * 32)),
            remote=SshRemote(),
            clock=clock,
            gpu_scores={},
            issuer=lambda: Issuer(RENTER, RENTER.ss58_address, NETUID, clock),
        )
        self.caller = DendriteCaller(OTHER, external_ip="127.0.0.1")
        self.facts = FactStore(Database(":memory:"))
        self.clock = ManualClock(clock.now())
        self.rented = RentedMachines(
            own_hotkey=OTHER.ss58_address,
            own_rentals=OwnRentals(rentals=list, penalized=set, host_keys=SshRemote(), verify=verify_signature),
            facts=self.facts,
            lists=AccessLists(),
            clock=self.clock,
            uid=lambda hotkey: None,
            on_rented=lambda hotkey: None,
        )

    async def look(self) -> dict[str, str]:
        """The other validator looks at the machines that show a receipt."""
        await self.rented.watch_own(self.chain.height)
        await self.rented.look_at_receipts(await self.chain.metagraph())
        return self.rented.through()

    async def ask(self) -> dict[str, str]:
        """The other validator asks for specs, and looks."""
        neuron = self.chain.neurons[2]
        async for facts in query_specs([neuron], caller=self.caller, clock=self.clock, block=100, at_once=1):
            self.facts.record_specs(facts)
        return await self.look()


@pytest.fixture
async def world(tmp_path: Path, hold_port: Callable[..., int]) -> AsyncIterator[World]:
    world = World(tmp_path, hold_port("127.0.0.2"))
    await world.manager.start()
    serving = asyncio.create_task(world.miner.run())
    await until_async(lambda: serving.done() or world.chain.neurons[2].is_serving, "the miner serves")
    assert not serving.done()
    try:
        yield world
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        await world.manager.close()
        for status in world.runtime.list():
            world.runtime.stop(status.lease_id)
        await world.renters_caller.close()
        await world.caller.close()
        world.miner_database.close()
        world.renter_database.close()


async def test_another_validator_sees_the_rental_as_long_as_it_lasts(world: World) -> None:
    assert await world.ask() == {}
    record = await world.renter.allocate(DeviceRequirement(cpu_count=1), days=30)
    assert await world.ask() == {MINER.ss58_address: RENTER.ss58_address}
    (shown,) = (fact.specs for fact in world.facts.specs().values())
    assert shown is not None
    assert "receipt" in shown

    await world.renter.deallocate(record.name)
    # The miner goes on showing the receipt, whose end is days away: nothing answers with its host key.
    world.clock.advance(LOOK_SECONDS)
    assert await world.look() == {}
    assert await world.ask() == {}
