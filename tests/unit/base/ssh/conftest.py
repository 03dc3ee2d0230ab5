"""An SSH server that a test tells how to misbehave."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import paramiko
import pytest

from compute.base import ssh
from compute.base.ssh import SshSession
from compute.wire.keys import SessionKey
from tests.waiting import DEADLINE_SECONDS

HOST_KEY = SessionKey.generate()
USER_KEY = SessionKey.generate()

LONG = 10 * DEADLINE_SECONDS
"""Seconds. What nobody should wait for, server or client, takes so long, unless the test ends before."""

Exec = Callable[[paramiko.Channel, bytes], None]


class Server:
    """A real SSH server in threads. ``programs`` maps a command to what it does with its channel."""

    def __init__(self) -> None:
        self.programs: dict[bytes, Exec] = {}
        self.password = "right"
        self.attempts: list[str] = []
        self.accepted_keys = {USER_KEY.public_line}
        self.stop = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._transports: list[paramiko.Transport] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        key = paramiko.Ed25519Key.from_private_key(io.StringIO(HOST_KEY.private_openssh))
        with contextlib.suppress(OSError):
            while True:
                transport = _Transport(self._listener.accept()[0])
                transport.set_log_channel("compute.base.ssh.transport")
                self._transports.append(transport)
                transport.add_server_key(key)
                with contextlib.suppress(paramiko.SSHException, EOFError):
                    transport.start_server(threading.Event(), _Interface(self))

    def close(self) -> None:
        self.stop.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(DEADLINE_SECONDS)
        for transport in self._transports:
            transport.close()


class _Transport(paramiko.Transport):
    """Starts a program when the request for it has been answered, as sshd does."""

    due: threading.Thread | None = None

    def _send_user_message(self, data: paramiko.Message) -> None:
        super()._send_user_message(data)  # type: ignore[misc]  # the type stubs leave it out
        if self.due is not None and data.asbytes()[:1] == paramiko.common.cMSG_CHANNEL_SUCCESS:
            self.due.start()
            self.due = None


class _Interface(paramiko.ServerInterface):
    def __init__(self, server: Server) -> None:
        self.server = server

    def get_allowed_auths(self, username: str) -> str:
        return "publickey,password"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self.server.attempts.append("key")
        if username == "stall":
            self.server.stop.wait(LONG)
        known = f"{key.get_name()} {key.get_base64()}" in self.server.accepted_keys
        return paramiko.common.AUTH_SUCCESSFUL if known else paramiko.common.AUTH_FAILED

    def check_auth_password(self, username: str, password: str) -> int:
        self.server.attempts.append("password")
        right = password == self.server.password
        return paramiko.common.AUTH_SUCCESSFUL if right else paramiko.common.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.common.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        if command == b"stall":
            self.server.stop.wait(LONG)
        program = self.server.programs.get(command)
        if program is None:
            return False

        def run() -> None:
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                program(channel, command)

        transport = channel.get_transport()
        assert isinstance(transport, _Transport)
        transport.due = threading.Thread(target=run, daemon=True)
        return True


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def login(server: Server, **changes: Any) -> contextlib.AbstractAsyncContextManager[SshSession]:
    wanted: dict[str, Any] = {
        "username": "root",
        "pinned": HOST_KEY.fingerprint,
        "private_key": USER_KEY.private_openssh,
        "timeout_seconds": DEADLINE_SECONDS,
        **changes,
    }
    return ssh.connect("127.0.0.1", server.port, **wanted)


@pytest.fixture
async def session(server: Server) -> AsyncIterator[SshSession]:
    async with login(server) as session:
        yield session


@pytest.fixture(autouse=True)
def no_second_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends a wait here is our own deadline, and none of paramiko's."""
    monkeypatch.setattr(ssh, "_SECOND_LINE_SECONDS", LONG)


@contextlib.contextmanager
def quickly() -> Iterator[None]:
    """Ended by the limit under test, and not by what takes ``LONG``."""
    before = time.monotonic()
    yield
    assert time.monotonic() - before < DEADLINE_SECONDS


def finish(channel: paramiko.Channel, code: int = 0) -> None:
    channel.send_exit_status(code)
    channel.close()


def echo(channel: paramiko.Channel, _: bytes) -> None:
    while data := channel.recv(1 << 16):
        channel.sendall(data)
    finish(channel)
