"""The manager on the Docker runtime, seen by its renter: through ``info`` and a real SSH login."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from compute.base.channel import Channel
from compute.base.clock import SystemClock
from compute.base.errors import SshError, SshTimeout, SshUnreachable
from compute.base.reasons import ProofReason
from compute.miner.runtimes.base import ContainerState
from compute.miner.runtimes.docker import DockerRuntime
from compute.proof.bootstrap import BOOTSTRAP
from compute.proof.models import Claim, GpuModel, ProofSettings
from compute.proof.session import Target, prove_batch
from compute.wire.keys import RenterKey, SessionKey
from tests.waiting import DEADLINE_SECONDS, until

from .conftest import both_ways, passing_until

pytestmark = pytest.mark.docker


@pytest.mark.parametrize("stand_ready", [True])
async def test_rent_prove_and_give_back(miner: Any, alice: Any) -> None:
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
    patient = dict.fromkeys(
        ("hello_seconds", "prepare_seconds", "open_seconds", "phase_deadline_floor_seconds"), 10 * DEADLINE_SECONDS
    )
    settings = ProofSettings(
        device="cpu", rows=1500, k=4096, columns=128, tile_rows=512, min_passes=4, max_passes=4, **patient
    )
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
    assert miner.machines() == []
    with pytest.raises(SshUnreachable):
        await alice.says()


@pytest.mark.parametrize("stand_ready", [True])
async def test_an_older_peer_probes_by_password(alice: Any) -> None:
    assert (await alice.allocate(testing=True))["status"]
    async with alice.login(password=alice.info["password"]) as session:
        assert (await session.run("true")).exit_code == 0


@both_ways
async def test_of_two_at_the_same_instant_one_wins(miner: Any, alice: Any, bob: Any) -> None:
    answers = await asyncio.gather(alice.allocate(), bob.allocate())
    assert sorted(answer["status"] for answer in answers) == [False, True]
    winner, loser = (alice, bob) if answers[0]["status"] else (bob, alice)
    assert (await loser.allocate())["reason"] == "busy"
    assert await winner.says() == "hello"
    assert len(miner.machines()) == 1


async def test_a_stranger_is_refused_every_action(alice: Any, bob: Any) -> None:
    await alice.allocate()
    fresh = {"owner": RenterKey.generate(), "session": SessionKey.generate()}
    strangers = {
        "another hotkey": replace(bob, owner=alice.owner),
        "another key": replace(alice, **fresh),
        "both": bob,
    }
    async with alice.login() as session:
        for mistaken, stranger in strangers.items():
            answers = [await stranger.change(action) for action in ("restart", "pause", "unpause", "resume")]
            for line in ("user", "terminal"):
                key = {"key_type": line, "ssh_key": stranger.session.public_line}
                answers.append(await stranger.change("exchange_key", **key))
            answers += [await stranger.change("extend", timeline=9), await stranger.deallocate()]
            assert {answer["reason"] for answer in answers} == {"not_owner"}, mistaken
            assert (await stranger.allocate())["reason"] == "busy", mistaken
            assert (await stranger.allocate(testing=True))["reason"] == "busy", mistaken
        # The same connection as before: nothing was restarted meanwhile.
        assert (await session.run("true")).exit_code == 0
    for stranger in strangers.values():
        with pytest.raises(SshUnreachable):
            async with alice.login(key=stranger.session):
                pass


@both_ways
async def test_a_customer_takes_over_from_a_probe(alice: Any, bob: Any) -> None:
    await alice.allocate(testing=True)
    async with alice.login() as probing:
        assert (await bob.allocate())["status"]
        with pytest.raises(SshError):
            await probing.run("true", timeout_seconds=DEADLINE_SECONDS)
    assert await bob.says() == "hello"


async def test_pause_resume_restart_and_exchange(alice: Any) -> None:
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


async def test_the_key_before_an_exchange_is_dead_for_either_line(alice: Any) -> None:
    await alice.allocate()
    for line in ("user", "terminal"):
        old, new = SessionKey.generate(), SessionKey.generate()
        for key in (old, new):
            assert (await alice.change("exchange_key", key_type=line, ssh_key=key.public_line))["status"]
        with pytest.raises(SshUnreachable, match="refused"):
            async with alice.login(key=old):
                pass
        async with alice.login(key=new) as session:
            assert (await session.run("true")).exit_code == 0


async def gives_a_reason_and_is_free_again(miner: Any, alice: Any, text: str) -> None:
    output = await alice.allocate()
    assert (output["reason"], output["status"]) == ("runtime_failed", False)
    assert text in output["message"]
    assert await miner.manager.current() is None
    assert miner.machines() == []
    assert miner.store.live() == []


async def test_a_missing_image(running: Any, make_runtime: Any, renter_of: Any) -> None:
    async with running(make_runtime(image="compute-no-such-image")) as miner:
        await gives_a_reason_and_is_free_again(miner, renter_of(miner), "image for leases is missing")


async def test_a_taken_port(running: Any, runtime: DockerRuntime, renter_of: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        async with running(runtime, ssh_port=port) as miner:
            alice = renter_of(miner)
            await gives_a_reason_and_is_free_again(miner, alice, f"port {port} is taken")
            server.close()
            assert (await alice.allocate())["status"]
            assert await alice.says() == "hello"


async def test_an_engine_that_is_gone(running: Any, make_runtime: Any, renter_of: Any, way: Any) -> None:
    runtime = make_runtime(url=way.url)
    async with running(runtime) as miner:
        alice = renter_of(miner)
        way.cut()
        output = await alice.allocate()
        assert (output["reason"], output["status"]) == ("runtime_failed", False)
        assert "engine does not answer" in output["message"]
        way.mend()
        # Whatever may have been left is tried to be removed until it is certain that it is gone.
        await passing_until(miner, lambda: miner.store.live() == [], "the lease that failed is over")
        assert (await alice.allocate())["status"]
        assert await alice.says() == "hello"
        way.cut()
        new = SessionKey.generate()
        exchange = {"key_type": "user", "ssh_key": new.public_line}
        for action, more in (("pause", {}), ("resume", {}), ("exchange_key", exchange), ("restart", {})):
            output = await alice.change(action, **more)
            assert (output["reason"], output["status"]) == ("runtime_failed", False)
        # The renter's machine is as it was, and the lease outlives the engine's absence.
        assert await alice.says() == "hello"
        way.mend()
        await passing_until(miner, lambda: miner.store.holder().state.value == "active", "the lease is active again")
        async with alice.login(key=new) as session:
            assert (await session.run("true")).exit_code == 0
        with pytest.raises(SshUnreachable, match="refused"):
            await alice.says()


async def test_an_sshd_that_was_killed_comes_back(miner: Any, alice: Any) -> None:
    assert (await alice.allocate())["status"]
    async with alice.login() as session:
        await session.run("echo kept >/root/file")
        # The whole container ends with it, this session too.
        with contextlib.suppress(SshError):
            await session.run("kill -9 $(cat /run/sshd.pid); sleep 1000", timeout_seconds=DEADLINE_SECONDS)
    (status,) = miner.machines()
    until(lambda: miner.runtime.status(status.lease_id).state is ContainerState.DEAD, "the container has ended")
    await passing_until(
        miner, lambda: miner.runtime.status(status.lease_id).state is ContainerState.RUNNING, "it runs again"
    )
    await passing_until(miner, lambda: miner.store.holder().state.value == "active", "the lease is active again")
    async with alice.login() as session:
        assert (await session.run("cat /root/file")).stdout == b"kept\n"


async def test_a_container_without_a_lease_is_removed(running: Any, runtime: DockerRuntime, spec: Any) -> None:
    runtime.start(spec)
    async with running(runtime):
        assert runtime.list() == []
