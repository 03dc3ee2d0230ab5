"""A renter's steps of a Dockerfile, run by the lease's own container before it is handed over."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.waiting import until, until_async

from .conftest import both_ways, passing_until

pytestmark = pytest.mark.docker

WAITS = "RUN while ! [ -e /go ]; do sleep 0.1; done"


async def only_container(client: Any, miner: Any) -> Any:
    """Once it runs: an answer may have come before."""

    def find() -> Any:
        wanted = {"label": [f"compute.miner={miner.runtime._settings.miner}", "compute.lease"]}
        return client.containers.list(filters=wanted, ignore_removed=True)

    (container,) = await until_async(lambda: asyncio.to_thread(find), "the lease's container runs")
    return container


async def fails(miner: Any, alice: Any, steps: str) -> str:
    """The reason that the renter is told, of a lease of which nothing is left."""
    output = await alice.allocate(dockerfile=steps)
    assert (output["status"], output["reason"]) == (False, "runtime_failed"), output
    assert miner.machines() == []
    assert miner.store.live() == []
    return str(output["message"])


@both_ways
async def test_steps_are_done_once_and_the_result_is_the_renters(alice: Any, miner: Any, client: Any) -> None:
    def images() -> set[str]:
        return {image["Id"] for image in client.api.images(all=True)}

    before = images()
    steps = 'WORKDIR /work\nENV NAME=world\nRUN echo "hello $NAME" \\\n    >>greeting\nRUN ["touch", "a file"]'
    assert (await alice.allocate(dockerfile=steps))["status"]
    for _ in range(2):
        async with alice.login() as session:
            assert (await session.run("cat /work/greeting; ls /work")).stdout == b"hello world\na file\ngreeting\n"
        assert (await alice.change("restart"))["status"]
    assert (await alice.deallocate())["status"]
    assert miner.machines() == []
    # One that another test has made goes again; one that is left of the steps would not.
    until(lambda: images() <= before, "no image is left")


async def test_steps_have_no_more_power_than_the_renter(alice: Any, miner: Any, client: Any) -> None:
    reach = "python3 -c 'import socket; socket.create_connection((\"{}\", 22), 60)' 2>>/root/reached; true"
    gateway = client.networks.get(miner.runtime._settings.network).attrs["IPAM"]["Config"][0]["Gateway"]
    steps = [
        "RUN cat /proc/self/status >/root/status; cat /proc/self/mountinfo >/root/mounts",
        *(f"RUN {reach.format(host)}" for host in (gateway, "169.254.169.254")),
    ]
    assert (await alice.allocate(dockerfile="\n".join(steps)))["status"]
    async with alice.login() as session:
        for shown in ("status", "mounts"):
            then = (await session.run(["cat", f"/root/{shown}"])).stdout.decode()
            now = (await session.run(["cat", f"/proc/self/{'mountinfo' if shown == 'mounts' else shown}"])).stdout
            assert facts(then) == facts(now.decode())
        reached = (await session.run("cat /root/reached")).stdout.decode()
    assert reached.count("No route to host") == 2


def facts(text: str) -> list[str]:
    """What says something about power, of a process's status or mounts."""
    return [line for line in text.splitlines() if line.startswith(("Cap", "NoNewPrivs", "Seccomp:")) or " - " in line]


async def test_a_step_that_fails_ends_the_lease_with_its_number(
    alice: Any, miner: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for steps, number in (
        ("RUN true\nRUN exit 9", 2),
        ("RUN true\nRUN nothing-like-this", 2),
        # Twice the memory of the lease.
        ("RUN python3 -c 'len(bytes(1) * (2 << 30))'", 1),
    ):
        assert f"step {number} of the dockerfile failed" in await fails(miner, alice, steps)
    assert "nothing-like-this" not in caplog.text
    assert (await alice.allocate())["status"]
    assert await alice.says() == "hello"


async def test_steps_may_take_so_long_and_no_longer(running: Any, make_runtime: Any, renter_of: Any) -> None:
    async with running(make_runtime(start_seconds=1, script_seconds=1)) as miner:
        assert "took longer than 2 s" in await fails(miner, renter_of(miner), "RUN sleep 1000")


async def test_steps_may_write_so_much_and_no_more(running: Any, make_runtime: Any, renter_of: Any) -> None:
    async with running(make_runtime(script_bytes=50 << 20)) as miner:
        told = await fails(miner, renter_of(miner), "RUN head -c 100M /dev/zero >/large; sleep 1000")
        assert "wrote 100 MiB, and may write 50 MiB" in told


async def test_asking_again_while_steps_run_gives_the_same_lease(alice: Any, bob: Any, miner: Any, client: Any) -> None:
    for _ in range(2):
        asked = asyncio.ensure_future(alice.allocate(dockerfile=WAITS))
        await passing_until(miner, asked.done, "the renter is told to ask again")
        assert (await asked)["reason"] == "starting"
    assert (await bob.allocate())["reason"] == "busy"
    assert (await alice.allocate(dockerfile="RUN true"))["reason"] == "busy"
    lease = miner.store.holder().lease_id
    (await only_container(client, miner)).exec_run(["touch", "/go"])
    assert (await alice.allocate(dockerfile=WAITS))["status"]
    assert miner.store.holder().lease_id == lease
    assert await alice.says() == "hello"


async def test_a_lease_given_back_while_its_steps_run_is_over_at_once(alice: Any, bob: Any, miner: Any) -> None:
    asked = asyncio.ensure_future(alice.allocate(dockerfile="RUN sleep 1000"))
    await until_async(lambda: asyncio.to_thread(miner.machines), "there is a machine")
    assert (await alice.deallocate())["status"]
    assert (await asked)["reason"] == "runtime_failed"
    assert miner.machines() == []
    assert (await bob.allocate())["status"]
    assert await bob.says() == "hello"


async def test_a_miner_that_ends_does_not_wait_for_steps(running: Any, runtime: Any, renter_of: Any) -> None:
    async with running(runtime) as miner:
        alice = renter_of(miner)
        asked = asyncio.ensure_future(alice.allocate(dockerfile=WAITS))
        await until_async(lambda: asyncio.to_thread(miner.machines), "there is a machine")
    assert (await asked)["reason"] == "runtime_failed"
    assert runtime.list() == []


async def test_a_probe_runs_no_steps(alice: Any) -> None:
    assert (await alice.allocate(testing=True, dockerfile="RUN true"))["reason"] == "unsupported"
