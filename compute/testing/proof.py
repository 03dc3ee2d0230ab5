"""A machine in memory: speaks the worker's side over a ``Channel``, in numpy, on a clock that it moves itself.

``FakeMachine`` is honest and as fast as it is told to be; a test that needs a cheat overrides the method that cheats.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compute.base.channel import Channel
from compute.base.errors import SshError, SshTimeout
from compute.proof import digest, frames, generator
from compute.proof.statement import Dims
from compute.testing.clock import ManualClock

_TURNS = 20
"""Turns of the event loop that a frame needs to get from one end to the other, and then some."""


class _Pipe:
    """Bytes one way, in memory."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._changed = asyncio.Event()
        self.ended = False

    def write(self, data: bytes) -> None:
        self._data += data
        self._changed.set()

    def end(self) -> None:
        self.ended = True
        self._changed.set()

    async def changed(self) -> None:
        await self._changed.wait()

    def take(self, count: int) -> bytes | None:
        """``count`` bytes if they are all there."""
        if len(self._data) < count:
            self._changed.clear()
            return None
        taken = bytes(self._data[:count])
        del self._data[:count]
        return taken


class MemoryChannel:
    """The validator's end of two pipes, with deadlines on ``clock``."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.to_machine = _Pipe()
        self.to_validator = _Pipe()
        self.reads: list[int] = []
        """The sizes that the validator asked for, in order."""
        self.closed = False

    async def write(self, data: bytes, *, timeout_seconds: float) -> None:
        if self.to_machine.ended:
            raise SshError("the machine has gone")
        self.to_machine.write(data)

    async def read_exactly(self, count: int, *, timeout_seconds: float) -> bytes:
        self.reads.append(count)
        if timeout_seconds <= 0:
            raise SshTimeout("no time left to read")
        deadline = self._clock.monotonic() + timeout_seconds
        while (data := self.to_validator.take(count)) is None:
            if self.to_validator.ended:
                raise SshError("the machine has gone")
            await self._until_changed(deadline)
            if self._clock.monotonic() > deadline:
                raise SshTimeout(f"no {count} bytes within {timeout_seconds:g} s")
        return data

    async def close(self) -> None:
        self.closed = True
        self.to_machine.end()

    async def _until_changed(self, deadline: float) -> None:
        left = deadline - self._clock.monotonic()
        waits = [
            asyncio.ensure_future(self.to_validator.changed()),
            asyncio.ensure_future(self._clock.sleep(max(left, 1e-9))),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


@dataclass
class FakeDevice:
    """What one device holds: the exact C, and of each pass its key and its digests."""

    index: int
    a: NDArray[np.int32]
    c: NDArray[np.int64]
    keys: list[bytes] = field(default_factory=list)
    digests: list[NDArray[np.int64]] = field(default_factory=list)

    @property
    def roots(self) -> list[bytes]:
        return [digest.tree(found)[-1][0] for found in self.digests]


class FakeMachine:
    """An honest machine of ``devices`` devices, each computing at ``tflops16`` and reading at ``bandwidth_gbs``.

    ``spend`` is how time passes while it works; by default it advances ``clock``.
    """

    def __init__(
        self,
        clock: ManualClock,
        *,
        devices: int = 1,
        tflops16: float = 1.0,
        bandwidth_gbs: float = 1.0,
        spend: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        self.clock = clock
        self.count = devices
        self.tflops16 = tflops16
        self.bandwidth_gbs = bandwidth_gbs
        self.devices: list[FakeDevice] = []
        self.nonces: list[bytes] = []
        self.log: list[str] = []
        self._spend = spend
        self.channel = MemoryChannel(clock)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Channel]:
        """A channel to this machine, freshly started; what ``Target.connect`` asks for."""
        self.channel = MemoryChannel(self.clock)
        self.devices = []
        task = asyncio.create_task(self._serve())
        try:
            yield self.channel
        finally:
            await self.channel.close()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    # What a cheat overrides.

    async def on_hello(self, count: int) -> None:
        self.send({"type": "hello", "torch": "2.13.0", "devices": [self.describe(i) for i in range(self.count)]})

    async def on_prepare(self, count: int) -> None:
        for index in range(count):
            self.send({"type": "prepared", "device": index})

    async def on_compute(self, nonce: bytes, count: int) -> None:
        self.devices = [self.make_device(nonce, index) for index in range(count)]
        await self.spend(self.compute_seconds())
        for device in self.devices:
            self.send_root(device.index, 0, self.digest_pass(device, digest.commit_key(nonce)))

    async def on_rehash(self, key: bytes, passes: int) -> None:
        await self.spend(passes * self.pass_seconds())
        for device in self.devices:
            pass_key = key
            for number in range(1, passes + 1):
                root = self.digest_pass(device, pass_key)
                self.send_root(device.index, number, root)
                pass_key = digest.next_key(root)

    async def on_open(self, lines: Sequence[NDArray[np.int32]]) -> None:
        for device, asked in zip(self.devices, lines, strict=True):
            rows, passes = asked[:, 0].tolist(), asked[:, 1:].tolist()
            self.send({"type": "opened", "device": device.index}, self.open_device(device, rows, passes))

    def describe(self, index: int) -> dict[str, object]:
        return {"name": "fake", "uuid": f"GPU-{id(self):x}-{index}", "memory_bytes": 0}

    def matrix_a(self, nonce: bytes, index: int) -> NDArray[np.int32]:
        seed = generator.seed_a(nonce, self.validator, self.miner, index)
        return generator.rows(np.arange(self.dims.rows), self.dims.k, seed)

    def matrix_b(self, nonce: bytes) -> NDArray[np.int32]:
        return generator.rows(np.arange(self.dims.k), self.dims.columns, generator.seed_b(nonce))

    def make_device(self, nonce: bytes, index: int) -> FakeDevice:
        a, b = self.matrix_a(nonce, index), self.matrix_b(nonce)
        return FakeDevice(index, a, (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64))

    def pass_digests(self, device: FakeDevice, key: bytes) -> NDArray[np.int64]:
        return digest.row_digests(digest.stored(device.c), digest.word_keys(self.dims.columns, key))

    def opened_rows(self, device: FakeDevice, rows: Sequence[int]) -> NDArray[np.int64]:
        taken: NDArray[np.int64] = device.c[list(rows)]
        return taken

    def compute_seconds(self) -> float:
        return self.dims.operations / (self.tflops16 * 1e12)

    def pass_seconds(self) -> float:
        return self.dims.resident_bytes / (self.bandwidth_gbs * 1e9)

    # What it is made of.

    def send(self, header: dict[str, object], payload: bytes = b"") -> None:
        self.channel.to_validator.write(frames.encode(header, payload))

    def send_root(self, index: int, number: int, root: bytes) -> None:
        self.send({"type": "root", "device": index, "pass": number}, root)

    async def spend(self, seconds: float) -> None:
        if self._spend is None:
            # Let the validator read what was sent before time moves on.
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            self.clock.advance(seconds)
        else:
            await self._spend(seconds)

    def digest_pass(self, device: FakeDevice, key: bytes) -> bytes:
        device.keys.append(key)
        device.digests.append(self.pass_digests(device, key))
        return digest.tree(device.digests[-1])[-1][0]

    def open_device(self, device: FakeDevice, rows: Sequence[int], passes: Sequence[Sequence[int]]) -> bytes:
        trees = [digest.tree(found) for found in device.digests]
        parts = [self.opened_rows(device, rows).astype("<i4").tobytes()]
        for row, row_passes in zip(rows, passes, strict=True):
            block = row // digest.BLOCK_ROWS
            for number in (0, *row_passes):
                held = device.digests[number][block * digest.BLOCK_ROWS : (block + 1) * digest.BLOCK_ROWS]
                parts += [held.astype("<i8").tobytes(), *digest.path(trees[number], block)]
        return b"".join(parts)

    async def _serve(self) -> None:
        try:
            await self._skip_worker()
            while True:
                header = await self._header()
                self.log.append(header["type"])
                if header["type"] == "bye":
                    return
                await self._answer(header)
        except EOFError:
            return
        finally:
            self.channel.to_validator.end()

    async def _answer(self, header: dict[str, Any]) -> None:
        kind = header["type"]
        if kind == "hello":
            await self.on_hello(header["count"])
        elif kind == "prepare":
            self.dims = Dims(**header["dims"])
            self.validator, self.miner = header["validator"], header["miner"]
            self._asked = header["count"]
            await self.on_prepare(self._asked)
        elif kind == "compute":
            self.nonces.append(await self._read(32))
            await self.on_compute(self.nonces[-1], self._asked)
        elif kind == "rehash":
            await self.on_rehash(await self._read(32), header["passes"])
        elif kind == "open":
            width, rows = 1 + header["passes"], header["rows"]
            asked = np.frombuffer(await self._read(4 * width * rows * self._asked), "<i4")
            await self.on_open(list(asked.reshape(self._asked, rows, width)))

    async def _skip_worker(self) -> None:
        line = b""
        while not line.endswith(b"\n"):
            line += await self._read(1)
        await self._read(int(line))

    async def _header(self) -> dict[str, Any]:
        length = int.from_bytes(await self._read(frames.LENGTH_BYTES), "little")
        return frames.parse_object(await self._read(length))

    async def _read(self, count: int) -> bytes:
        pipe = self.channel.to_machine
        while (data := pipe.take(count)) is None:
            if pipe.ended:
                raise EOFError("the validator has gone")
            await pipe.changed()
        return data
