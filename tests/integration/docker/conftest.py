"""A real Docker engine, a real image, real SSH.

Every test here needs an engine and the image; without, it is skipped, or fails where COMPUTE_REQUIRE_DOCKER=1 says that
there must be one. COMPUTE_TEST_IMAGE names another image than the default.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from docker.client import DockerClient

from compute import ssh
from compute.allocation.docker_engine import DockerEngine, EngineGone
from compute.allocation.docker_options import DockerSettings
from compute.allocation.docker_runtime import DockerRuntime
from compute.allocation.keys import SessionKey
from compute.allocation.runtime import Endpoint, LeaseKind, LeaseOrder, Limits
from compute.errors import ConfigError
from compute.hardware import DEFAULT_DOCKER_HOST
from compute.options.miner import IMAGE as MINER_IMAGE
from compute.ssh import SshSession

ENGINE = os.environ.get("DOCKER_HOST") or DEFAULT_DOCKER_HOST
IMAGE = os.environ.get("COMPUTE_TEST_IMAGE") or MINER_IMAGE.default
HOW = (
    "Enable it with: sudo apt-get install -y docker.io debootstrap && sudo systemctl start docker && "
    "sudo PYTHON=.venv/bin/python docker/build-base.sh"
)


def settings_for(miner: str, **changes: Any) -> DockerSettings:
    """Settings of a miner that shares the engine with other tests: its network has the process's number."""
    fields: dict[str, Any] = {
        "image": IMAGE,
        "network": f"ct{os.getpid()}",
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
    with engine.calling("remove the network") as client:
        client.networks.get(f"ct{os.getpid()}").remove()
    engine.close()


MakeRuntime = Callable[..., DockerRuntime]


@pytest.fixture(scope="module")
def make_runtime() -> Iterator[MakeRuntime]:
    """Runtimes whose containers, of all runtimes with the same ``miner``, are gone at the end."""
    made: dict[DockerRuntime, str] = {}

    def make(
        miner: str | None = None, *, url: str = ENGINE, start_seconds: float = 20.0, **settings: Any
    ) -> DockerRuntime:
        miner = miner or secrets.token_hex(8)
        runtime = DockerRuntime(settings_for(miner, **settings), DockerEngine(url), start_seconds=start_seconds)
        made[runtime] = miner
        return runtime

    yield make
    for miner in set(made.values()):
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


MakeOrder = Callable[..., LeaseOrder]


@pytest.fixture(scope="session")
def renter() -> SessionKey:
    return SessionKey.generate()


@pytest.fixture(scope="session")
def make_order(renter: SessionKey) -> MakeOrder:
    def make(
        *, kind: LeaseKind = LeaseKind.CUSTOMER, port: int = 0, password: str | None = None, **limits: int
    ) -> LeaseOrder:
        return LeaseOrder(
            lease_id=secrets.token_hex(16),
            owner="5Alice",
            kind=kind,
            ends_at=time.time() + 600,
            image="ubuntu",
            limits=Limits(**{"cpu_count": 1, "ram_bytes": 1 << 30, **limits}),
            ssh_port=port,
            authorized_keys=(renter.public_line,),
            host_key=SessionKey.generate().private_openssh,
            password=password,
        )

    return make


@pytest.fixture
def order(make_order: MakeOrder) -> LeaseOrder:
    return make_order()


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


@pytest.fixture
async def session(runtime: DockerRuntime, order: LeaseOrder, login: Login) -> AsyncIterator[SshSession]:
    async with login(runtime.start(order)) as session:
        yield session


@pytest.fixture
def until() -> Callable[[Callable[[], object]], None]:
    """Wait for something that another process does."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "the condition never came true"
            time.sleep(0.02)

    return wait
