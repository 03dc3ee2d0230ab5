"""A real Docker engine, a real image, real SSH.

Every test here needs an engine and the image; without, it is skipped, or fails where COMPUTE_REQUIRE_DOCKER=1 says that
there must be one. COMPUTE_TEST_IMAGE names another image than the default.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import select
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from docker.client import DockerClient

from compute.base import ssh
from compute.base.errors import ConfigError
from compute.base.ssh import SshSession
from compute.base.store import Database
from compute.miner.allocate_handler import AllocateService
from compute.miner.hardware import DEFAULT_DOCKER_HOST
from compute.miner.leases.manager import LeaseManager
from compute.miner.leases.store import LeaseStore
from compute.miner.options import MinerOptions
from compute.miner.runtimes.base import ContainerSpec, ContainerStatus, Endpoint, Limits
from compute.miner.runtimes.docker import DockerRuntime
from compute.miner.runtimes.docker_engine import DockerEngine, EngineGone
from compute.miner.runtimes.docker_options import DockerSettings
from compute.testing.clock import ManualClock
from compute.wire.keys import SecretBox, SessionKey
from compute.wire.lease_terms import LeaseKind
from tests.waiting import DEADLINE_SECONDS, until_async

from ..renting import SPECS, Renter

ENGINE = os.environ.get("DOCKER_HOST") or DEFAULT_DOCKER_HOST
IMAGE = os.environ.get("COMPUTE_TEST_IMAGE") or MinerOptions.image
HOW = (
    "Enable it with: sudo apt-get install -y docker.io debootstrap && sudo systemctl start docker && "
    "sudo PYTHON=.venv/bin/python docker/build-base.sh"
)


NETWORK = f"ct{secrets.token_hex(4)}"


def settings_for(miner: str, **changes: Any) -> DockerSettings:
    """Settings of a miner that shares the engine with other tests. All miners of this process share one network."""
    fields: dict[str, Any] = {
        "image": IMAGE,
        "network": NETWORK,
        "bind_address": "127.0.0.1",
        "pids": 256,
        **changes,
    }
    return DockerSettings(miner=miner, **fields)


@pytest.fixture(scope="session", autouse=True)
def an_engine() -> Iterator[None]:
    engine = DockerEngine(ENGINE)
    runtime = DockerRuntime(settings_for("nobody"), engine)
    try:
        runtime.check()
    except (ConfigError, EngineGone) as error:
        if os.environ.get("COMPUTE_REQUIRE_DOCKER") == "1":
            pytest.fail(f"COMPUTE_REQUIRE_DOCKER=1, but {error}")
        pytest.skip(f"{error}. {HOW}")
    finally:
        runtime.close()
    yield
    runtime.remove_network()
    engine.close()


@pytest.fixture(scope="session")
def image() -> str:
    return str(IMAGE)


@pytest.fixture(scope="session")
def engine_url() -> str:
    return str(ENGINE)


MakeRuntime = Callable[..., DockerRuntime]


@pytest.fixture(scope="module")
def make_runtime() -> Iterator[MakeRuntime]:
    """Runtimes whose containers, of all runtimes with the same ``miner``, are gone from the engine at the end."""
    made: list[DockerRuntime] = []
    miners: set[str] = set()

    def make(
        miner: str | None = None,
        *,
        url: str = ENGINE,
        cleaned: bool = True,
        start_seconds: float = DEADLINE_SECONDS,
        **settings: Any,
    ) -> DockerRuntime:
        miner = miner or secrets.token_hex(8)
        engine = DockerEngine(url, call_seconds=int(DEADLINE_SECONDS))
        made.append(DockerRuntime(settings_for(miner, **settings), engine, start_seconds=start_seconds))
        if cleaned:
            miners.add(miner)
        return made[-1]

    yield make
    for miner in sorted(miners):
        cleaner = make(miner)
        for status in cleaner.list():
            cleaner.stop(status.lease_id)
    for runtime in made:
        runtime.close()


@pytest.fixture
def runtime(make_runtime: MakeRuntime) -> DockerRuntime:
    return make_runtime()


@pytest.fixture
def client() -> Iterator[DockerClient]:
    """The SDK's own, to look at what the runtime made, and to break it."""
    client = DockerClient(base_url=ENGINE)
    yield client
    client.close()


MakeSpec = Callable[..., ContainerSpec]


@pytest.fixture(scope="session")
def renter() -> SessionKey:
    return SessionKey.generate()


@pytest.fixture(scope="session")
def make_spec(renter: SessionKey) -> MakeSpec:
    def make(
        *, kind: LeaseKind = LeaseKind.CUSTOMER, port: int = 0, password: str | None = None, **limits: int
    ) -> ContainerSpec:
        return ContainerSpec(
            lease_id=secrets.token_hex(16),
            kind=kind,
            ends_at=time.time() + 600,
            limits=Limits(**{"cpu_count": 1, "ram_bytes": 1 << 30, **limits}),
            ssh_port=port,
            authorized_keys=(renter.public_line,),
            host_key=SessionKey.generate().private_openssh,
            password=password,
        )

    return make


@pytest.fixture
def spec(make_spec: MakeSpec) -> ContainerSpec:
    return make_spec()


Login = Callable[..., AbstractAsyncContextManager[SshSession]]


@pytest.fixture(scope="session")
def login(renter: SessionKey) -> Login:
    def connect(
        endpoint: Endpoint, key: SessionKey | None = None, *, password: str | None = None
    ) -> AbstractAsyncContextManager[SshSession]:
        return ssh.connect(
            "127.0.0.1",
            endpoint.port,
            username=endpoint.username,
            pinned=endpoint.host_key,
            private_key=None if password is not None else (key or renter).private_openssh,
            password=password,
        )

    return connect


class Way:
    """A way to an engine that can be cut: a proxy before its socket."""

    def __init__(self, path: Path, engine: str) -> None:
        self.url = f"unix://{path}"
        self._path = path
        self._engine = urlsplit(engine).path
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def mend(self) -> None:
        self._stopping.clear()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self._path))
        listener.listen()
        self._run(self._accept, listener)

    def cut(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self._path.unlink(missing_ok=True)

    def _run(self, target: Callable[[socket.socket], None], connection: socket.socket) -> None:
        self._threads.append(threading.Thread(target=target, args=(connection,)))
        self._threads[-1].start()

    def _accept(self, listener: socket.socket) -> None:
        with listener:
            while not self._stopping.is_set():
                if select.select([listener], [], [], 0.05)[0]:
                    self._run(self._pump, listener.accept()[0])

    def _pump(self, one: socket.socket) -> None:
        with one, socket.socket(socket.AF_UNIX) as other:
            other.connect(self._engine)
            pairs = {one: other, other: one}
            while not self._stopping.is_set():
                for ready in select.select(list(pairs), [], [], 0.05)[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    pairs[ready].sendall(data)


@pytest.fixture
def way(tmp_path: Path) -> Iterator[Way]:
    way = Way(tmp_path / "docker.sock", ENGINE)
    way.mend()
    yield way
    way.cut()


@dataclass
class Miner:
    """A manager on a real engine, whose clock a test moves."""

    runtime: DockerRuntime
    clock: ManualClock
    store: LeaseStore
    manager: LeaseManager
    service: AllocateService

    def machines(self) -> list[ContainerStatus]:
        """What there is, but for a machine that stands ready."""
        return [status for status in self.runtime.list() if status.lease_id not in self.runtime._prewarmed]


def build(
    folder: Path,
    runtime: DockerRuntime,
    *,
    ssh_port: int = 0,
    store_type: type[LeaseStore] = LeaseStore,
    stand_ready: bool = False,
) -> Miner:
    """One life of a miner, on its disk."""
    store = store_type(Database(folder / "miner.db"), SecretBox.from_key_file(folder / "lease.key"))
    clock = ManualClock(time.time())
    manager = LeaseManager(
        store=store, runtime=runtime, specs=lambda: SPECS, clock=clock, ssh_port=ssh_port, stand_ready=stand_ready
    )
    # What stands ready first is what renters here ask for.
    manager._steps.standby._usual = Limits(cpu_count=1, ram_bytes=1 << 30)
    return Miner(runtime, clock, store, manager, AllocateService(manager, allow_dockerfile=True))


async def passing_until(miner: Miner, condition: Callable[[], object], what: str) -> None:
    """Wait for what the miner does by its own clock, which passes; the engine is asked beside the event loop.

    A request in flight waits by the same clock, and not for long: where one is, ``until_async`` alone is right.
    """
    await until_async(lambda: asyncio.to_thread(condition), what, passing=miner.clock, pause_seconds=0.02)


both_ways = pytest.mark.parametrize("stand_ready", [False, True], ids=["", "standing_ready"])

Running = Callable[..., AbstractAsyncContextManager[Miner]]


@pytest.fixture
def running(tmp_path: Path) -> Running:
    """A miner in its one folder, while the block runs."""

    @contextlib.asynccontextmanager
    async def run(runtime: DockerRuntime, *, later: float = 0, **options: Any) -> AsyncIterator[Miner]:
        miner = build(tmp_path, runtime, **options)
        miner.clock.advance(later)
        await miner.manager.start()
        try:
            yield miner
        finally:
            await miner.manager.close()

    return run


@pytest.fixture
def stand_ready() -> bool:
    """Whether a container waits for the first lease. Where the two ways differ, a test takes both: ``both_ways``."""
    return False


@pytest.fixture
async def miner(running: Running, runtime: DockerRuntime, stand_ready: bool) -> AsyncIterator[Miner]:
    async with running(runtime, stand_ready=stand_ready) as miner:
        if stand_ready:
            await passing_until(miner, lambda: miner.manager.is_ready, "a container stands ready")
        yield miner


MakeRenter = Callable[..., Renter]


@pytest.fixture
def renter_of() -> MakeRenter:
    """A caller of one miner."""
    return lambda miner, hotkey="5Alice", **known: Renter(miner.service, hotkey, **known)


@pytest.fixture
def alice(miner: Miner) -> Renter:
    return Renter(miner.service, "5Alice")


@pytest.fixture
def bob(miner: Miner) -> Renter:
    return Renter(miner.service, "5Bob")
