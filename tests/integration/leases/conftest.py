"""Real processes, real SSH, loopback only."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from compute.base import ssh
from compute.base.ssh import SshSession
from compute.miner.runtimes.base import ContainerSpec, Endpoint, Limits
from compute.miner.runtimes.local import LocalRuntime
from compute.wire.keys import SessionKey
from compute.wire.lease_terms import LeaseKind

LOCAL_CHAIN = "ws://127.0.0.1:9944"


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[LocalRuntime]:
    runtime = LocalRuntime(tmp_path / "leases", chain_endpoint=LOCAL_CHAIN)
    yield runtime
    for status in runtime.list():
        runtime.stop(status.lease_id)


@pytest.fixture
def renter() -> SessionKey:
    return SessionKey.generate()


@pytest.fixture
def spec(renter: SessionKey) -> ContainerSpec:
    return ContainerSpec(
        lease_id=secrets.token_hex(16),
        kind=LeaseKind.CUSTOMER,
        ends_at=time.time() + 120,
        limits=Limits(gpu_uuids=("GPU-0", "GPU-1")),
        ssh_port=0,
        authorized_keys=(renter.public_line,),
        host_key=SessionKey.generate().private_openssh,
    )


Login = Callable[..., AbstractAsyncContextManager[SshSession]]


@pytest.fixture
def login(renter: SessionKey) -> Login:
    def connect(endpoint: Endpoint, key: SessionKey | None = None) -> AbstractAsyncContextManager[SshSession]:
        return ssh.connect(
            "127.0.0.1",
            endpoint.port,
            username=endpoint.username,
            pinned=endpoint.host_key,
            private_key=(key or renter).private_openssh,
        )

    return connect


@pytest.fixture
async def session(runtime: LocalRuntime, spec: ContainerSpec, login: Login) -> AsyncIterator[SshSession]:
    async with login(runtime.start(spec)) as session:
        yield session
