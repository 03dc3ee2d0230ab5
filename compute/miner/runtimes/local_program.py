"""One program of a local lease: its pipes or its terminal, tied to one SSH channel."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import paramiko

_CHUNK_BYTES = 32 << 10
_LAST_OUTPUT_SECONDS = 1.0
# The new session's leader opens the terminal, which so becomes its controlling one; then it is the program.
_ON_TERMINAL = 'exec <>"$0" >&0 2>&1; exec "$@"'


class Terminal:
    """A pseudo terminal for one channel, of ``width`` × ``height`` characters."""

    def __init__(self, term: str, width: int, height: int) -> None:
        self.term = term
        self.master, self.slave = os.openpty()
        self.resize(width, height)

    @property
    def name(self) -> str:
        """The path of the program's side."""
        return os.ttyname(self.slave)

    def resize(self, width: int, height: int) -> None:
        """Tell the program its new size. A size that no terminal can have is cut."""
        size = struct.pack("HHHH", min(height, 0xFFFF), min(width, 0xFFFF), 0, 0)
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.slave, termios.TIOCSWINSZ, size)

    def close_slave(self) -> None:
        """Let reads from the master end once no program has the terminal open."""
        os.close(self.slave)

    def close(self) -> None:
        """Hang up."""
        os.close(self.master)


class Program:
    """Runs a command, or a shell where ``command`` is None, until it ends or the channel does.

    An SSH ``exec`` is one string by protocol, so ``/bin/sh -c`` splits it here, inside the lease, as any sshd does.
    Bytes are handed on one piece at a time, so a side that does not read makes the other one wait.
    """

    def __init__(
        self,
        channel: paramiko.Channel,
        command: bytes | None,
        terminal: Terminal | None,
        environment: Mapping[str, str],
        home: Path,
    ) -> None:
        self._channel = channel
        self._terminal = terminal
        self._environment = dict(environment)
        self._home = home
        if terminal is not None:
            self._environment |= {"TERM": terminal.term, "SSH_TTY": terminal.name}
        self._argv: list[bytes | str] = ["/bin/sh", "-c", command] if command is not None else [self._shell()]

    def run(self) -> None:
        """Start the program, serve it, report its exit status, close the channel. Blocks until all is over."""
        try:
            status = self._on_pipes() if self._terminal is None else self._on_terminal(self._terminal)
            self._channel.send_exit_status(status)
        except (OSError, EOFError, paramiko.SSHException):
            # The client went first; nobody is left to be told.
            return
        finally:
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                self._channel.close()

    def _shell(self) -> str:
        return (self._terminal is not None and shutil.which("bash")) or "/bin/sh"

    def _on_pipes(self) -> int:
        pipe = subprocess.PIPE
        process = self._popen(self._argv, stdin=pipe, stdout=pipe, stderr=pipe)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        outputs = [
            _thread(_pump_out, process.stdout.fileno(), self._channel.sendall, process.stdout.close),
            _thread(_pump_out, process.stderr.fileno(), self._channel.sendall_stderr, process.stderr.close),
        ]
        _thread(self._pump_in, process.stdin.fileno(), process.stdin.close)
        _thread(self._hang_up_when_closed, process)
        status = _status(process)
        # As with any sshd, a process left behind that holds the pipes open keeps the channel open.
        for thread in outputs:
            thread.join()
        return status

    def _on_terminal(self, terminal: Terminal) -> int:
        null = subprocess.DEVNULL
        argv: list[bytes | str] = ["/bin/sh", "-c", _ON_TERMINAL, terminal.name, *self._argv]
        process = self._popen(argv, stdin=null, stdout=null, stderr=null)
        # Each side has a descriptor of its own: one that is closed under a thread may already be somebody else's.
        out_end, in_end = os.dup(terminal.master), os.dup(terminal.master)
        output = _thread(_pump_out, out_end, self._channel.sendall, functools.partial(os.close, out_end))
        _thread(self._pump_in, in_end, functools.partial(os.close, in_end))
        _thread(self._hang_up_when_closed, process)
        status = _status(process)
        terminal.close_slave()
        output.join(_LAST_OUTPUT_SECONDS)
        terminal.close()
        return status

    def _popen(self, argv: list[bytes | str], *, stdin: int, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=self._home,
            env=self._environment,
            start_new_session=True,
            bufsize=0,
        )

    def _pump_in(self, descriptor: int, close: Callable[[], None]) -> None:
        with contextlib.suppress(OSError):
            while data := self._channel.recv(_CHUNK_BYTES):
                while data:
                    data = data[os.write(descriptor, data) :]
        with contextlib.suppress(OSError):
            close()

    def _hang_up_when_closed(self, process: subprocess.Popen[bytes]) -> None:
        self._channel.status_event.wait()
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGHUP)


def _pump_out(descriptor: int, send: Callable[[bytes], None], close: Callable[[], None]) -> None:
    # EIO is how a terminal ends; anything else is the client's end of the channel.
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        while data := os.read(descriptor, _CHUNK_BYTES):
            send(data)
    close()


def _status(process: subprocess.Popen[bytes]) -> int:
    code = process.wait()
    return 128 - code if code < 0 else code


def _thread(target: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread
