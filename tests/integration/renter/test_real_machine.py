"""The renter, the miner's own service, the local runtime and real SSH: everything but HTTP and the chain."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from compute.base.clock import SystemClock
from compute.base.errors import HostKeyMismatch, LeaseError, SshError
from compute.base.store import Database
from compute.chain.subtensor import Metagraph, Neuron
from compute.miner.allocate_handler import AllocateService
from compute.miner.leases.manager import LeaseManager
from compute.miner.leases.store import LeaseStore
from compute.miner.runtimes.local import LocalRuntime
from compute.protocol import Allocate, Specs
from compute.rental.records import RenterStore
from compute.rental.remote import SshRemote
from compute.rental.service import RenterService
from compute.wire.keys import SecretBox
from compute.wire.peer import Peer, S
from compute.wire.requirements import DeviceRequirement
from compute.wire.specs import MachineSpecs
from tests.waiting import DEADLINE_SECONDS

GIB = 1 << 30
HOTKEY = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
WANTED = DeviceRequirement(cpu_count=1)
MACHINE = MachineSpecs(
    cpu_count=2,
    cpu_frequency_mhz=3000,
    ram_total=8 * GIB,
    ram_available=8 * GIB,
    ram_used=0,
    ram_free=8 * GIB,
    disk_total=50 * GIB,
    disk_used=0,
    disk_free=50 * GIB,
)


class Miner:
    """One miner's service behind a caller and a metagraph of one."""

    def __init__(self, service: AllocateService) -> None:
        self._service = service

    async def metagraph(self) -> Metagraph:
        neuron = Neuron(
            uid=0,
            hotkey=HOTKEY,
            coldkey="",
            ip="127.0.0.1",
            port=8091,
            version=200,
            stake=0.0,
            validator_permit=False,
            last_update=0,
            registered_at=0,
            incentive=0.1,
            dividends=0.0,
        )
        return Metagraph(netuid=27, block=1, neurons=(neuron,))

    async def call(self, peer: Peer, synapse: S, *, timeout_seconds: float) -> S:
        answer: S = synapse.model_copy(deep=True)
        if isinstance(synapse, Specs):
            answer.__dict__["specs_output"] = MACHINE.to_json()
            return answer
        assert isinstance(synapse, Allocate)
        answer.__dict__["output"] = await self._service.answer("renter", synapse)
        return answer


@pytest.fixture
async def world(tmp_path: Path, hold_port: Callable[..., int]) -> AsyncIterator[tuple[RenterService, LocalRuntime]]:
    async with renting(tmp_path, hold_port()) as opened:
        yield opened


@asynccontextmanager
async def renting(folder: Path, ssh_port: int) -> AsyncIterator[tuple[RenterService, LocalRuntime]]:
    miner_database, renter_database = Database(folder / "miner.db"), Database(folder / "renter.db")
    runtime = LocalRuntime(folder / "leases", chain_endpoint="ws://127.0.0.1:9944")
    manager = LeaseManager(
        store=LeaseStore(miner_database, SecretBox(b"m" * 32)),
        runtime=runtime,
        specs=lambda: MACHINE,
        clock=SystemClock(),
        ssh_port=ssh_port,
    )
    await manager.start()
    miner = Miner(AllocateService(manager))
    try:
        yield (
            RenterService(
                metagraph=miner.metagraph,
                caller=miner,
                store=RenterStore(renter_database, SecretBox(b"r" * 32)),
                remote=SshRemote(),
                clock=SystemClock(),
                gpu_scores={},
            ),
            runtime,
        )
    finally:
        await manager.close()
        for status in runtime.list():
            runtime.stop(status.lease_id)
        miner_database.close()
        renter_database.close()


async def test_rent_use_change_and_give_back(world: tuple[RenterService, LocalRuntime]) -> None:
    service, runtime = world
    record = await service.allocate(WANTED, days=1)
    assert record.host_key is not None
    assert record.host_key.startswith("SHA256:")

    result = await service.execute(record.name, ["sh", "-c", 'printf "%s" "$1"; exit 7', "sh", "a  b; $(false)"])
    assert (result.exit_code, result.stdout) == (7, b"a  b; $(false)")

    await service.exchange_key(record.name)
    assert (await service.execute(record.name, ["true"])).exit_code == 0
    with pytest.raises(SshError):
        await SshRemote().run(record, ["true"], timeout_seconds=DEADLINE_SECONDS)

    await service.restart(record.name)
    assert (await service.execute(record.name, ["echo", "back"])).stdout == b"back\n"

    await service.deallocate(record.name)
    assert list(runtime.list()) == []
    with pytest.raises(SshError):
        await SshRemote().run(record, ["true"], timeout_seconds=DEADLINE_SECONDS)


async def test_an_impostors_host_key_is_refused(world: tuple[RenterService, LocalRuntime]) -> None:
    service, _ = world
    record = await service.allocate(WANTED, days=1)
    line = await SshRemote().host_key_line("127.0.0.1", record.require_login().port, timeout_seconds=DEADLINE_SECONDS)
    assert line.startswith("ssh-ed25519 ")
    forged = replace(record, login=replace(record.require_login(), host_key="SHA256:" + "A" * 43))
    with pytest.raises(HostKeyMismatch):
        await SshRemote().run(forged, ["true"], timeout_seconds=DEADLINE_SECONDS)


async def test_a_machine_that_is_taken_is_busy(world: tuple[RenterService, LocalRuntime]) -> None:
    service, _ = world
    record = await service.allocate(WANTED, days=1)
    service.forget(record.name)
    with pytest.raises(LeaseError) as caught:
        await service.allocate(WANTED, days=1)
    assert caught.value.reason.value == "busy"


async def test_nobody_at_the_port_is_a_typed_error(hold_port: Callable[..., int]) -> None:
    with pytest.raises(SshError):
        await SshRemote().host_key_line("127.0.0.1", hold_port(), timeout_seconds=DEADLINE_SECONDS)


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh client on this machine")
async def test_the_systems_ssh_logs_in_with_the_pinned_key(world: tuple[RenterService, LocalRuntime]) -> None:
    service, _ = world
    record = await service.allocate(WANTED, days=1)
    with await service.ssh(record.name, ["echo", "hello from  there"]) as argv:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        stdout, stderr = await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
    assert (process.returncode, stdout) == (0, b"hello from  there\n"), stderr
