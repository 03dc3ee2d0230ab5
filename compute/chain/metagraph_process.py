"""Reads the subnet in a process of its own, for a neuron whose event loop must not wait.

The SDK computes for a quarter of a second over 256 neurons, much of it in compiled steps of 5 to 10 ms that give the
interpreter to nobody: beside a thread that does this, an event loop stands still at every socket that it touches.

``python -m compute.chain.metagraph_process`` is the other process: it is told an endpoint and a netuid in the first
line of stdin, a JSON list, answers every later line with a line of JSON, and ends with stdin, however the neuron ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import Any

from compute.base import logs
from compute.base.clock import within
from compute.base.errors import ChainError, ChainUnreachable
from compute.base.options.shared import LoggingOptions
from compute.base.process import child_environment
from compute.chain.subtensor import Metagraph, Neuron, SubtensorChain

_SECONDS = 180.0
"""The other process has deadlines of its own, which are shorter: this is for one that hangs."""
_MAX_ANSWER_BYTES = 16 << 20


class SubnetReader:
    """Asks the other process, one question at a time; it is started at the first, and anew after one that failed."""

    def __init__(self, endpoint: str, netuid: int) -> None:
        # Not on its command line: an endpoint may have a key in it.
        self._greeting = json.dumps([endpoint, netuid]).encode() + b"\n"
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None

    async def metagraph(self) -> Metagraph:
        """The whole subnet, at the current block. Raises ChainError."""
        async with self._turn:
            try:
                return _metagraph(await within(_SECONDS, self._answer()))
            except (asyncio.TimeoutError, TimeoutError, OSError, ValueError) as error:
                await self.close()
                problem = str(error) or f"no answer within {_SECONDS:.0f} s"
                raise ChainUnreachable(f"the process that reads the subnet: {problem}") from error
            except asyncio.CancelledError:
                # Its answer, when it comes, would be taken for that to the next question.
                await self.close()
                raise

    async def _answer(self) -> bytes:
        question = b"\n"
        if self._process is None:
            question = self._greeting + question
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                __name__,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_MAX_ANSWER_BYTES,
                env=child_environment(),
                # A terminal's Ctrl-C is the neuron's alone, from the first moment on.
                start_new_session=True,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(question)
        await process.stdin.drain()
        line = await process.stdout.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError("it has ended")
        return line

    async def close(self) -> None:
        """End the other process, which has nothing to lose. Idempotent; a later question starts another."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()


def _metagraph(line: bytes) -> Metagraph:
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise (ChainUnreachable if answer["unreachable"] else ChainError)(answer["error"])
    neurons = tuple(Neuron(**neuron) for neuron in answer["neurons"])
    return Metagraph(netuid=answer["netuid"], block=answer["block"], neurons=neurons)


async def _serve(answers: int) -> None:
    greeting = sys.stdin.readline()
    if not greeting:
        return
    endpoint, netuid = json.loads(greeting)
    chain = SubtensorChain(endpoint, netuid, None)
    # A neuron that was killed reads no answer, which is nothing to tell.
    with contextlib.suppress(BrokenPipeError), os.fdopen(answers, "w") as out:
        while await asyncio.to_thread(sys.stdin.readline):
            answer: dict[str, Any]
            try:
                metagraph = await chain.metagraph()
            except ChainError as error:
                answer = {"error": str(error), "unreachable": isinstance(error, ChainUnreachable)}
            else:
                neurons = [vars(neuron) for neuron in metagraph.neurons]
                answer = {"netuid": metagraph.netuid, "block": metagraph.block, "neurons": neurons}
            out.write(json.dumps(answer) + "\n")
            out.flush()


def main() -> None:
    """Serve until stdin ends. What pm2 or another service manager sends to all processes is the neuron's to answer."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # The SDK writes to stdout.
    answers = os.dup(1)
    os.dup2(2, 1)
    import bittensor  # noqa: F401  (before the logs are set up, which importing it undoes)

    logs.configure(LoggingOptions())
    asyncio.run(_serve(answers))


if __name__ == "__main__":
    main()
