"""The SSH server of one local lease: a process of its own, started by ``LocalRuntime`` and by nobody else.

``python -m compute.miner.runtimes.local_sshd`` reads one line of JSON (``SshdConfig``) from stdin, because arguments
and environment can be read by others; binds; prints one line of JSON (``{"port": …}`` or ``{"error": …}``) and lets go
of stdin and stdout. It serves until its end, which it reads again from the lease's folder when the time has come, kills
what the lease still runs, removes the folder and exits. It belongs to no miner: one that is killed finds it again by
``state.json``, and it is nobody's child, because pm2 ends a process together with all of its descendants.
"""

from __future__ import annotations

import contextlib
import hmac
import io
import json
import logging
import os
import select
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import paramiko
import psutil
from paramiko.common import (
    AUTH_FAILED,
    AUTH_SUCCESSFUL,
    MSG_CHANNEL_REQUEST,
    OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED,
    OPEN_SUCCEEDED,
)

from compute.miner.runtimes import local_processes
from compute.miner.runtimes.local_program import Program, Terminal

MAX_CONNECTIONS = 64
_LOOK_SECONDS = 60.0
_KILL_SECONDS = 5.0
_AUTH_SECONDS = 30.0


@dataclass(frozen=True)
class SshdConfig:
    """What the server is told on stdin. ``folder`` is the lease's own, mode 0700."""

    lease_id: str
    folder: str
    bind_address: str
    port: int
    username: str
    environment: dict[str, str]
    host_key: str = field(repr=False)
    password: str | None = field(repr=False)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class LeaseFolder:
    """The files of one lease. What may change while the server runs is read again at every use."""

    path: Path

    @property
    def home(self) -> Path:
        """The renter's throw-away home."""
        return self.path / "home"

    @property
    def log(self) -> Path:
        """The server's stderr."""
        return self.path / "sshd.log"

    @property
    def state(self) -> Path:
        """Written by the server once it listens: ``pid``, ``started``, ``port``, ``host_key``."""
        return self.path / "state.json"

    def write(self, name: str, text: str) -> None:
        """Replace a file of the folder at once, mode 0600."""
        part = self.path / f".{name}.part"
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        part.replace(self.path / name)

    def authorized_keys(self) -> list[str]:
        """The lines of ``authorized_keys``; none where there is no file."""
        with contextlib.suppress(FileNotFoundError):
            return [line for line in (self.path / "authorized_keys").read_text().splitlines() if line]
        return []

    def ends_at(self) -> float:
        """When the lease ends, in Unix seconds; 0 where nothing says so."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return float((self.path / "ends_at").read_text())
        return 0.0

    def remove(self) -> None:
        """Remove the folder, directories that the renter made unreadable included. Idempotent.

        Raises:
            OSError: something is left.
        """
        for parent, names, _ in os.walk(self.path):
            for name in names:
                path = Path(parent, name)
                if not path.is_symlink():
                    path.chmod(0o700)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.path)


def _handle_request(channel: paramiko.Channel, message: paramiko.Message) -> None:
    _HANDLERS[MSG_CHANNEL_REQUEST](channel, message)
    transport = channel.get_transport()
    assert isinstance(transport, _Transport)
    while transport.after_reply:
        transport.after_reply.pop(0)()


# The stubs leave the table out; there is no public hook after the reply to a request.
_HANDLERS: dict[int, Any] = vars(paramiko.Transport)["_channel_handler_table"]


class _Transport(paramiko.Transport):
    """Starts a program only after the reply to its request has been sent: a quick one could close the channel first."""

    _channel_handler_table: ClassVar[dict[int, Any]] = {**_HANDLERS, MSG_CHANNEL_REQUEST: _handle_request}

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.after_reply: list[Callable[[], None]] = []


class _Login(paramiko.ServerInterface):
    """One connection: who may log in, and what it may ask for. Only sessions: no forwarding, no subsystems."""

    def __init__(self, config: SshdConfig, transport: _Transport) -> None:
        self._config = config
        self._folder = LeaseFolder(Path(config.folder))
        self._transport = transport
        self._terminals: dict[int, Terminal] = {}

    def get_allowed_auths(self, username: str) -> str:
        return "publickey,password" if self._config.password else "publickey"

    def check_auth_password(self, username: str, password: str) -> int:
        right = self._config.password
        if right and username == self._config.username and hmac.compare_digest(password.encode(), right.encode()):
            return AUTH_SUCCESSFUL
        return AUTH_FAILED

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        line = f"{key.get_name()} {key.get_base64()}"
        if username == self._config.username and line in self._folder.authorized_keys():
            return AUTH_SUCCESSFUL
        return AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED if kind == "session" else OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED

    def check_channel_pty_request(
        self, channel: paramiko.Channel, term: bytes, width: int, height: int, *_: object
    ) -> bool:
        self._terminals[channel.get_id()] = Terminal(term.decode("ascii", "replace"), width, height)
        return True

    def check_channel_window_change_request(
        self, channel: paramiko.Channel, width: int, height: int, *_: object
    ) -> bool:
        terminal = self._terminals.get(channel.get_id())
        if terminal is None:
            return False
        terminal.resize(width, height)
        return True

    def check_channel_shell_request(self, channel: paramiko.Channel) -> bool:
        return self._start(channel, None)

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        return self._start(channel, command)

    def _start(self, channel: paramiko.Channel, command: bytes | None) -> bool:
        terminal = self._terminals.get(channel.get_id())
        program = Program(channel, command, terminal, self._config.environment, self._folder.home)
        self._transport.after_reply.append(threading.Thread(target=program.run, daemon=True).start)
        return True


def _listen(config: SshdConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.bind_address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    # A restarted machine keeps its port, whose old connections may still be winding down.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((config.bind_address, config.port))
    listener.listen(MAX_CONNECTIONS)
    return listener


def _serve(config: SshdConfig, listener: socket.socket, host_key: paramiko.PKey) -> None:
    """Accept connections until the lease ends."""
    folder = LeaseFolder(Path(config.folder))
    open_transports: list[_Transport] = []
    while (left := folder.ends_at() - time.time()) > 0:
        # Not longer than a minute: the wall clock may be set meanwhile.
        if not select.select([listener], [], [], min(left, _LOOK_SECONDS))[0]:
            continue
        sock, _ = listener.accept()
        open_transports = [transport for transport in open_transports if transport.is_active()]
        if len(open_transports) >= MAX_CONNECTIONS:
            sock.close()
            continue
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport = _Transport(sock)
        transport.auth_timeout = _AUTH_SECONDS
        transport.add_server_key(host_key)
        # With an event, this returns at once: a silent client keeps nobody else waiting.
        transport.start_server(threading.Event(), _Login(config, transport))
        open_transports.append(transport)


def _let_go_of_stdio() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(null, descriptor)
    os.close(null)


def main() -> int:
    """Serve one lease; see the module's text."""
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    config = SshdConfig(**json.loads(sys.stdin.readline()))
    # Before there are any threads.
    if os.fork():
        os._exit(0)
    folder = LeaseFolder(Path(config.folder))
    try:
        host_key = paramiko.Ed25519Key.from_private_key(io.StringIO(config.host_key))
        listener = _listen(config)
        port = listener.getsockname()[1]
        me = psutil.Process()
        state = {"pid": me.pid, "started": me.create_time(), "port": port, "host_key": host_key.fingerprint}
        folder.write(folder.state.name, json.dumps(state))
    except (OSError, paramiko.SSHException, ValueError) as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        return 1
    print(json.dumps({"port": port}), flush=True)
    _let_go_of_stdio()
    try:
        _serve(config, listener, host_key)
    finally:
        listener.close()
        local_processes.kill(config.lease_id, timeout_seconds=_KILL_SECONDS)
        folder.remove()
    return 0


if __name__ == "__main__":
    # Threads that still wait for a client must not keep an ended lease alive.
    code = main()
    sys.stderr.flush()
    os._exit(code)
