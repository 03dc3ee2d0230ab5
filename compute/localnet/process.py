"""A localnet node as a child process, for tests and the demo."""

from __future__ import annotations

import json
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from compute.base.errors import ChainUnreachable
from compute.base.process import child_environment
from compute.localnet.client import LocalnetClient

_START_SECONDS = 60.0
_STOP_SECONDS = 10.0


class NodeProcess:
    """Runs ``python -m compute.localnet node`` and knows where it listens.

    A context manager: the node is up inside the block, and gone after it. With ``state`` it can be stopped or killed
    and started again, at the same port, as the same chain::

        with NodeProcess(block_time_seconds=0.25) as node:
            node.client.faucet(coldkey, 10**12)
            subtensor = bittensor.Subtensor(network=node.endpoint)
    """

    def __init__(
        self,
        *,
        block_time_seconds: float = 0.25,
        netuid: int = 27,
        state: Path | None = None,
        port: int = 0,
        options: Sequence[str] = (),
    ) -> None:
        """``options`` are further options of the command, such as ``["--tempo", "10"]``."""
        self.netuid = netuid
        self.greeting: dict[str, Any] = {}
        self._port = port
        self._arguments = ["--block-time", str(block_time_seconds), "--netuid", str(netuid)]
        if state is not None:
            self._arguments += ["--state", str(state)]
        self._arguments += options
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[str] | None = None

    @property
    def endpoint(self) -> str:
        """Where the node listens: ``ws://127.0.0.1:PORT``."""
        return str(self.greeting["endpoint"])

    @property
    def client(self) -> LocalnetClient:
        """A client of this node's own methods."""
        return LocalnetClient(self.endpoint)

    @property
    def pid(self) -> int | None:
        """The child's process id, None while it does not run."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the node and wait until it listens.

        Raises:
            ChainUnreachable: it ended, or did not listen in time; the message ends with what it logged.
        """
        if self._log is None:
            self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (one file for all starts, closed by close())
        command = [sys.executable, "-m", "compute.localnet", "node", "--port", str(self._port), *self._arguments]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=child_environment(),
            text=True,
            start_new_session=True,  # Ctrl-C in a terminal is for the parent, which stops its nodes in its own order
        )
        try:
            self.greeting = json.loads(self._first_line())
        except ValueError as error:
            self.stop()
            message = f"the localnet node did not start: {self.log()[-2000:]}"
            self.close()
            raise ChainUnreachable(message) from error
        self._port = int(self.endpoint.rpartition(":")[2])

    def stop(self) -> int | None:
        """End the node with SIGTERM, or SIGKILL if that does not do; its exit status. Idempotent."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the node with SIGKILL, as a crash would. Idempotent."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """Stop for good: the log is gone as well. Idempotent."""
        self.stop()
        if self._log is not None:
            self._log.close()
            self._log = None

    def log(self) -> str:
        """What the node has written to stderr since the first start; empty before it and after :meth:`close`."""
        if self._log is None:
            return ""
        self._log.seek(0)
        return self._log.read()

    def __enter__(self) -> NodeProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _first_line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            return self._process.stdout.readline() if selector.select(_START_SECONDS) else ""

    def _end(self, number: signal.Signals) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        with process:
            process.send_signal(number)
            try:
                return process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                return process.wait()
