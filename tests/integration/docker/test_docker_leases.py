"""The manager on the Docker runtime, seen by its renter: through ``info`` and a real SSH login."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from compute import ssh
from compute.allocation.docker_runtime import DockerRuntime
from compute.allocation.keys import RenterKey, SecretBox, SessionKey
from compute.allocation.leases import LeaseStore
from compute.allocation.manager import LeaseManager
from compute.allocation.runtime import Phase
from compute.allocation.service import AllocateCall, AllocateService
from compute.channel import Channel
from compute.clock import ManualClock, SystemClock
from compute.errors import SshError, SshTimeout, SshUnreachable
from compute.proof.bootstrap import BOOTSTRAP
from compute.proof.models import Claim, GpuModel, ProofSettings
from compute.proof.session import Target, prove_batch
from compute.reasons import ProofReason
from compute.specs import MachineSpecs
from compute.ssh import SshSession
from compute.store import Database

pytestmark = pytest.mark.docker

SPECS = MachineSpecs(
    cpu_count=2,
    cpu_frequency_mhz=1.0,
    ram_total=1 << 40,
    ram_available=1 << 40,
    ram_used=0,
    ram_free=1 << 40,
    disk_total=1 << 40,
    disk_used=0,
    disk_free=1 << 40,
)


@dataclass
class Renter:
    """One caller with its keys, and the way it would talk to a miner."""

    service: AllocateService
    hotkey: str
    owner: RenterKey = field(default_factory=RenterKey.generate)
    session: SessionKey = field(default_factory=SessionKey.generate)
    info: dict[str, Any] = field(default_factory=dict)

    async def ask(self, **fields: Any) -> dict[str, Any]:
        return await self.service.answer(AllocateCall(self.hotkey, public_key=self.owner.public_pem, **fields))

    async def allocate(self, *, testing: bool = False) -> dict[str, Any]:
        output = await self.ask(
            checking=False,
            timeline=1,
            device_requirement={"cpu": {"count": 1}, "ram": {"capacity": 1 << 30}, "testing": testing},
            docker_requirement={"ssh_key": self.session.public_line, "base_image": "ubuntu"},
        )
        if output["status"]:
            self.info = json.loads(self.owner.decrypt(base64.b64decode(output["info"])))
        return output

    async def change(self, action: str, **more: str) -> dict[str, Any]:
        return await self.ask(checking=False, docker_change=True, docker_action={"action": action, **more})

    def login(
        self, *, key: SessionKey | None = None, password: str | None = None
    ) -> AbstractAsyncContextManager[SshSession]:
        return ssh.connect(
            "127.0.0.1",
            self.info["port"],
            username=self.info["username"],
            pinned=self.info["host_key"],
            private_key=None if password is not None else (key or self.session).private_openssh,
            password=password,
        )

    async def says(self, text: str = "hello") -> str:
        async with self.login() as session:
            return (await session.run(["echo", text])).stdout.decode().strip()


@dataclass
class Miner:
    runtime: DockerRuntime
    clock: ManualClock
    manager: LeaseManager
    service: AllocateService


def build(folder: Path, runtime: DockerRuntime) -> Miner:
    store = LeaseStore(Database(folder / "miner.db"), SecretBox.from_key_file(folder / "lease.key"))
    clock = ManualClock(time.time())
    manager = LeaseManager(store=store, runtime=runtime, specs=lambda: SPECS, clock=clock, ssh_port=0)
    return Miner(runtime, clock, manager, AllocateService(manager))


@pytest.fixture
async def miner(tmp_path: Path, runtime: DockerRuntime) -> AsyncIterator[Miner]:
    miner = build(tmp_path, runtime)
    await miner.manager.start()
    yield miner
    await miner.manager.close()


@pytest.fixture
def alice(miner: Miner) -> Renter:
    return Renter(miner.service, "5Alice")


@pytest.fixture
def bob(miner: Miner) -> Renter:
    return Renter(miner.service, "5Bob")


async def test_rent_prove_and_give_back(miner: Miner, alice: Renter) -> None:
    assert (await alice.allocate(testing=True))["status"]

    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[Channel]:
        async with alice.login() as session:
            channel = await session.open(BOOTSTRAP)
            try:
                yield channel
            finally:
                await channel.close()

    # A card that any processor is, so that nothing here depends on how fast this one is.
    card = GpuModel("Card", tflops16=1e-6, vram_gb=1.0, bandwidth_gbs=1e-4)
    settings = ProofSettings(device="cpu", rows=1500, k=4096, columns=128, tile_rows=512, min_passes=4, max_passes=4)
    with ThreadPoolExecutor(1) as executor:
        (verdict,) = await prove_batch(
            [Target("5Miner", Claim("Card", 1), connect)],
            validator_hotkey="5Validator",
            models={"Card": card},
            tolerance_pairs=[],
            settings=settings,
            on_verdict=lambda target, verdict: None,
            executor=executor,
            clock=SystemClock(),
        )
    assert verdict.reason is ProofReason.OK, verdict
    assert (await alice.ask(checking=False))["status"]
    assert miner.runtime.list() == []
    with pytest.raises(SshUnreachable):
        await alice.says()


async def test_an_older_peer_probes_by_password(alice: Renter) -> None:
    assert (await alice.allocate(testing=True))["status"]
    async with alice.login(password=alice.info["password"]) as session:
        assert (await session.run("true")).exit_code == 0


async def test_of_two_at_the_same_instant_one_wins(miner: Miner, alice: Renter, bob: Renter) -> None:
    answers = await asyncio.gather(alice.allocate(), bob.allocate())
    assert sorted(answer["status"] for answer in answers) == [False, True]
    winner, loser = (alice, bob) if answers[0]["status"] else (bob, alice)
    assert (await loser.allocate())["reason"] == "busy"
    assert await winner.says() == "hello"
    assert len(miner.runtime.list()) == 1


async def test_a_stranger_is_refused_every_action(alice: Renter, bob: Renter) -> None:
    await alice.allocate()
    async with alice.login() as session:
        for action in ("restart", "pause", "unpause", "resume"):
            assert (await bob.change(action))["reason"] == "not_owner"
        exchanged = await bob.change("exchange_key", key_type="user", ssh_key=bob.session.public_line)
        assert exchanged["reason"] == "not_owner"
        assert (await bob.ask(checking=False))["reason"] == "not_owner"
        assert (await session.run("true")).exit_code == 0
    with pytest.raises(SshUnreachable):
        async with alice.login(key=bob.session):
            pass


async def test_a_customer_takes_over_from_a_probe(alice: Renter, bob: Renter) -> None:
    await alice.allocate(testing=True)
    async with alice.login() as probing:
        assert (await bob.allocate())["status"]
        with pytest.raises(SshError):
            await probing.run("true", timeout_seconds=10)
    assert await bob.says() == "hello"


async def test_pause_resume_restart_and_exchange(alice: Renter) -> None:
    await alice.allocate()
    async with alice.login() as session:
        assert (await alice.change("pause"))["status"]
        with pytest.raises(SshTimeout):
            await session.run("true", timeout_seconds=0.2)
        assert (await alice.change("resume"))["status"]
        assert (await session.run("true")).exit_code == 0
    fresh = SessionKey.generate()
    assert (await alice.change("exchange_key", key_type="user", ssh_key=fresh.public_line))["status"]
    for _ in range(2):
        with pytest.raises(SshUnreachable, match="refused"):
            await alice.says()
        async with alice.login(key=fresh) as session:
            assert (await session.run("true")).exit_code == 0
        assert (await alice.change("restart"))["status"]


async def test_a_failed_start_reaches_the_renter_and_leaves_the_machine_free(tmp_path: Path, make_runtime: Any) -> None:
    miner = build(tmp_path, make_runtime(image="compute-no-such-image"))
    await miner.manager.start()
    output = await Renter(miner.service, "5Alice").allocate()
    assert (output["reason"], output["status"]) == ("runtime_failed", False)
    assert "image for leases is missing" in output["message"]
    assert await miner.manager.current() is None
    await miner.manager.close()


MINER_PROCESS = """
import asyncio, json, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
from conftest import ENGINE, DockerEngine, DockerRuntime, settings_for
from test_docker_leases import Renter, RenterKey, SessionKey, build

async def main():
    folder = Path(sys.argv[2])
    settings = settings_for(sys.argv[3], network=sys.argv[4])
    miner = build(folder, DockerRuntime(settings, DockerEngine(ENGINE)))
    await miner.manager.start()
    keys = json.loads(sys.stdin.readline())
    owner, session = RenterKey.from_private_pem(keys["owner"]), SessionKey.from_private_openssh(keys["session"])
    alice = Renter(miner.service, "5Alice", owner, session)
    print("{}", flush=True)
    await alice.allocate()
    print(json.dumps(alice.info), flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.mark.parametrize("meanwhile", ["starting", "nothing", "its end", "the container dies", "it is removed"])
def test_a_lease_and_a_killed_miner(tmp_path: Path, make_runtime: Any, client: Any, until: Any, meanwhile: str) -> None:
    name = secrets.token_hex(8)
    runtime = make_runtime(name)
    network = runtime._settings.network
    keys = {"owner": RenterKey.generate().private_pem, "session": SessionKey.generate().private_openssh}
    process = subprocess.Popen(
        [sys.executable, "-c", MINER_PROCESS, str(Path(__file__).parent), str(tmp_path), name, network],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(ssh.__file__).parents[1],
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(keys).encode() + b"\n")
        process.stdin.flush()
        info = json.loads(process.stdout.readline())
        if meanwhile == "starting":
            # Killed as soon as there is a container, in whatever state.
            until(runtime.list)
        else:
            info = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL

    async def next_life() -> None:
        miner = build(tmp_path, runtime)
        owner = RenterKey.from_private_pem(keys["owner"])
        alice = Renter(miner.service, "5Alice", owner, SessionKey.from_private_openssh(keys["session"]), info)
        (status,) = runtime.list()
        (container,) = client.containers.list(all=True, filters={"label": f"compute.lease={status.lease_id}"})
        if meanwhile == "its end":
            miner.clock.advance(86_400)
        elif meanwhile == "the container dies":
            container.kill()
            assert runtime.status(status.lease_id).phase is Phase.DEAD
        elif meanwhile == "it is removed":
            container.remove(force=True)
        await miner.manager.start()
        if meanwhile == "starting":
            # Nobody has been told a way in: it ends, and asking again gives another.
            assert runtime.list() == []
            assert (await alice.allocate())["status"]
            assert await alice.says() == "hello"
        elif meanwhile == "its end":
            with pytest.raises(SshUnreachable):
                await alice.says()
        else:
            assert await alice.says("adopted") == "adopted"
            assert (await alice.allocate())["status"]
            assert alice.info == info
        if meanwhile != "its end":
            assert (await alice.ask(checking=False))["status"]
        assert runtime.list() == []
        await miner.manager.close()

    asyncio.run(next_life())


async def test_a_container_without_a_lease_is_removed(tmp_path: Path, runtime: DockerRuntime, order: Any) -> None:
    runtime.start(order)
    miner = build(tmp_path, runtime)
    await miner.manager.start()
    assert runtime.list() == []
    await miner.manager.close()
