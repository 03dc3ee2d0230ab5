"""One SSH session to one machine: pinned host key, deadlines on everything, bounded output.

paramiko is thread-based. Each session has paramiko's own transport thread and at most ``_THREADS_PER_SESSION`` short
calls at a time in an executor of its own, so that a hostile machine can stall its own session and no other. Waiting
for bytes takes no thread: paramiko's events wake the event loop directly.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import ipaddress
import logging
import shlex
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import paramiko

from compute.base.clock import within
from compute.base.errors import HostKeyMismatch, OutputTooLarge, SshError, SshTimeout, SshUnreachable

_THREADS_PER_SESSION = 4
_WINDOW_BYTES = 2 << 20
_SEND_CHUNK_BYTES = 1 << 20
_RECEIVE_CHUNK_BYTES = 1 << 20
_STDERR_TAIL_BYTES = 64 << 10
_CLOSE_SECONDS = 2.0
_SECOND_LINE_SECONDS = 5.0
_LOST_SECONDS = 1.0
_TRANSPORT_LOG = "compute.base.ssh.transport"

# Whatever goes wrong in paramiko's thread is raised here, mapped; its own log would repeat a peer's garbage.
logging.getLogger(_TRANSPORT_LOG).setLevel(logging.CRITICAL + 1)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class CommandResult:
    """What a command left behind. ``exit_code`` is -1 where the server sent none, as for one that was killed."""

    exit_code: int
    stdout: bytes
    stderr: bytes


@contextlib.asynccontextmanager
async def connect(
    host: str,
    port: int,
    *,
    username: str,
    pinned: str | None,
    private_key: str | None = None,
    password: str | None = None,
    timeout_seconds: float = 20.0,
) -> AsyncIterator[SshSession]:
    """Log in, yield the session, close it on every way out.

    The host key is compared with ``pinned`` (``"SHA256:…"``, as OpenSSH prints it) before any credential is sent.
    ``pinned=None`` is only for machines of peers too old to announce one: ``SshSession.host_key`` then says what was
    seen, for the caller to pin from there on. ``private_key`` is an Ed25519 key in OpenSSH's text form; where both a
    key and a password are given, the key is tried first. ``timeout_seconds`` covers everything up to the login.

    Raises:
        SshUnreachable: no TCP connection, no SSH banner, or the login was refused.
        HostKeyMismatch: the server's host key is not the pinned one.
        SshTimeout: the deadline passed.
        SshError: ``private_key`` is not an Ed25519 key in OpenSSH form, or anything else in the SSH protocol.
    """
    where = f"{host}:{port}"
    credentials: list[paramiko.PKey | str] = []
    if private_key is not None:
        credentials.append(_parse_private_key(private_key))
    if password is not None:
        credentials.append(password)
    sessions: list[SshSession] = []

    async def log_in() -> SshSession:
        session = SshSession(await _connect_socket(host, port), where)
        sessions.append(session)
        await session._negotiate(pinned, timeout_seconds)
        await session._authenticate(username, credentials)
        return session

    try:
        with _boundary(SshUnreachable, f"{where}: cannot connect"):
            try:
                session = await within(timeout_seconds, log_in())
            except asyncio.TimeoutError:
                raise SshTimeout(f"{where}: no SSH login within {timeout_seconds:g} s") from None
        yield session
    finally:
        for session in sessions:
            await session.close()


async def host_key_line(host: str, port: int, *, timeout_seconds: float) -> str:
    """The public host key that answers there, as ``TYPE BASE64``. Logs nobody in and trusts nothing.

    Raises:
        SshUnreachable: no TCP connection, or no SSH server.
        SshTimeout: the deadline passed.
    """
    where = f"{host}:{port}"
    sessions: list[SshSession] = []

    async def ask() -> str:
        session = SshSession(await _connect_socket(host, port), where)
        sessions.append(session)
        await session._negotiate(None, timeout_seconds)
        return session.host_key_line

    try:
        with _boundary(SshUnreachable, f"{where}: no SSH server answers"):
            try:
                return await within(timeout_seconds, ask())
            except asyncio.TimeoutError:
                raise SshTimeout(f"{where}: no SSH host key within {timeout_seconds:g} s") from None
    finally:
        for session in sessions:
            await session.close()


class SshSession:
    """A logged-in SSH connection; made by ``connect``. Its channels and commands may run side by side.

    No method blocks the event loop, and every one may be cancelled.
    """

    def __init__(self, sock: socket.socket, where: str) -> None:
        self.where = where
        self.host_key = self.host_key_line = ""
        self._socket = sock
        self._executor = ThreadPoolExecutor(_THREADS_PER_SESSION, thread_name_prefix="ssh")
        self._closed = False
        self._transport = paramiko.Transport(sock, default_window_size=_WINDOW_BYTES)
        self._transport.set_log_channel(_TRANSPORT_LOG)

    async def run(
        self,
        command: Sequence[str] | str,
        *,
        input: bytes = b"",
        timeout_seconds: float = 60.0,
        max_output_bytes: int = 1 << 20,
    ) -> CommandResult:
        """Run ``command``, feed it ``input``, collect its output and exit code.

        A sequence is quoted argument by argument: SSH carries one string, which the remote login shell splits again.

        Raises:
            SshTimeout: it had not ended within ``timeout_seconds``.
            OutputTooLarge: stdout and stderr together exceed ``max_output_bytes``.
            SshError: the session is gone, or the server refused the command.
        """
        with _boundary(SshError, f"{self.where}: command failed"):
            try:
                return await within(timeout_seconds, self._run(command, input, timeout_seconds, max_output_bytes))
            except asyncio.TimeoutError:
                raise SshTimeout(f"{self.where}: the command did not end within {timeout_seconds:g} s") from None

    async def open(self, command: Sequence[str] | str, *, timeout_seconds: float = 20.0) -> SshChannel:
        """Start ``command`` and return the byte streams to it (a ``compute.base.ssh.Channel``).

        Raises:
            SshTimeout: it had not started within ``timeout_seconds``.
            SshError: the session is gone, or the server refused the command.
        """
        with _boundary(SshError, f"{self.where}: cannot start the command"):
            try:
                streams = await within(timeout_seconds, self._start(command, timeout_seconds))
            except asyncio.TimeoutError:
                raise SshTimeout(f"{self.where}: the command did not start within {timeout_seconds:g} s") from None
        return SshChannel(self, streams)

    async def close(self) -> None:
        """End the connection and everything on it. Idempotent; never raises, never hangs."""
        if self._closed:
            return
        self._closed = True
        # With the socket shut down, paramiko's thread and every call that blocks on it come back at once.
        self._abort()
        try:
            # A thread that was never started cannot be joined, and needs no joining.
            with contextlib.suppress(asyncio.TimeoutError, RuntimeError):
                await within(_CLOSE_SECONDS, self._blocking(self._transport.join, _CLOSE_SECONDS))
        finally:
            self._executor.shutdown(wait=False)
            self._socket.close()

    def _abort(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    async def _negotiate(self, pinned: str | None, timeout_seconds: float) -> None:
        # paramiko's own limits are a second line: the deadline around this is the one that callers hear of.
        limit = timeout_seconds + _SECOND_LINE_SECONDS
        self._transport.banner_timeout = self._transport.handshake_timeout = self._transport.auth_timeout = limit
        await self._until_set(self._transport.start_client)
        if not self._transport.is_active():
            raise SshUnreachable(f"{self.where}: no SSH handshake: {self._reason()}")
        key = self._transport.get_remote_server_key()
        self.host_key, self.host_key_line = key.fingerprint, f"{key.get_name()} {key.get_base64()}"
        if pinned is not None and self.host_key != pinned:
            raise HostKeyMismatch(
                f"{self.where}: host key {self.host_key} instead of the pinned {pinned}: somebody else answered; "
                "no credential was sent"
            )

    async def _authenticate(self, username: str, credentials: Sequence[paramiko.PKey | str]) -> None:
        for credential in credentials:
            if isinstance(credential, str):
                await self._until_set(self._transport.auth_password, username, credential)
            else:
                await self._until_set(self._transport.auth_publickey, username, credential)
            if self._transport.is_authenticated():
                return
        raise SshUnreachable(f"{self.where}: login as {username!r} refused: {self._reason()}")

    def _reason(self) -> str:
        error = self._transport.get_exception()
        if error is not None:
            return _describe(error)
        return "none of the credentials was accepted" if self._transport.is_active() else "the connection was closed"

    async def _run(
        self, command: Sequence[str] | str, data: bytes, timeout_seconds: float, max_output_bytes: int
    ) -> CommandResult:
        streams = await self._start(command, timeout_seconds)
        feeding = asyncio.ensure_future(self._feed(streams, data, timeout_seconds))
        try:
            stdout, stderr = bytearray(), bytearray()
            while True:
                out, err = await streams.read(_RECEIVE_CHUNK_BYTES)
                if not out and not err:
                    break
                stdout += out
                stderr += err
                if len(stdout) + len(stderr) > max_output_bytes:
                    raise OutputTooLarge(f"{self.where}: the command printed more than {max_output_bytes} bytes")
            status_event = streams.channel.status_event
            await self._blocking(status_event.wait, timeout_seconds)
            exit_code = streams.channel.exit_status
            if exit_code == -1 and not streams.channel.eof_received:
                # Of a connection that is lost paramiko ends the channels first. A server that ends one says so before.
                await self._blocking(self._transport.join, _LOST_SECONDS)
            if exit_code == -1 and not self._transport.is_active():
                raise SshError(f"{self.where}: the connection was lost before the command ended")
            return CommandResult(exit_code, bytes(stdout), bytes(stderr))
        finally:
            feeding.cancel()
            self._abandon(streams.channel)

    async def _feed(self, streams: _Streams, data: bytes, timeout_seconds: float) -> None:
        # A command that ends without reading its input is no failure: its exit code says what it was.
        with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
            await self._blocking(streams.send, data, timeout_seconds)
            await self._blocking(streams.channel.shutdown_write)

    async def _start(self, command: Sequence[str] | str, timeout_seconds: float) -> _Streams:
        line = command if isinstance(command, str) else shlex.join(command)
        loop = asyncio.get_running_loop()

        def start() -> _Streams:
            channel = self._transport.open_session(
                window_size=_WINDOW_BYTES, timeout=timeout_seconds + _SECOND_LINE_SECONDS
            )
            streams = _Streams(self, channel, loop)
            channel.settimeout(timeout_seconds)
            channel.exec_command(line)
            return streams

        return await self._blocking(start)

    def _abandon(self, channel: paramiko.Channel) -> None:
        """Close a channel without waiting for it."""
        if not self._closed:
            self._executor.submit(channel.close)

    async def _until_set(self, start: Callable[..., object], *arguments: object) -> None:
        """Call one of paramiko's methods that take an event, and wait for that event."""
        done = asyncio.Event()
        event = _LoopEvent(asyncio.get_running_loop(), done.set)
        await self._blocking(lambda: start(*arguments, event=event))
        await done.wait()

    async def _blocking(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: function(*args, **kwargs))


class SshChannel:
    """The byte streams to one program on the machine; see ``compute.base.ssh.Channel`` for the promises."""

    def __init__(self, session: SshSession, streams: _Streams) -> None:
        self._session = session
        self._streams = streams
        self._stderr_tail = b""
        self._closed = False

    @property
    def stderr_tail(self) -> bytes:
        """The last of what the program wrote to stderr, up to 64 KiB, as far as reads have passed it."""
        return self._stderr_tail

    async def write(self, data: bytes, *, timeout_seconds: float) -> None:
        where = self._session.where
        with _boundary(SshError, f"{where}: cannot write"):
            try:
                await within(timeout_seconds, self._session._blocking(self._streams.send, data, timeout_seconds))
            except (asyncio.TimeoutError, TimeoutError):
                raise SshTimeout(f"{where}: {len(data)} bytes not accepted within {timeout_seconds:g} s") from None

    async def read_exactly(self, count: int, *, timeout_seconds: float) -> bytes:
        where = self._session.where
        with _boundary(SshError, f"{where}: cannot read"):
            try:
                return await within(timeout_seconds, self._read_exactly(count))
            except asyncio.TimeoutError:
                raise SshTimeout(f"{where}: {count} bytes had not arrived within {timeout_seconds:g} s") from None

    async def close(self) -> None:
        if self._closed or self._session._closed:
            return
        self._closed = True
        # A close that cannot be sent in time goes with the session.
        with contextlib.suppress(asyncio.TimeoutError, paramiko.SSHException, OSError, EOFError, RuntimeError):
            await within(_CLOSE_SECONDS, self._session._blocking(self._streams.channel.close))

    async def _read_exactly(self, count: int) -> bytes:
        received = bytearray()
        while len(received) < count:
            out, err = await self._streams.read(min(count - len(received), _RECEIVE_CHUNK_BYTES))
            if err:
                self._stderr_tail = (self._stderr_tail + err)[-_STDERR_TAIL_BYTES:]
            if not out and not err:
                last = f"; stderr ends with {self._stderr_tail[-200:]!r}" if self._stderr_tail else ""
                raise SshError(f"{self._session.where}: the stream ended after {len(received)} of {count} bytes{last}")
            received += out
        return bytes(received)


class _Streams:
    """A paramiko channel whose arriving bytes wake the event loop."""

    def __init__(self, session: SshSession, channel: paramiko.Channel, loop: asyncio.AbstractEventLoop) -> None:
        self.channel = channel
        self._session = session
        self._arrived = asyncio.Event()
        # The type stubs leave out the second pipe.
        self._pipes: tuple[Any, Any] = (channel.in_buffer, vars(channel)["in_stderr_buffer"])
        for pipe in self._pipes:
            pipe.set_event(_LoopEvent(loop, self._on_arrival))

    def send(self, data: bytes, timeout_seconds: float) -> None:
        """Send all of ``data``; blocks, for at most ``timeout_seconds`` without progress."""
        self.channel.settimeout(timeout_seconds)
        for start in range(0, len(data), _SEND_CHUNK_BYTES):
            self.channel.sendall(data[start : start + _SEND_CHUNK_BYTES])

    async def read(self, limit: int) -> tuple[bytes, bytes]:
        """What has arrived on stdout (at most ``limit`` bytes) and stderr; both empty at the end of the streams."""
        while True:
            self._arrived.clear()
            # In this order: the end is set after the last byte, by another thread.
            ended = self.channel.closed or self.channel.eof_received
            if self.channel.recv_ready() or self.channel.recv_stderr_ready():
                return await self._session._blocking(self._take, limit)
            if ended:
                return b"", b""
            await self._arrived.wait()

    def _take(self, limit: int) -> tuple[bytes, bytes]:
        out = self.channel.recv(limit) if self.channel.recv_ready() else b""
        err = self.channel.recv_stderr(_STDERR_TAIL_BYTES) if self.channel.recv_stderr_ready() else b""
        return out, err

    def _on_arrival(self) -> None:
        self._arrived.set()
        # paramiko buffers whatever comes; a server that ignores the window would fill this machine's memory.
        if sum(len(pipe) for pipe in self._pipes) > 2 * _WINDOW_BYTES:
            self._session._abort()


class _LoopEvent(threading.Event):
    """An event for paramiko's thread to set, which calls ``wake`` in the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        super().__init__()
        self._loop = loop
        self._wake = wake

    def set(self) -> None:
        super().set()
        # The loop may have been closed before the last of paramiko's threads ended.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wake)


async def _connect_socket(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    address: tuple[Any, ...] = (host, port)
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    except ValueError:
        # A name takes a thread of the loop's own executor; the addresses of miners are numbers.
        family, _, _, _, address = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _parse_private_key(text: str) -> paramiko.PKey:
    try:
        return paramiko.Ed25519Key.from_private_key(io.StringIO(text))
    except Exception as error:
        # The key's text stays out of the message and of the chain of exceptions.
        raise SshError(f"the private key is not an Ed25519 key in OpenSSH form ({type(error).__name__})") from None


@contextlib.contextmanager
def _boundary(kind: type[SshError], doing: str) -> Iterator[None]:
    """Map whatever paramiko or a socket raises: a server's garbage surfaces as any exception there is."""
    try:
        yield
    except SshError:
        raise
    except TimeoutError as error:
        raise SshTimeout(f"{doing}: timed out") from error
    except Exception as error:
        raise kind(f"{doing}: {_describe(error)}") from error


def _describe(error: BaseException) -> str:
    text = str(error)[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
