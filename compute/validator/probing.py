"""How the validator gets into a machine: through the customer's own door."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

from compute import ssh
from compute.allocation.client import AllocationClient
from compute.allocation.requirements import DeviceRequirement
from compute.channel import Channel
from compute.proof.bootstrap import BOOTSTRAP
from compute.proof.models import Claim
from compute.transport.peer import Peer

_LOGIN_SECONDS = 30.0
_START_SECONDS = 120.0


def worker_on(client: AllocationClient, peer: Peer, claim: Claim) -> Callable[[], AbstractAsyncContextManager[Channel]]:
    """What ``proof.session.Target.connect`` needs: lease, log in, start the worker, and undo all of it."""

    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[Channel]:
        requirement = DeviceRequirement(gpu_count=claim.count)
        # An older peer names no host key. A probe brings no secrets, and what it finds is checked by arithmetic.
        async with (
            client.rented(
                peer, requirement, days=1, testing=True, allow_unpinned=True, start_seconds=_START_SECONDS
            ) as grant,
            ssh.connect(
                grant.host,
                grant.port,
                username=grant.username,
                pinned=grant.host_key,
                private_key=grant.keys.session.private_openssh,
                password=grant.password,
                timeout_seconds=_LOGIN_SECONDS,
            ) as session,
        ):
            channel = await session.open(BOOTSTRAP)
            try:
                yield channel
            finally:
                await channel.close()

    return connect
