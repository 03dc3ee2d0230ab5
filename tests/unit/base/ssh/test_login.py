"""Logins at servers that misbehave in every way there is, and at one that does not."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
import struct
import threading
from typing import Any

import pytest

from compute.base import ssh
from compute.base.errors import HostKeyMismatch, SshError, SshTimeout, SshUnreachable
from compute.wire.keys import SessionKey
from tests.waiting import DEADLINE_SECONDS, until_async

from .conftest import HOST_KEY, USER_KEY, Server, login, quickly


async def test_login_by_key_and_by_password(server: Server) -> None:
    async with login(server) as session:
        assert session.host_key == HOST_KEY.fingerprint
        assert session._transport.remote_compression == session._transport.local_compression == "none"
    async with login(server, private_key=None, password="right"):
        pass
    async with login(server, pinned=None) as session:
        assert session.host_key == HOST_KEY.fingerprint


async def test_a_refused_key_falls_back_to_the_password(server: Server) -> None:
    server.accepted_keys = set()
    async with login(server, password="right"):
        assert server.attempts[-1] == "password"


@pytest.mark.parametrize("credentials", [{"password": "wrong", "private_key": None}, {"private_key": None}])
async def test_a_refused_login_is_unreachable(server: Server, credentials: dict[str, Any]) -> None:
    with pytest.raises(SshUnreachable, match="login as 'root' refused"):
        async with login(server, **credentials):
            pass


async def test_nothing_is_sent_to_a_server_with_another_key(server: Server) -> None:
    other = SessionKey.generate().fingerprint
    with pytest.raises(HostKeyMismatch, match="no credential was sent") as error:
        async with login(server, pinned=other, password="right"):
            pass
    assert server.attempts == []
    assert other in str(error.value)
    assert HOST_KEY.fingerprint in str(error.value)


async def test_a_broken_private_key_is_an_error_that_does_not_show_it(server: Server) -> None:
    for text in ("", "secret", USER_KEY.private_openssh[:-80]):
        with pytest.raises(SshError, match="Ed25519") as error:
            async with login(server, private_key=text):
                pass
        assert "secret" not in str(error.value)
        assert error.value.__cause__ is None


async def test_nobody_listens(server: Server) -> None:
    server.close()
    with pytest.raises(SshUnreachable, match=f"127.0.0.1:{server.port}"):
        async with login(server):
            pass


async def test_a_name_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", ask)
    with pytest.raises(SshUnreachable):
        async with ssh.connect(
            "not a host name", 22, username="root", pinned=None, password="x", timeout_seconds=DEADLINE_SECONDS
        ):
            raise AssertionError


BANNER = b"SSH-2.0-OpenSSH_9.6\r\n"
NOISE = random.Random(27)


def packet(payload: bytes) -> bytes:
    padding = 8 - (len(payload) + 5) % 8 + 8
    return struct.pack(">IB", len(payload) + padding + 1, padding) + payload + bytes(padding)


@pytest.mark.parametrize(
    "speech",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH-1.5-old\r\n",
        b"SSH-2.0-\xff\xfe\r\n",
        b"\x00" * 5000,
        b"x" * 100_000,
        b"line\r\n" * 500,
        BANNER,
        BANNER + b"\xff" * 64,
        BANNER + packet(bytes([20]) + bytes(16)),
        BANNER + packet(bytes([20]) + bytes(16) + struct.pack(">I", 1 << 31)),
        BANNER + packet(bytes([20]) + bytes(16) + struct.pack(">I", 3) + b"\xff\xff\xff" + bytes(60)),
        BANNER + packet(bytes([1, 0, 0, 0, 2])),
        BANNER + packet(b"\x63"),
        BANNER + packet(b""),
        *(BANNER + NOISE.randbytes(400) for _ in range(4)),
        *(BANNER + packet(bytes([kind]) + NOISE.randbytes(40)) for kind in (5, 20, 21, 31, 50, 80, 90, 94)),
    ],
    ids=itertools.count(),
)
async def test_no_nonsense_leaks_another_exception(speech: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(speech)
            await writer.drain()
            await reader.read(4096)
            writer.close()
            await writer.wait_closed()

    listener = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        with quickly(), pytest.raises(SshError):
            async with ssh.connect("127.0.0.1", port, username="root", pinned=None, password="x", timeout_seconds=1):
                pass


async def test_silence_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, quickly():
        port = silent.getsockname()[1]
        with pytest.raises(SshTimeout, match=r"no SSH login within 0\.2 s"):
            async with ssh.connect("127.0.0.1", port, username="root", pinned=None, password="", timeout_seconds=0.2):
                pass


async def test_a_login_that_never_ends_is_a_timeout(server: Server) -> None:
    with quickly(), pytest.raises(SshTimeout):
        async with login(server, username="stall", timeout_seconds=1):
            pass


async def test_a_cancelled_login_leaves_no_connection(server: Server) -> None:
    threads = threading.active_count()

    async def stall() -> None:
        async with login(server, username="stall", timeout_seconds=DEADLINE_SECONDS):
            pass

    task = asyncio.ensure_future(stall())
    await until_async(lambda: server.attempts, "the login is under way")
    task.cancel()
    with quickly(), pytest.raises(asyncio.CancelledError):
        await task
    server.close()
    await until_async(lambda: threading.active_count() <= threads, "the threads have ended", dump=threading.enumerate)
