"""The client and the miner's own service against each other, without HTTP and without machines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from compute.base.clock import SystemClock
from compute.base.errors import LeaseError
from compute.base.reasons import Refusal
from compute.base.store import Database
from compute.miner.allocate_handler import AllocateService
from compute.miner.leases.manager import LeaseManager
from compute.miner.leases.store import LeaseStore
from compute.miner.runtimes.base import ContainerState
from compute.protocol import Allocate
from compute.testing.runtime import FakeRuntime
from compute.wire import signing
from compute.wire.answers import SignedAnswers
from compute.wire.keys import RenterKey, SecretBox, SessionKey
from compute.wire.lease_client import AllocationClient, LeaseKeys
from compute.wire.lease_terms import Change, KeyLine
from compute.wire.peer import Peer, S
from compute.wire.requirements import DeviceRequirement
from compute.wire.signing import SignerMemory
from compute.wire.specs import Gpu, MachineSpecs

GIB = 1 << 30
PEER = Peer("5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY", "127.0.0.1", 8091)
WANTED = DeviceRequirement(cpu_count=1, gpu_count=1, ram_bytes=GIB)
MACHINE = MachineSpecs(
    cpu_count=8,
    cpu_frequency_mhz=3000,
    ram_total=64 * GIB,
    ram_available=60 * GIB,
    ram_used=4 * GIB,
    ram_free=60 * GIB,
    disk_total=500 * GIB,
    disk_used=0,
    disk_free=500 * GIB,
    gpus=(Gpu("NVIDIA L4", 23_034, uuid="GPU-1"),),
)
OWNERS = (RenterKey.generate(), RenterKey.generate())


class DirectCaller:
    """Hands requests to the service as the axon would, from ``hotkey``; signs answers with ``sign`` if given."""

    def __init__(self, service: AllocateService, hotkey: str) -> None:
        self._service = service
        self.hotkey = hotkey
        self.signature: Any = None

    async def call(self, peer: Peer, synapse: S, *, timeout_seconds: float) -> S:
        assert isinstance(synapse, Allocate)
        answer: S = synapse.model_copy(deep=True)
        output = await self._service.answer(self.hotkey, synapse)
        assert answer.dendrite is not None
        answer.dendrite.nonce, answer.dendrite.hotkey = 7, self.hotkey
        if self.signature is not None and "info" in output:
            output["info_signature"] = self.signature(output["info"])
        answer.__dict__["output"] = output
        return answer


def keys(owner: int = 0) -> LeaseKeys:
    return LeaseKeys(owner=OWNERS[owner], session=SessionKey.generate())


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
async def service(runtime: FakeRuntime) -> AsyncIterator[AllocateService]:
    database = Database(":memory:")
    store = LeaseStore(database, SecretBox(b"m" * 32))
    manager = LeaseManager(store=store, runtime=runtime, specs=lambda: MACHINE, clock=SystemClock())
    await manager.start()
    yield AllocateService(manager)
    await manager.close()
    database.close()


@pytest.fixture
def client(service: AllocateService) -> AllocationClient:
    return AllocationClient(DirectCaller(service, "alice"), SystemClock())


async def test_a_whole_lease(client: AllocationClient, runtime: FakeRuntime) -> None:
    await client.check(PEER, WANTED, days=1)
    mine = keys()
    login = await client.allocate(PEER, WANTED, days=1, keys=mine)
    (running,) = runtime.containers.values()
    assert login.host_key == running.endpoint.host_key
    assert login.port == running.endpoint.port
    assert login.password is None
    assert running.spec.authorized_keys == (mine.session.public_line,)
    assert await client.owns(PEER, mine)
    assert await client.allocate(PEER, WANTED, days=1, keys=mine) == login
    assert len(runtime.containers) == 1
    await client.deallocate(PEER, mine)
    assert runtime.containers == {}
    assert not await client.owns(PEER, mine)
    await client.deallocate(PEER, mine)


async def test_changes(client: AllocationClient, runtime: FakeRuntime) -> None:
    mine = keys()
    await client.allocate(PEER, WANTED, days=1, keys=mine)
    (running,) = runtime.containers.values()
    before = running.spec.ends_at
    await client.change(PEER, mine, Change.PAUSE)
    assert running.state is ContainerState.PAUSED
    await client.change(PEER, mine, Change.UNPAUSE)
    assert running.state is ContainerState.RUNNING
    await client.change(PEER, mine, Change.RESTART)
    fresh, terminal = SessionKey.generate().public_line, SessionKey.generate().public_line
    await client.exchange_key(PEER, mine, fresh)
    await client.exchange_key(PEER, mine, terminal, KeyLine.TERMINAL)
    (running,) = runtime.containers.values()
    assert running.starts == 2
    assert running.spec.authorized_keys == (fresh, terminal)
    await client.extend(PEER, mine, days=30)
    (running,) = runtime.containers.values()
    assert abs(running.spec.ends_at - before - 29 * 86_400) < 60
    await client.deallocate(PEER, mine)


async def test_nobody_else_gets_in(client: AllocationClient, service: AllocateService, runtime: FakeRuntime) -> None:
    mine = keys()
    await client.allocate(PEER, WANTED, days=1, keys=mine)
    stranger = AllocationClient(DirectCaller(service, "bob"), SystemClock())
    with pytest.raises(LeaseError) as caught:
        await stranger.allocate(PEER, WANTED, days=1, keys=keys(1))
    assert caught.value.reason is Refusal.BUSY
    with pytest.raises(LeaseError) as caught:
        await stranger.change(PEER, mine, Change.PAUSE)
    assert caught.value.reason is Refusal.NOT_OWNER
    await stranger.deallocate(PEER, mine)
    assert len(runtime.containers) == 1
    assert await client.owns(PEER, mine)


async def test_what_falls_short_is_named(client: AllocationClient) -> None:
    with pytest.raises(LeaseError) as caught:
        await client.check(PEER, DeviceRequirement(gpu_count=2), days=1)
    assert caught.value.reason is Refusal.GPU_COUNT


async def test_a_probe_is_rented_and_gone(client: AllocationClient, runtime: FakeRuntime) -> None:
    async with client.rented(PEER, DeviceRequirement(), days=1, testing=True, keys=keys()) as login:
        assert login.password
        assert len(runtime.containers) == 1
    assert runtime.containers == {}


async def test_a_machine_that_does_not_come_up_leaves_nothing(client: AllocationClient, runtime: FakeRuntime) -> None:
    runtime.fail = {"start"}
    with pytest.raises(LeaseError) as caught:
        await client.allocate(PEER, WANTED, days=1, keys=keys())
    assert caught.value.reason is Refusal.RUNTIME_FAILED
    runtime.fail = set()


async def test_signed_answers(service: AllocateService) -> None:
    def sign(info: str) -> str:
        message = signing.answer_message(7, "alice", info)
        return signing.encode(message[-64:])

    def verify(hotkey: str, message: bytes, signature: bytes) -> bool:
        return hotkey == PEER.hotkey and signature == message[-64:]

    caller = DirectCaller(service, "alice")
    memory = SignerMemory(Database(":memory:"))
    client = AllocationClient(caller, SystemClock(), signatures=SignedAnswers(verify, memory, SystemClock()))
    async with client.rented(PEER, WANTED, days=1, keys=keys()):
        assert not memory.knows(PEER.hotkey)
    caller.signature = sign
    async with client.rented(PEER, WANTED, days=1, keys=keys()):
        assert memory.knows(PEER.hotkey)
    forgeries: list[Any] = [None, lambda info: sign(info + "x"), lambda info: "0x12", lambda info: 5]
    for forgery in forgeries:
        caller.signature = forgery
        with pytest.raises(LeaseError, match="sign") as caught:
            await client.allocate(PEER, WANTED, days=1, keys=keys())
        assert caught.value.reason is Refusal.BAD_ANSWER
        assert not await client.owns(PEER, keys())
