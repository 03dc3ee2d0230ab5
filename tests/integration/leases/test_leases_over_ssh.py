"""The manager on the local runtime, seen by its renter: through ``info`` and a real SSH login."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from compute.base.errors import SshError, SshTimeout, SshUnreachable
from compute.base.store import Database
from compute.miner.allocate_handler import AllocateService
from compute.miner.leases.manager import LeaseManager
from compute.miner.leases.store import LeaseStore
from compute.miner.runtimes.base import ContainerState
from compute.miner.runtimes.local import LocalRuntime
from compute.testing.clock import ManualClock
from compute.wire.keys import RenterKey, SecretBox, SessionKey
from tests.waiting import DEADLINE_SECONDS, until_async

from ..renting import SPECS, Renter

ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Miner:
    runtime: LocalRuntime
    store: LeaseStore
    clock: ManualClock
    manager: LeaseManager
    service: AllocateService


def build(folder: Path, runtime: LocalRuntime) -> Miner:
    store = LeaseStore(Database(folder / "miner.db"), SecretBox.from_key_file(folder / "lease.key"))
    clock = ManualClock(time.time())
    manager = LeaseManager(store=store, runtime=runtime, specs=lambda: SPECS, clock=clock, ssh_port=0)
    return Miner(runtime, store, clock, manager, AllocateService(manager))


@pytest.fixture
async def miner(tmp_path: Path, runtime: LocalRuntime) -> AsyncIterator[Miner]:
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


async def test_rent_use_and_give_back(miner: Miner, alice: Renter) -> None:
    assert (await alice.allocate())["status"]
    assert alice.info["password"] == ""
    assert await alice.says("hello") == "hello"
    assert (await alice.ask())["status"]
    assert (await alice.deallocate())["status"]
    with pytest.raises(SshUnreachable):
        await alice.says()
    assert miner.runtime.list() == []
    assert not (await alice.ask())["status"]


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


async def test_a_stranger_is_refused_every_action_and_the_owner_notices_nothing(alice: Renter, bob: Renter) -> None:
    await alice.allocate()
    thief = Renter(bob.service, "5Bob", owner=alice.owner, session=bob.session)
    async with alice.login() as session:
        for stranger in (bob, thief):
            for action in ("restart", "pause", "unpause", "resume"):
                assert (await stranger.change(action))["reason"] == "not_owner"
            exchanged = await stranger.change("exchange_key", key_type="user", ssh_key=bob.session.public_line)
            assert exchanged["reason"] == "not_owner"
            assert (await stranger.deallocate())["reason"] == "not_owner"
        assert (await session.run("true")).exit_code == 0
    with pytest.raises(SshUnreachable):
        async with alice.login(key=bob.session):
            pass


async def test_a_customer_takes_over_from_a_probe(miner: Miner, alice: Renter, bob: Renter) -> None:
    await alice.allocate(testing=True)
    async with alice.login() as probing:
        assert (await bob.allocate())["status"]
        with pytest.raises(SshError):
            await probing.run("true", timeout_seconds=DEADLINE_SECONDS)
    assert await bob.says() == "hello"
    assert (await alice.allocate(testing=True))["reason"] == "busy"


async def test_after_an_exchange_the_old_key_is_refused(alice: Renter) -> None:
    await alice.allocate()
    terminal, fresh = SessionKey.generate(), SessionKey.generate()
    assert (await alice.change("exchange_key", key_type="terminal", ssh_key=terminal.public_line))["status"]
    assert (await alice.change("exchange_key", key_type="user", ssh_key=fresh.public_line))["status"]
    with pytest.raises(SshUnreachable, match="refused"):
        await alice.says()
    # It stays out when the machine comes up anew.
    assert (await alice.change("restart"))["status"]
    with pytest.raises(SshUnreachable, match="refused"):
        await alice.says()
    for key in (terminal, fresh):
        async with alice.login(key=key) as session:
            assert (await session.run("true")).exit_code == 0


async def test_pause_and_resume(alice: Renter) -> None:
    await alice.allocate()
    async with alice.login() as session:
        assert (await alice.change("pause"))["status"]
        with pytest.raises(SshTimeout):
            await session.run("true", timeout_seconds=0.2)
        assert (await alice.change("resume"))["status"]
        assert (await session.run("true")).exit_code == 0


async def test_a_lease_ends_at_its_time(miner: Miner, alice: Renter) -> None:
    await alice.allocate()
    async with alice.login() as session:
        miner.clock.advance(86_400)
        await until_async(lambda: not miner.runtime.list(), "the machine is gone", passing=miner.clock)
        with pytest.raises(SshError):
            await session.run("true", timeout_seconds=DEADLINE_SECONDS)


MINER_PROCESS = """
import asyncio, json, sys, time
from pathlib import Path
from compute.wire.keys import RenterKey, SessionKey
from compute.miner.runtimes.local import LocalRuntime
from tests.integration.leases.test_leases_over_ssh import build
from tests.integration.renting import Renter

async def main():
    folder = Path(sys.argv[1])
    miner = build(folder, LocalRuntime(folder / "leases", chain_endpoint="ws://127.0.0.1:9944"))
    await miner.manager.start()
    keys = json.loads(sys.stdin.readline())
    owner, session = RenterKey.from_private_pem(keys["owner"]), SessionKey.from_private_openssh(keys["session"])
    alice = Renter(miner.service, "5Alice", owner, session)
    await alice.allocate()
    print(json.dumps(alice.info), flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.mark.parametrize("meanwhile", ["nothing", "its end", "the server dies"])
def test_a_lease_outlives_a_killed_miner(tmp_path: Path, runtime: LocalRuntime, meanwhile: str) -> None:
    keys = {"owner": RenterKey.generate().private_pem, "session": SessionKey.generate().private_openssh}
    process = subprocess.Popen(
        [sys.executable, "-c", MINER_PROCESS, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(keys).encode() + b"\n")
        process.stdin.flush()
        info = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL

    async def next_life() -> None:
        miner = build(tmp_path, runtime)
        owner = RenterKey.from_private_pem(keys["owner"])
        alice = Renter(miner.service, "5Alice", owner, SessionKey.from_private_openssh(keys["session"]), info)
        assert await alice.says("orphaned") == "orphaned"
        (status,) = runtime.list()
        if meanwhile == "its end":
            miner.clock.advance(86_400)
        if meanwhile == "the server dies":
            pid = json.loads((tmp_path / "leases" / status.lease_id / "state.json").read_text())["pid"]
            os.kill(pid, signal.SIGKILL)
            await until_async(
                lambda: runtime.status(status.lease_id).state is ContainerState.DEAD, "the server is dead"
            )
        await miner.manager.start()
        if meanwhile == "its end":
            with pytest.raises(SshUnreachable):
                await alice.says()
        else:
            assert await alice.says("adopted") == "adopted"
            assert (await alice.allocate())["status"]
            assert alice.info == info
            assert (await alice.deallocate())["status"]
        assert runtime.list() == []
        await miner.manager.close()

    asyncio.run(next_life())
