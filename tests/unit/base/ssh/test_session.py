"""Commands and channels of a session, on a server that misbehaves in every way there is, and on one that does not."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
from typing import Any

import paramiko
import pytest

from compute.base.channel import Channel
from compute.base.errors import OutputTooLarge, SshError, SshTimeout
from compute.base.ssh import SshSession
from tests.waiting import DEADLINE_SECONDS, until_async

from .conftest import LONG, Server, echo, finish, login, quickly


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
    with quickly(), pytest.raises(OutputTooLarge, match="100000"):
        await session.run("x", max_output_bytes=100_000)


async def test_a_command_that_does_not_end_is_a_timeout(server: Server, session: SshSession) -> None:
    server.programs[b"x"] = lambda channel, _: server.stop.wait(LONG) and None
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
    writing = asyncio.ensure_future(channel.write(data, timeout_seconds=DEADLINE_SECONDS))
    parts = [
        await channel.read_exactly(count, timeout_seconds=DEADLINE_SECONDS)
        for count in (1, 4, 0, 1 << 20, (4 << 20) - 5)
    ]
    await writing
    assert b"".join(parts) == data
    await channel.close()
    await channel.close()


async def test_arrivals_are_seen_at_once(server: Server, session: SshSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks only from time to time sets a timer for the next look; here the only one is the deadline's."""
    server.programs[b"echo"] = echo
    channel = await session.open("echo")
    loop = asyncio.get_running_loop()
    delays, call_at = [], loop.call_at

    def noted(when: float, *arguments: Any, **named: Any) -> asyncio.TimerHandle:
        delays.append(when - loop.time())
        return call_at(when, *arguments, **named)

    monkeypatch.setattr(loop, "call_at", noted)
    for _ in range(60):
        await channel.write(b"ping", timeout_seconds=DEADLINE_SECONDS)
        assert await channel.read_exactly(4, timeout_seconds=DEADLINE_SECONDS) == b"ping"
    assert len(delays) >= 120
    assert min(delays) > DEADLINE_SECONDS / 2


async def test_a_drip_does_not_outlast_the_deadline(server: Server, session: SshSession) -> None:
    def drip(channel: paramiko.Channel, _: bytes) -> None:
        while not server.stop.wait(0.01):
            channel.sendall(b".")

    server.programs[b"drip"] = drip
    channel = await session.open("drip")
    with quickly(), pytest.raises(SshTimeout, match="10000 bytes"):
        await channel.read_exactly(10_000, timeout_seconds=0.3)


async def test_a_reader_that_never_reads_does_not_outlast_the_deadline(server: Server, session: SshSession) -> None:
    server.programs[b"x"] = lambda channel, _: server.stop.wait(LONG) and None
    channel = await session.open("x")
    with quickly(), pytest.raises(SshTimeout):
        await channel.write(bytes(64 << 20), timeout_seconds=0.3)
    with quickly():
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
        await channel.read_exactly(10, timeout_seconds=DEADLINE_SECONDS)
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
    await until_async(lambda: not session._transport.is_active(), "the connection is cut")
    assert sent < 64 << 20
    with quickly(), pytest.raises(SshError):
        await channel.read_exactly(1 << 30, timeout_seconds=DEADLINE_SECONDS)


async def test_a_lost_connection_is_an_error_everywhere(server: Server, session: SshSession) -> None:
    server.programs[b"hang"] = lambda channel, _: server.stop.wait(LONG) and None
    channel = await session.open("hang")
    reading = asyncio.ensure_future(channel.read_exactly(1, timeout_seconds=DEADLINE_SECONDS))
    running = asyncio.ensure_future(session.run("hang", timeout_seconds=DEADLINE_SECONDS))
    await asyncio.sleep(0.05)
    server.close()
    with quickly():
        for attempt in (reading, running):
            with pytest.raises(SshError):
                await attempt
        for attempt in (
            session.run("echo"),
            session.open("echo"),
            channel.write(b"x", timeout_seconds=DEADLINE_SECONDS),
        ):
            with pytest.raises(SshError):
                await attempt
        await channel.close()


async def test_a_closed_session_does_nothing_more(server: Server) -> None:
    server.programs[b"echo"] = echo
    async with login(server) as session:
        channel = await session.open("echo")
    await session.close()
    await channel.close()
    for attempt in (
        session.run("echo"),
        session.open("echo"),
        channel.read_exactly(1, timeout_seconds=DEADLINE_SECONDS),
    ):
        with pytest.raises(SshError):
            await attempt


async def test_a_cancelled_read_leaves_the_session_usable(server: Server, session: SshSession) -> None:
    server.programs[b"echo"] = echo
    server.programs[b"true"] = lambda channel, _: finish(channel)
    channel = await session.open("echo")
    reading = asyncio.ensure_future(channel.read_exactly(1, timeout_seconds=DEADLINE_SECONDS))
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
        server.stop.wait(LONG)

    def fail(*_: object, **__: object) -> None:
        raise error

    server.programs[b"x"] = program
    target = paramiko.Transport if where == "open_session" else paramiko.Channel
    if where == "sendall":
        channel = await session.open("x")
        # Of this side only: the server sends as well.
        monkeypatch.setattr(channel._streams.channel, where, fail)
        with quickly(), pytest.raises(SshError):
            await channel.write(b"x", timeout_seconds=DEADLINE_SECONDS)
        return
    monkeypatch.setattr(target, where, fail)
    with quickly(), pytest.raises(SshError):
        await session.run("x", timeout_seconds=DEADLINE_SECONDS)
    with quickly(), pytest.raises(SshError):
        channel = await session.open("x", timeout_seconds=DEADLINE_SECONDS)
        await channel.read_exactly(1, timeout_seconds=DEADLINE_SECONDS)


async def test_many_sessions_at_once_and_no_thread_stays(server: Server) -> None:
    server.programs[b"echo"] = echo
    before = threading.active_count()
    most = 0

    async def one(number: int) -> None:
        nonlocal most
        async with login(server, timeout_seconds=DEADLINE_SECONDS) as session:
            channel = await session.open("echo")
            data = number.to_bytes(4, "big") * 1000
            await channel.write(data, timeout_seconds=DEADLINE_SECONDS)
            assert await channel.read_exactly(len(data), timeout_seconds=DEADLINE_SECONDS) == data
            most = max(most, threading.active_count())

    count = 30
    await asyncio.gather(*(one(number) for number in range(count)))
    # paramiko's thread and short calls here, paramiko's thread and the program in the server.
    assert most - before <= count * (1 + 4 + 2)
    server.close()
    await until_async(lambda: threading.active_count() <= before, "the threads have ended", dump=threading.enumerate)
