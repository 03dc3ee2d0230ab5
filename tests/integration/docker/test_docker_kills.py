"""``kill -9`` of the miner's process, with a real engine that goes on: at four moments that the engine matters for.

Every step of every story is the fake runtime's, in tests/unit/miner/leases/test_crash.py.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compute.base.errors import SshUnreachable
from compute.miner.runtimes.base import ContainerState
from compute.wire.keys import RenterKey, SessionKey
from tests.waiting import until

pytestmark = pytest.mark.docker

ROOT = Path(__file__).resolve().parents[3]

MINER_PROCESS = """
import asyncio, json, sys
from pathlib import Path
from compute.wire.keys import RenterKey, SessionKey
from tests.integration.docker.conftest import ENGINE, DockerEngine, DockerRuntime, build, settings_for
from tests.integration.renting import Renter

wish = json.loads(sys.argv[1])

async def main():
    settings = settings_for(wish["miner"], network=wish["network"])
    runtime = DockerRuntime(settings, DockerEngine(ENGINE), start_seconds=120)
    miner = build(Path(wish["folder"]), runtime, stand_ready=wish["stand_ready"])
    await miner.manager.start()
    keys = json.loads(sys.stdin.readline())
    owner, session = RenterKey.from_private_pem(keys["owner"]), SessionKey.from_private_openssh(keys["session"])
    if not wish["stand_ready"]:
        alice = Renter(miner.service, "5Alice", owner, session)
        await alice.allocate()
        print(json.dumps(alice.info), flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


class Life:
    """A miner's process on one engine and one disk; where no machine is to stand ready, it has one renter."""

    def __init__(self, folder: Path, runtime: Any, *, stand_ready: bool = False) -> None:
        self.owner, self.session = RenterKey.generate(), SessionKey.generate()
        settings = runtime._settings
        wish = {"folder": str(folder), "miner": settings.miner, "network": settings.network, "stand_ready": stand_ready}
        self.process = subprocess.Popen(
            [sys.executable, "-c", MINER_PROCESS, json.dumps(wish)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        keys = {"owner": self.owner.private_pem, "session": self.session.private_openssh}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(keys).encode() + b"\n")
        self.process.stdin.flush()

    def says(self) -> dict[str, Any]:
        """The renter's way in."""
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))

    def is_killed(self) -> None:
        with self.process:
            self.process.send_signal(signal.SIGKILL)
        assert self.process.returncode == -signal.SIGKILL


def only_container(client: Any, runtime: Any) -> Any:
    (status,) = runtime.list()
    (container,) = client.containers.list(all=True, filters={"label": f"compute.lease={status.lease_id}"})
    return container


@pytest.mark.parametrize("meanwhile", ["starting", "its end", "the container dies"])
async def test_what_happens_while_the_miner_is_dead(
    tmp_path: Path, make_runtime: Any, running: Any, renter_of: Any, client: Any, meanwhile: str
) -> None:
    runtime = make_runtime()
    life = Life(tmp_path, runtime)
    info = {}
    if meanwhile == "starting":
        # Killed as soon as there is a container, in whatever state.
        until(runtime.list, "there is a container")
    else:
        info = life.says()
    life.is_killed()
    # The program's first step, before anything else: it also removes what a killed one left of the rules' writer.
    runtime.check()
    wanted = {"label": [f"compute.miner={runtime._settings.miner}", "compute.network"]}
    assert client.containers.list(all=True, filters=wanted, ignore_removed=True) == []
    if meanwhile == "the container dies":
        only_container(client, runtime).kill()
        assert runtime.list()[0].state is ContainerState.DEAD
    async with running(runtime, later=86_400 if meanwhile == "its end" else 0) as miner:
        alice = renter_of(miner, owner=life.owner, session=life.session, info=info)
        if meanwhile == "its end":
            with pytest.raises(SshUnreachable):
                await alice.says()
            assert (await alice.deallocate())["reason"] == "no_lease"
        elif meanwhile == "starting":
            # Nobody has been told a way in: it ended, and asking again gives another.
            assert runtime.list() == []
            assert (await alice.allocate())["status"]
            assert await alice.says() == "hello"
        else:
            assert await alice.says("adopted") == "adopted"
            assert (await alice.allocate())["status"]
            assert alice.info == info
        if meanwhile != "its end":
            assert (await alice.deallocate())["status"]
        assert runtime.list() == []


async def test_killed_while_a_standby_container_is_made(
    tmp_path: Path, make_runtime: Any, running: Any, renter_of: Any, client: Any
) -> None:
    runtime = make_runtime()
    life = Life(tmp_path, runtime, stand_ready=True)
    until(runtime.list, "there is a container")
    life.is_killed()
    runtime.check()
    before = only_container(client, runtime)
    async with running(runtime, stand_ready=True) as miner:
        # Nobody knows its host key any more.
        until(
            lambda: before.id not in {each.id for each in client.containers.list(all=True, ignore_removed=True)},
            "the container of the life before is gone",
        )
        alice = renter_of(miner)
        assert (await alice.allocate())["status"]
        assert await alice.says() == "hello"
    assert [status.state for status in runtime.list()] == [ContainerState.RUNNING]
