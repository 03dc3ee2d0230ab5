"""Waiting for the one sshd that has the right host key."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Iterator

import paramiko
import pytest

from compute.base.errors import RuntimeFailure
from compute.miner.runtimes.docker_engine import wait_for_sshd
from compute.wire.keys import SessionKey
from tests.waiting import DEADLINE_SECONDS

KEY = SessionKey.generate()


class Server:
    """Hangs up on the first ``vain`` connections, then speaks SSH."""

    def __init__(self, listener: socket.socket, vain: int) -> None:
        self.port: int = listener.getsockname()[1]
        self._listener = listener
        self._vain = vain
        self.accepted = 0

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.accepted += 1
                with connection:
                    if self.accepted <= self._vain:
                        continue
                    transport = paramiko.Transport(connection)
                    key = paramiko.Ed25519Key.from_private_key(io.StringIO(KEY.private_openssh))
                    transport.add_server_key(key)
                    with contextlib.suppress(paramiko.SSHException, EOFError):
                        transport.start_server(server=paramiko.ServerInterface())
                    transport.join(DEADLINE_SECONDS)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(listener, getattr(request, "param", 0))
        thread = threading.Thread(target=server.run)
        thread.start()
        yield server
        # Wakes the accept.
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(DEADLINE_SECONDS)


@pytest.mark.parametrize("server", [0, 2], indirect=True)
def test_it_returns_when_the_right_key_answers(server: Server) -> None:
    asked = []

    def still_alive() -> bool:
        asked.append(server.accepted)
        return True

    wait_for_sshd("127.0.0.1", server.port, KEY.fingerprint, within_seconds=10, still_alive=still_alive)
    assert len(asked) == server.accepted - 1


def test_another_host_key_is_somebody_else(server: Server) -> None:
    other = SessionKey.generate().fingerprint
    with pytest.raises(RuntimeFailure, match="another sshd"):
        wait_for_sshd("127.0.0.1", server.port, other, within_seconds=10, still_alive=lambda: True)


def test_there_is_no_waiting_for_the_dead() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(RuntimeFailure, match="ended while it came up"):
        wait_for_sshd("127.0.0.1", port, KEY.fingerprint, within_seconds=10, still_alive=lambda: False)


@pytest.mark.parametrize("banner", [b"", b"S", b"SSH-2.0-slow\r\n"])
def test_a_server_that_stays_silent_is_given_up(banner: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def greet() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(banner)
                # Until the other side hangs up.
                with contextlib.suppress(OSError):
                    while connection.recv(4096):
                        pass

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(RuntimeFailure, match=r"did not answer within 0\.2 s"):
            wait_for_sshd("127.0.0.1", port, KEY.fingerprint, within_seconds=0.2, still_alive=lambda: True)
        thread.join(DEADLINE_SECONDS)
