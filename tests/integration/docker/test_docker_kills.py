"""``kill -9`` of the miner's process, in every state of a lease and at other bad moments."""

from __future__ import annotations

import json
import secrets
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compute.base.errors import SshUnreachable
from compute.miner.leases.states import LeaseState
from compute.miner.runtimes.base import Phase
from compute.wire.keys import RenterKey, SessionKey

pytestmark = pytest.mark.docker

ROOT = Path(__file__).resolve().parents[3]

MINER_PROCESS = """
import asyncio, json, os, sys
from pathlib import Path
from compute.wire.keys import RenterKey, SessionKey
from tests.integration.docker.conftest import ENGINE, DockerEngine, DockerRuntime, LeaseStore, build, settings_for
from tests.integration.renting import Renter

wish = json.loads(sys.argv[1])

class DyingStore(LeaseStore):
    # The process is gone as soon as a state has been written for the n-th time.
    left = wish["times"]

    def written(self, state):
        self.left -= state == wish["dies_in"]
        if not self.left:
            os.kill(os.getpid(), 9)

    def reserve(self, *args, **kwargs):
        lease = super().reserve(*args, **kwargs)
        self.written(lease.state.value)
        return lease

    def move(self, lease_id, to, **kwargs):
        lease = super().move(lease_id, to, **kwargs)
        self.written(to.value)
        return lease

async def main():
    runtime = DockerRuntime(settings_for(wish["miner"], network=wish["network"]), DockerEngine(ENGINE))
    miner = build(
        Path(wish["folder"]), runtime, ssh_port=wish["port"], store_type=DyingStore, stand_ready=wish["stand_ready"]
    )
    await miner.manager.start()
    keys = json.loads(sys.stdin.readline())
    owner, session = RenterKey.from_private_pem(keys["owner"]), SessionKey.from_private_openssh(keys["session"])
    alice = Renter(miner.service, "5Alice", owner, session)
    print("{}", flush=True)
    if wish["stand_ready"]:
        await asyncio.sleep(1000)
    await alice.allocate()
    print(json.dumps(alice.info), flush=True)
    if wish["action"] == "deallocate":
        await alice.deallocate()
    elif wish["action"]:
        await alice.change(wish["action"])
    await asyncio.sleep(1000)

asyncio.run(main())
"""


class Life:
    """A miner's process on one engine and one disk, with one renter."""

    def __init__(self, folder: Path, runtime: Any, miner: str, **wish: Any) -> None:
        self.owner, self.session = RenterKey.generate(), SessionKey.generate()
        self.info: dict[str, Any] = {}
        network = runtime._settings.network
        wish = {"folder": str(folder), "miner": miner, "network": network, "port": 0, "action": "", **wish}
        wish = {"stand_ready": False, **wish}
        wish = {"dies_in": "", "times": 1, **wish}
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
        """The next line of the process; empty where it died first."""
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline() or b"{}"))

    def is_killed(self) -> None:
        with self.process:
            self.process.send_signal(signal.SIGKILL)
        assert self.process.returncode == -signal.SIGKILL

    def dies(self) -> None:
        with self.process:
            try:
                assert self.process.wait(60) == -signal.SIGKILL
            finally:
                self.process.kill()


def only_container(client: Any, runtime: Any) -> Any:
    (status,) = runtime.list()
    (container,) = client.containers.list(all=True, filters={"label": f"compute.lease={status.lease_id}"})
    return container


@pytest.mark.parametrize("meanwhile", ["starting", "nothing", "its end", "the container dies", "it is removed"])
async def test_what_happens_while_the_miner_is_dead(
    tmp_path: Path, make_runtime: Any, running: Any, renter_of: Any, client: Any, until: Any, meanwhile: str
) -> None:
    name = secrets.token_hex(8)
    runtime = make_runtime(name)
    life = Life(tmp_path, runtime, name)
    life.says()
    if meanwhile == "starting":
        # Killed as soon as there is a container, in whatever state.
        until(runtime.list)
        info = {}
    else:
        info = life.says()
    life.is_killed()
    runtime.check()
    container = only_container(client, runtime)
    if meanwhile == "the container dies":
        container.kill()
        assert runtime.list()[0].phase is Phase.DEAD
    elif meanwhile == "it is removed":
        container.remove(force=True)
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


@pytest.mark.parametrize("when", ["making it", "it stands ready"])
async def test_killed_while_no_lease_is_there(
    tmp_path: Path, make_runtime: Any, running: Any, renter_of: Any, client: Any, until: Any, when: str
) -> None:
    name = secrets.token_hex(8)
    runtime = make_runtime(name)
    life = Life(tmp_path, runtime, name, stand_ready=True)

    def is_there() -> bool:
        return any(when == "making it" or status.phase is Phase.RUNNING for status in runtime.list())

    until(is_there)
    life.is_killed()
    runtime.check()
    before = only_container(client, runtime)
    async with running(runtime, stand_ready=True) as miner:
        # Nobody knows its host key any more.
        until(lambda: before.id not in {each.id for each in client.containers.list(all=True, ignore_removed=True)})
        alice = renter_of(miner)
        assert (await alice.allocate())["status"]
        assert await alice.says() == "hello"
    assert [status.phase for status in runtime.list()] == [Phase.RUNNING]


@pytest.mark.parametrize(
    ("state", "action", "times", "survives"),
    [
        ("reserved", "", 1, False),
        ("starting", "", 1, False),
        ("active", "", 1, True),
        ("paused", "pause", 1, True),
        # From active to active: a restart.
        ("starting", "restart", 2, True),
        ("active", "restart", 2, True),
        ("stopping", "deallocate", 1, False),
        ("free", "deallocate", 1, False),
        ("failed", "", 1, False),
    ],
)
async def test_killed_as_soon_as_a_state_is_written(
    tmp_path: Path,
    make_runtime: Any,
    running: Any,
    renter_of: Any,
    client: Any,
    state: str,
    action: str,
    times: int,
    survives: bool,
) -> None:
    name = secrets.token_hex(8)
    runtime = make_runtime(name)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1] if state == "failed" else 0
        life = Life(tmp_path, runtime, name, dies_in=state, action=action, times=times, port=port)
        life.says()
        info = life.says()
        life.dies()
    # The program's first step, before anything else: it also removes what a killed one left of the rules' writer.
    runtime.check()
    wanted = {"label": [f"compute.miner={name}", "compute.network"]}
    assert client.containers.list(all=True, filters=wanted, ignore_removed=True) == []
    async with running(runtime) as miner:
        alice = renter_of(miner, owner=life.owner, session=life.session, info=info)
        assert [lease.state for lease in miner.store.live()] == (
            [] if not survives else [LeaseState.PAUSED if state == "paused" else LeaseState.ACTIVE]
        )
        assert len(runtime.list()) == survives
        if state == "paused":
            assert (await alice.change("resume"))["status"]
        # One who never heard of the way in asks again, and gets the same lease where there is one.
        before = dict(alice.info)
        assert (await alice.allocate())["status"]
        assert (alice.info == before) is (survives and bool(before))
        assert await alice.says() == "hello"
        assert (await alice.deallocate())["status"]
        assert runtime.list() == []
