"""One machine's side of the conversation: frames over a channel, with deadlines on the validator's clock.

Every wait has a deadline, every frame a known or capped size, and whatever goes wrong is a ``ProofError`` with its
reason. Nothing is subtracted for the network: any allowance could be inflated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np

from compute.base.channel import Channel
from compute.base.clock import Clock
from compute.base.errors import FrameError, ProofError, SshError, SshTimeout, SshUnreachable
from compute.base.reasons import ProofReason
from compute.proof import frames
from compute.proof.bootstrap import worker_source
from compute.proof.digest import HASH_BYTES
from compute.proof.frames import Failed, Hello, Opened, Prepared, Root
from compute.proof.models import DeviceKind
from compute.proof.statement import Dims

T = TypeVar("T", Hello, Prepared, Root, Opened)

_BYE_SECONDS = 2.0


@dataclass(frozen=True)
class Timed:
    """What one device answered in a timed phase, and how long after the question its last answer was here."""

    roots: tuple[bytes, ...]
    seconds: float


@dataclass(frozen=True)
class Question:
    """The rows of one device to open, and for each row the passes (1 is the first rehash)."""

    rows: tuple[int, ...]
    passes: tuple[tuple[int, ...], ...]

    def encode(self) -> bytes:
        """Each row as ``<i4``, followed by its passes."""
        return np.array([(row, *passes) for row, passes in zip(self.rows, self.passes, strict=True)], "<i4").tobytes()


class Conversation:
    """Speaks to one worker. Every method raises ProofError and nothing else for what the far side does."""

    def __init__(self, channel: Channel, clock: Clock) -> None:
        self._channel = channel
        self._clock = clock

    async def hello(self, device: DeviceKind, count: int, *, timeout_seconds: float) -> Hello:
        """Ship and start the worker."""
        deadline = self._clock.monotonic() + timeout_seconds
        await self._write(worker_source(), deadline)
        await self._send({"type": "hello", "device": device, "count": count}, b"", deadline)
        return await self._receive(Hello, deadline)

    async def prepare(
        self, dims: Dims, device: DeviceKind, count: int, hotkeys: tuple[str, str], *, timeout_seconds: float
    ) -> None:
        """Have every device take its memory. ``hotkeys`` are the validator's and the miner's."""
        deadline = self._clock.monotonic() + timeout_seconds
        validator, miner = hotkeys
        header = {"type": "prepare", "device": device, "count": count, "validator": validator, "miner": miner}
        await self._send({**header, "dims": asdict(dims)}, b"", deadline)
        waiting = set(range(count))
        while waiting:
            self._take((await self._receive(Prepared, deadline)).device, waiting)

    async def compute(self, nonce: bytes, count: int, *, timeout_seconds: float) -> list[Timed]:
        """Reveal the nonce, collect one root per device. The clock runs from before the first byte is sent."""
        return await self._timed({"type": "compute"}, nonce, count, range(1), timeout_seconds)

    async def rehash(self, key: bytes, passes: int, count: int, *, timeout_seconds: float) -> list[Timed]:
        """Collect one root per device and pass."""
        header = {"type": "rehash", "passes": passes}
        return await self._timed(header, key, count, range(1, passes + 1), timeout_seconds)

    async def ask(self, questions: Sequence[Question], *, deadline: float) -> None:
        """Ask every device to open its rows and passes. ``deadline`` is on the monotonic clock."""
        shape = {"rows": len(questions[0].rows), "passes": len(questions[0].passes[0])}
        await self._send({"type": "open", **shape}, b"".join(q.encode() for q in questions), deadline)

    async def opened(self, lengths: dict[int, int], *, deadline: float) -> tuple[int, bytes]:
        """The next device's answer: its index, one of ``lengths``, and its payload of exactly that length."""
        device = (await self._receive(Opened, deadline)).device
        if device not in lengths:
            raise _unexpected(f"an answer of device {device}, which was not asked or has answered")
        return device, await self._read(lengths[device], deadline)

    async def bye(self) -> None:
        """Let the worker end. A worker that has gone already has ended too."""
        deadline = self._clock.monotonic() + _BYE_SECONDS
        try:
            await self._send({"type": "bye"}, b"", deadline)
        except ProofError:
            return

    async def _timed(
        self, header: dict[str, object], secret: bytes, count: int, numbers: range, timeout_seconds: float
    ) -> list[Timed]:
        start = self._clock.monotonic()
        deadline = start + timeout_seconds
        await self._send(header, secret, deadline)
        roots: list[list[bytes]] = [[] for _ in range(count)]
        seconds = [0.0] * count
        for _ in range(count * len(numbers)):
            answer = await self._receive(Root, deadline)
            known = answer.device < count and answer.pass_number in numbers
            if not known or answer.pass_number != numbers.start + len(roots[answer.device]):
                raise _unexpected(f"root {answer.pass_number} of device {answer.device} out of turn")
            roots[answer.device].append(await self._read(HASH_BYTES, deadline))
            seconds[answer.device] = self._clock.monotonic() - start
        return [Timed(tuple(found), took) for found, took in zip(roots, seconds, strict=True)]

    async def _receive(self, wanted: type[T], deadline: float) -> T:
        length = frames.parse_length(await self._read(frames.LENGTH_BYTES, deadline))
        answer = frames.parse_answer(await self._read(length, deadline))
        if isinstance(answer, Failed):
            raise _failure(answer)
        if not isinstance(answer, wanted):
            raise _unexpected(f"a {type(answer).__name__.lower()} frame instead of {wanted.__name__.lower()}")
        return answer

    def _take(self, device: int, waiting: set[int]) -> None:
        if device not in waiting:
            raise _unexpected(f"an answer of device {device}, which was not asked or has answered")
        waiting.remove(device)

    async def _send(self, header: dict[str, object], payload: bytes, deadline: float) -> None:
        await self._write(frames.encode(header, payload), deadline)

    async def _write(self, data: bytes, deadline: float) -> None:
        try:
            await self._channel.write(data, timeout_seconds=self._left(deadline))
        except SshError as error:
            raise _channel_failure(error) from error

    async def _read(self, count: int, deadline: float) -> bytes:
        try:
            return await self._channel.read_exactly(count, timeout_seconds=self._left(deadline))
        except SshError as error:
            raise _channel_failure(error) from error

    def _left(self, deadline: float) -> float:
        return max(0.0, deadline - self._clock.monotonic())


def _unexpected(what: str) -> FrameError:
    return FrameError(ProofReason.BAD_FRAME, f"the worker sent {what}")


def _failure(answer: Failed) -> ProofError:
    reasons = {"devices": ProofReason.DEVICE_COUNT_MISMATCH, "memory": ProofReason.NOT_RESIDENT}
    reason = reasons.get(answer.code, ProofReason.WORKER_FAILED)
    return ProofError(reason, f"the worker gave up: {answer.message}")


def _channel_failure(error: SshError) -> ProofError:
    if isinstance(error, SshTimeout):
        return ProofError(ProofReason.TIMEOUT, str(error))
    if isinstance(error, SshUnreachable):
        return ProofError(ProofReason.UNREACHABLE, str(error))
    return ProofError(ProofReason.WORKER_FAILED, f"the worker's stream ended: {error}")
