"""A worker on this machine, through real pipes: for benchmarks, calibration and tests."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from compute.base.channel import Channel
from compute.base.clock import within
from compute.base.errors import SshError, SshTimeout, SshUnreachable
from compute.proof.bootstrap import bootstrap_argv

_CLOSE_SECONDS = 5.0


class ProcessChannel:
    """A ``Channel`` to the stdin and stdout of a child process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    async def write(self, data: bytes, *, timeout_seconds: float) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(data)
            await within(timeout_seconds, stdin.drain())
        except asyncio.TimeoutError:
            raise SshTimeout(f"the process took no input for {timeout_seconds:.1f} s") from None
        except (ConnectionError, RuntimeError) as error:
            raise SshError(f"the process has closed its input: {error}") from error

    async def read_exactly(self, count: int, *, timeout_seconds: float) -> bytes:
        stdout = self._process.stdout
        assert stdout is not None
        try:
            return await within(timeout_seconds, stdout.readexactly(count))
        except asyncio.TimeoutError:
            raise SshTimeout(f"no {count} bytes of output within {timeout_seconds:.1f} s") from None
        except asyncio.IncompleteReadError as error:
            raise SshError(f"the process ended after {len(error.partial)} of {count} bytes") from None

    async def close(self) -> None:
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.close()
        # Unread output keeps the transport of a dead process open.
        with suppress(asyncio.TimeoutError, ConnectionError):
            await within(_CLOSE_SECONDS, _drain(stdout))
        await self._process.wait()


async def _drain(stream: asyncio.StreamReader) -> None:
    while await stream.read(1 << 16):
        pass


@asynccontextmanager
async def local_worker(argv: Sequence[str] | None = None) -> AsyncIterator[Channel]:
    """A channel to ``argv`` (default: the bootstrap under this interpreter) as a child; killed on the way out.

    Raises:
        SshUnreachable: the program cannot be started.
    """
    command = list(argv) if argv is not None else bootstrap_argv(sys.executable)
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        raise SshUnreachable(f"{command[0]} cannot be started: {error}") from error
    channel = ProcessChannel(process)
    try:
        yield channel
    finally:
        await channel.close()
