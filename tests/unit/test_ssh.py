"""SshSession against servers that misbehave in every way there is, and one that does not."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import os
import random
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import paramiko
import pytest

from compute import ssh
from compute.allocation.keys import SessionKey
from compute.channel import Channel
from compute.errors import HostKeyMismatch, OutputTooLarge, SshError, SshTimeout, SshUnreachable
from compute.ssh import SshSession

HOST_KEY = SessionKey.generate()
USER_KEY = SessionKey.generate()

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
                transport = paramiko.Transport(self._listener.accept()[0])
                transport.set_log_channel("compute.ssh.transport")
                self._transports.append(transport)
                transport.add_server_key(key)
                with contextlib.suppress(paramiko.SSHException, EOFError):
                    transport.start_server(threading.Event(), _Interface(self))

    def close(self) -> None:
        self.stop.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        for transport in self._transports:
            transport.close()


class _Interface(paramiko.ServerInterface):
    def __init__(self, server: Server) -> None:
        self.server = server

    def get_allowed_auths(self, username: str) -> str:
        return "publickey,password"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self.server.attempts.append("key")
        if username == "stall":
            self.server.stop.wait(10)
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
            self.server.stop.wait(10)
        program = self.server.programs.get(command)
        if program is None:
            return False

        def run() -> None:
            # The reply to the request goes first.
            self.server.stop.wait(0.01)
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                program(channel, command)

        threading.Thread(target=run, daemon=True).start()
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
        "timeout_seconds": 10,
        **changes,
    }
    return ssh.connect("127.0.0.1", server.port, **wanted)


@pytest.fixture
async def session(server: Server) -> AsyncIterator[SshSession]:
    async with login(server) as session:
        yield session


@contextlib.contextmanager
def quickly(seconds: float = 5.0) -> Iterator[None]:
    before = time.monotonic()
    yield
    assert time.monotonic() - before < seconds


def finish(channel: paramiko.Channel, code: int = 0) -> None:
    channel.send_exit_status(code)
    channel.close()


def echo(channel: paramiko.Channel, _: bytes) -> None:
    while data := channel.recv(1 << 16):
        channel.sendall(data)
    finish(channel)


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


async def test_a_name_that_is_none() -> None:
    with pytest.raises(SshUnreachable):
        async with ssh.connect("not a host name", 22, username="root", pinned=None, password="x", timeout_seconds=5):
            pass


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
        async with login(server, username="stall", timeout_seconds=30):
            pass

    task = asyncio.ensure_future(stall())
    while not server.attempts:
        await asyncio.sleep(0.01)
    task.cancel()
    with quickly(), pytest.raises(asyncio.CancelledError):
        await task
    server.close()
    deadline = time.monotonic() + 10
    while threading.active_count() >= threads + 1:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_run_gives_the_streams_and_the_code(server: Server, session: SshSession) -> None:
    def program(channel: paramiko.Channel, _: bytes) -> None:
        text = b""
        while data := channel.recv(100):
            text += data
        channel.sendall_stderr(b"err")
        channel.sendall(text.upper())
        finish(channel, 42)

    server.programs[b"program 'an argument'"] = program
    result = await session.run(["program", "an argument"], input=b"text")
    assert (result.exit_code, result.stdout, result.stderr) == (42, b"TEXT", b"err")


async def test_an_end_without_a_code_is_minus_one(server: Server, session: SshSession) -> None:
    server.programs[b"x"] = lambda channel, _: channel.close()
    assert (await session.run("x")).exit_code == -1


async def test_the_input_may_be_left_unread(server: Server, session: SshSession) -> None:
    server.programs[b"x"] = lambda channel, _: finish(channel, 3)
    with quickly():
        assert (await session.run("x", input=bytes(10 << 20))).exit_code == 3


async def test_a_refused_command_is_an_error(session: SshSession) -> None:
    for attempt in (session.run, session.open):
        with pytest.raises(SshError, match=f"{session.where}"):
            await attempt("unknown")
    assert not session._closed


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_too_much_output_is_refused(server: Server, session: SshSession, stream: str) -> None:
    def program(channel: paramiko.Channel, _: bytes) -> None:
        send = channel.sendall if stream == "stdout" else channel.sendall_stderr
        while not server.stop.is_set():
            send(bytes(1 << 16))

    server.programs[b"x"] = program
    with quickly(10), pytest.raises(OutputTooLarge, match="100000"):
        await session.run("x", max_output_bytes=100_000)


async def test_a_command_that_does_not_end_is_a_timeout(server: Server, session: SshSession) -> None:
    server.programs[b"x"] = lambda channel, _: server.stop.wait(10) and None
    for command in ("x", "stall"):
        with quickly(), pytest.raises(SshTimeout, match=r"0\.2 s"):
            await session.run(command, timeout_seconds=0.2)


async def test_a_start_that_does_not_end_is_a_timeout(session: SshSession) -> None:
    with quickly(), pytest.raises(SshTimeout):
        await session.open("stall", timeout_seconds=0.2)


async def test_a_channel_carries_bytes_both_ways(server: Server, session: SshSession) -> None:
    server.programs[b"echo"] = echo
    channel: Channel = await session.open(["echo"])
    data = os.urandom(5 << 20)
    writing = asyncio.ensure_future(channel.write(data, timeout_seconds=20))
    parts = [await channel.read_exactly(count, timeout_seconds=20) for count in (1, 4, 0, 1 << 20, (4 << 20) - 5)]
    await writing
    assert b"".join(parts) == data
    await channel.close()
    await channel.close()


async def test_arrivals_are_seen_at_once(server: Server, session: SshSession) -> None:
    server.programs[b"echo"] = echo
    channel = await session.open("echo")
    times = []
    for _ in range(60):
        before = time.perf_counter()
        await channel.write(b"ping", timeout_seconds=10)
        await channel.read_exactly(4, timeout_seconds=10)
        times.append(time.perf_counter() - before)
    assert sorted(times)[len(times) // 4] < 0.02


async def test_a_drip_does_not_outlast_the_deadline(server: Server, session: SshSession) -> None:
    def drip(channel: paramiko.Channel, _: bytes) -> None:
        while not server.stop.wait(0.01):
            channel.sendall(b".")

    server.programs[b"drip"] = drip
    channel = await session.open("drip")
    with quickly(3), pytest.raises(SshTimeout, match="10000 bytes"):
        await channel.read_exactly(10_000, timeout_seconds=0.3)


async def test_a_reader_that_never_reads_does_not_outlast_the_deadline(server: Server, session: SshSession) -> None:
    server.programs[b"x"] = lambda channel, _: server.stop.wait(20) and None
    channel = await session.open("x")
    with quickly(3), pytest.raises(SshTimeout):
        await channel.write(bytes(64 << 20), timeout_seconds=0.3)
    with quickly(3):
        await channel.close()
        await session.close()


async def test_an_early_end_says_how_far_it_got_and_what_stderr_said(server: Server, session: SshSession) -> None:
    def fail(channel: paramiko.Channel, _: bytes) -> None:
        channel.sendall(b"abc")
        channel.sendall_stderr(b"x" * 100_000 + b"ImportError: torch")
        finish(channel, 1)

    server.programs[b"x"] = fail
    channel = await session.open("x")
    with pytest.raises(SshError, match=r"3 of 10 bytes.*ImportError: torch"):
        await channel.read_exactly(10, timeout_seconds=10)
    assert len(channel.stderr_tail) == 64 << 10


async def test_a_server_that_ignores_the_window_is_cut_off(server: Server, session: SshSession) -> None:
    sent = 0

    def flood(channel: paramiko.Channel, _: bytes) -> None:
        nonlocal sent
        channel.out_window_size = 1 << 40
        while not server.stop.is_set():
            channel.sendall(bytes(1 << 15))
            sent += 1 << 15

    server.programs[b"flood"] = flood
    channel = await session.open("flood")
    deadline = time.monotonic() + 20
    while session._transport.is_active():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
    assert sent < 64 << 20
    with quickly(), pytest.raises(SshError):
        await channel.read_exactly(1 << 30, timeout_seconds=10)


async def test_a_lost_connection_is_an_error_everywhere(server: Server, session: SshSession) -> None:
    server.programs[b"hang"] = lambda channel, _: server.stop.wait(10) and None
    channel = await session.open("hang")
    reading = asyncio.ensure_future(channel.read_exactly(1, timeout_seconds=10))
    running = asyncio.ensure_future(session.run("hang", timeout_seconds=10))
    await asyncio.sleep(0.05)
    server.close()
    with quickly():
        for attempt in (reading, running):
            with pytest.raises(SshError):
                await attempt
        for attempt in (session.run("echo"), session.open("echo"), channel.write(b"x", timeout_seconds=5)):
            with pytest.raises(SshError):
                await attempt
        await channel.close()


async def test_a_closed_session_does_nothing_more(server: Server) -> None:
    server.programs[b"echo"] = echo
    async with login(server) as session:
        channel = await session.open("echo")
    await session.close()
    await channel.close()
    for attempt in (session.run("echo"), session.open("echo"), channel.read_exactly(1, timeout_seconds=5)):
        with pytest.raises(SshError):
            await attempt


async def test_a_cancelled_read_leaves_the_session_usable(server: Server, session: SshSession) -> None:
    server.programs[b"echo"] = echo
    server.programs[b"true"] = lambda channel, _: finish(channel)
    channel = await session.open("echo")
    reading = asyncio.ensure_future(channel.read_exactly(1, timeout_seconds=30))
    await asyncio.sleep(0.01)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    with quickly():
        await channel.close()
        assert (await session.run("true")).exit_code == 0


@pytest.mark.parametrize(
    "error",
    [
        EOFError(),
        OSError(5, "x"),
        ConnectionResetError(),
        TimeoutError(),
        socket.gaierror(-2, "x"),
        paramiko.SSHException("x"),
        paramiko.AuthenticationException(),
        paramiko.ChannelException(1, "x"),
        paramiko.ssh_exception.IncompatiblePeer("x"),
        ValueError("x"),
        IndexError("x"),
        KeyError("x"),
        struct.error("x"),
        UnicodeDecodeError("utf-8", b"", 0, 0, "x"),
        AttributeError("x"),
        RuntimeError("x"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("where", ["open_session", "exec_command", "recv", "sendall"])
async def test_whatever_paramiko_raises_is_one_of_ours(
    server: Server, session: SshSession, error: Exception, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def program(channel: paramiko.Channel, _: bytes) -> None:
        channel.sendall(b"x" * 100)
        server.stop.wait(10)

    def fail(*_: object, **__: object) -> None:
        raise error

    server.programs[b"x"] = program
    target = paramiko.Transport if where == "open_session" else paramiko.Channel
    if where == "sendall":
        channel = await session.open("x")
        # Of this side only: the server sends as well.
        monkeypatch.setattr(channel._streams.channel, where, fail)
        with quickly(), pytest.raises(SshError):
            await channel.write(b"x", timeout_seconds=5)
        return
    monkeypatch.setattr(target, where, fail)
    with quickly(), pytest.raises(SshError):
        await session.run("x", timeout_seconds=10)
    with quickly(), pytest.raises(SshError):
        channel = await session.open("x", timeout_seconds=10)
        await channel.read_exactly(1, timeout_seconds=10)


async def test_many_sessions_at_once_and_no_thread_stays(server: Server) -> None:
    server.programs[b"echo"] = echo
    before = threading.active_count()
    most = 0

    async def one(number: int) -> None:
        nonlocal most
        async with login(server, timeout_seconds=30) as session:
            channel = await session.open("echo")
            data = number.to_bytes(4, "big") * 1000
            await channel.write(data, timeout_seconds=30)
            assert await channel.read_exactly(len(data), timeout_seconds=30) == data
            most = max(most, threading.active_count())

    count = 30
    await asyncio.gather(*(one(number) for number in range(count)))
    # paramiko's thread and short calls here, paramiko's thread and the program in the server.
    assert most - before <= count * (1 + 4 + 2)
    server.close()
    deadline = time.monotonic() + 10
    while threading.active_count() > before:
        assert time.monotonic() < deadline, threading.enumerate()
        await asyncio.sleep(0.01)
