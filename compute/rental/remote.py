"""The renter's way into a leased machine, behind one small interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from compute.base.errors import SshError
from compute.base.ssh import CommandResult, connect, host_key_line
from compute.rental.records import Allocation

LOGIN_SECONDS = 20.0
MAX_OUTPUT_BYTES = 16 << 20


class HostKeys(Protocol):
    """Asks an SSH server for its host key; ``SshRemote`` is the real one."""

    async def host_key_line(self, host: str, port: int, *, timeout_seconds: float) -> str:
        """The public host key that answers there, as ``TYPE BASE64``. Logs nobody in and trusts nothing.

        Raises:
            SshError: no SSH server answers in time.
        """


class Remote(HostKeys, Protocol):
    """Reaches leased machines over SSH. No method blocks the event loop; all are safe to cancel."""

    async def run(self, allocation: Allocation, argv: Sequence[str], *, timeout_seconds: float) -> CommandResult:
        """Run ``argv`` on the machine of ``allocation``, whose host key must be the pinned one.

        Raises:
            LeaseError: it never came up.
            SshError: no login, another host key, too late, or too much output.
        """


class SshRemote:
    """The real one."""

    async def host_key_line(self, host: str, port: int, *, timeout_seconds: float) -> str:
        return await host_key_line(host, port, timeout_seconds=timeout_seconds)

    async def run(self, allocation: Allocation, argv: Sequence[str], *, timeout_seconds: float) -> CommandResult:
        host, login = allocation.peer.ip, allocation.require_login()
        if login.host_key is None:
            raise SshError(f"{host}:{login.port}: no host key is pinned, so nothing is sent there")
        async with connect(
            host,
            login.port,
            username=login.username,
            pinned=login.host_key,
            private_key=allocation.keys.session.private_openssh,
            password=login.password,
            timeout_seconds=min(LOGIN_SECONDS, timeout_seconds),
        ) as session:
            return await session.run(argv, timeout_seconds=timeout_seconds, max_output_bytes=MAX_OUTPUT_BYTES)
