"""An engine that ends under a lease: stopped, restarted, killed. The miner's process goes on."""

from __future__ import annotations

from typing import Any

import pytest

from compute.base.errors import SshUnreachable
from compute.miner.leases.states import LeaseState

from ..conftest import passing_until

pytestmark = pytest.mark.docker


KNOCK = "exec 3<>/dev/tcp/$(ip route | cut -d' ' -f3 | head -n1)/9"
"""At the host's door. Nobody listens there: where it is open, the connection is refused."""


@pytest.fixture(scope="module")
def engine(make_engine: Any) -> Any:
    return make_engine()


@pytest.mark.parametrize(("way", "paused"), [("stop", False), ("kill", True)])
async def test_a_lease_lives_on_when_its_engine_comes_back(
    engine: Any, runtime_on: Any, running: Any, renter_of: Any, way: str, paused: bool
) -> None:
    async with running(runtime_on(engine)) as miner:
        alice, bob = renter_of(miner), renter_of(miner, "5Bob")
        assert (output := await alice.allocate())["status"], output
        async with alice.login() as session:
            await session.run("echo kept >/root/file")
        if paused:
            assert (await alice.change("pause"))["status"]
        getattr(engine, way)()
        for action in ("pause", "restart"):
            output = await alice.change(action)
            assert (output["status"], output["reason"]) in ((False, "runtime_failed"), (False, "starting")), output
        assert (await bob.allocate())["reason"] == "busy"
        engine.start()
        await passing_until(miner, lambda: is_active(miner), "the lease is active again")
        async with alice.login() as session:
            assert (await session.run("cat /root/file")).stdout == b"kept\n"
            reached = await session.run(["bash", "-c", KNOCK])
            assert b"No route to host" in reached.stderr
        assert (await alice.change("pause"))["status"]
        assert (await alice.change("resume"))["status"]
        assert (await alice.deallocate())["status"]
        assert miner.runtime.list() == []
        assert (await bob.allocate())["status"]
        assert await bob.says() == "hello"
        assert (await bob.deallocate())["status"]


def is_active(miner: Any) -> bool:
    lease = miner.store.holder()
    return lease is not None and lease.state is LeaseState.ACTIVE


async def test_a_lease_that_ends_while_the_engine_is_away_is_taken_down_when_it_is_back(
    engine: Any, runtime_on: Any, running: Any, renter_of: Any
) -> None:
    async with running(runtime_on(engine)) as miner:
        alice, bob = renter_of(miner), renter_of(miner, "5Bob")
        assert (output := await alice.allocate())["status"], output
        engine.kill()
        miner.clock.advance(86_400)
        assert (await alice.change("restart"))["reason"] == "no_lease"
        output = await bob.allocate()
        assert (output["status"], output["reason"]) == (False, "runtime_failed")
        engine.start()
        await passing_until(miner, lambda: miner.store.live() == [], "the lease is over")
        assert miner.runtime.list() == []
        with pytest.raises(SshUnreachable):
            await alice.says()
        assert (await bob.allocate())["status"]
        assert await bob.says() == "hello"
        assert (await bob.deallocate())["status"]
