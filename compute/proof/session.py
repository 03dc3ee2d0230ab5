"""One batch of proofs: many machines, one nonce, one B, one U, one moment at which all of them start.

The order of things is what the proof rests on. The nonce leaves the validator only when U is ready and every machine
of the batch has prepared or dropped out; nothing is opened before every timed phase of the batch has ended. Both are
gates that all machines pass together, so that one card behind two machines measures half its speed twice.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace

from compute.base.channel import Channel
from compute.base.clock import Clock, within
from compute.base.errors import CallError, HostKeyMismatch, LeaseError, ProofError, SshError, SshTimeout
from compute.base.reasons import ProofReason
from compute.proof import generator
from compute.proof.conversation import Conversation, Question, Timed
from compute.proof.fingerprint import judge_device, machine_verdict
from compute.proof.frames import Hello
from compute.proof.models import (
    MAX_DEVICES,
    Claim,
    DeviceMeasurement,
    GpuModel,
    MachineVerdict,
    ProofSettings,
    TolerancePairs,
)
from compute.proof.statement import Dims, compute_deadline_seconds, dims_for, rehash_deadline_seconds
from compute.proof.verifier import Evidence, Projection, draw_projection, verify_device

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """One machine to prove.

    ``connect`` yields a channel to a freshly started ``bootstrap.BOOTSTRAP`` on the machine. Its exit ends whatever it
    began (lease, session), within deadlines of its own, also when cancelled.
    """

    hotkey: str
    claim: Claim
    connect: Callable[[], AbstractAsyncContextManager[Channel]]


OnVerdict = Callable[[Target, MachineVerdict], Awaitable[None] | None]


async def prove_batch(
    targets: Sequence[Target],
    *,
    validator_hotkey: str,
    models: Mapping[str, GpuModel],
    tolerance_pairs: TolerancePairs,
    settings: ProofSettings,
    on_verdict: OnVerdict,
    executor: Executor,
    clock: Clock,
) -> list[MachineVerdict]:
    """Prove all ``targets`` at once; one verdict each, in their order, and each to ``on_verdict`` when it is known.

    Whatever a machine does is a verdict with a reason. The arithmetic runs in ``executor``, one thread or more. When
    cancelled, every connection is closed before this returns.

    Raises:
        ConfigError: a model of the table is too small for the settings.
        Exception: what ``on_verdict`` raises, after the other machines have been cancelled.
    """
    statements = {name: dims_for(model, settings) for name, model in models.items()}
    batch = _Batch(len(targets), validator_hotkey, models, tolerance_pairs, settings, statements, executor, clock)
    machines = [_MachineProof(number, target, batch) for number, target in enumerate(targets)]
    batch.start_projection([target.claim.gpu for target in targets])
    tasks = [asyncio.create_task(machine.run(on_verdict)) for machine in machines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Gate:
    """Opens when every machine has passed it or dropped out."""

    def __init__(self, machines: int) -> None:
        self._missing = set(range(machines))
        self._open = asyncio.Event()

    def release(self, number: int) -> None:
        self._missing.discard(number)
        if not self._missing:
            self._open.set()

    async def wait(self, number: int) -> None:
        self.release(number)
        await self._open.wait()


class _Batch:
    """What all machines of the batch have in common."""

    def __init__(
        self,
        machines: int,
        validator_hotkey: str,
        models: Mapping[str, GpuModel],
        pairs: TolerancePairs,
        settings: ProofSettings,
        statements: Mapping[str, Dims],
        executor: Executor,
        clock: Clock,
    ) -> None:
        self.validator_hotkey = validator_hotkey
        self.models = models
        self.pairs = pairs
        self.settings = settings
        self.statements = statements
        self.executor = executor
        self.clock = clock
        self.nonce = secrets.token_bytes(32)
        self.prepared = _Gate(machines)
        self.measured = _Gate(machines)
        self._projection: asyncio.Future[Projection] | None = None

    def start_projection(self, claimed: Sequence[str]) -> None:
        """Begin U = B·R for the largest K of the batch; a smaller K is its first rows."""
        sizes = [self.statements[name].k for name in claimed if name in self.statements]
        if not sizes:
            return
        loop = asyncio.get_running_loop()
        columns = self.settings.columns
        self._projection = loop.run_in_executor(self.executor, draw_projection, self.nonce, max(sizes), columns)
        # If every machine drops out, nobody asks for the result, nor for the error.
        self._projection.add_done_callback(lambda future: future.cancelled() or future.exception())

    async def projection(self) -> Projection:
        """U, when it is ready. Shielded, because all machines wait for the same one."""
        assert self._projection is not None
        return await asyncio.shield(self._projection)


class _MachineProof:
    """One machine's way through the batch."""

    def __init__(self, number: int, target: Target, batch: _Batch) -> None:
        self._number = number
        self._target = target
        self._batch = batch
        self._devices: list[DeviceMeasurement] = []

    async def run(self, on_verdict: OnVerdict) -> MachineVerdict:
        stack = AsyncExitStack()
        try:
            verdict = await self._verdict(stack)
            published = on_verdict(self._target, verdict)
            if published is not None:
                await published
            return verdict
        finally:
            await self._close(stack)

    async def _verdict(self, stack: AsyncExitStack) -> MachineVerdict:
        try:
            return await self._prove(stack)
        except Exception as error:
            reason, detail = _explain(error)
            if reason is ProofReason.INTERNAL_ERROR:
                logger.exception("proof of %s failed on this side", self._target.hotkey)
            devices = tuple(replace(d, reason=reason) if d.reason is ProofReason.OK else d for d in self._devices)
            return MachineVerdict(reason=reason, claim=self._target.claim, devices=devices, detail=detail)
        finally:
            # Before anything else happens to the verdict: no other machine waits for this one's publication.
            self._batch.prepared.release(self._number)
            self._batch.measured.release(self._number)

    async def _prove(self, stack: AsyncExitStack) -> MachineVerdict:
        batch, claim, settings = self._batch, self._target.claim, self._batch.settings
        model, dims = self._claimed()
        channel = await within(settings.connect_seconds, stack.enter_async_context(self._target.connect()))
        worker = Conversation(channel, batch.clock)
        hello = await worker.hello(settings.device, claim.count, timeout_seconds=settings.hello_seconds)
        self._check_devices(hello)
        hotkeys = (batch.validator_hotkey, self._target.hotkey)
        await worker.prepare(dims, settings.device, claim.count, hotkeys, timeout_seconds=settings.prepare_seconds)

        await batch.prepared.wait(self._number)
        projection = await batch.projection()
        computed = await worker.compute(
            batch.nonce, claim.count, timeout_seconds=compute_deadline_seconds(dims, model, settings)
        )
        self._record(hello, dims, computed, None)
        if all(device.reason is not ProofReason.OK for device in self._devices):
            return machine_verdict(claim, self._devices, batch.models, batch.pairs)
        key = secrets.token_bytes(32)
        rehashed = await worker.rehash(
            key, dims.passes, claim.count, timeout_seconds=rehash_deadline_seconds(dims, model, settings)
        )
        self._record(hello, dims, computed, rehashed)

        await batch.measured.wait(self._number)
        evidence = [
            Evidence.of(batch.nonce, first.roots[0], key, then.roots)
            for first, then in zip(computed, rehashed, strict=True)
        ]
        await self._open(worker, dims, projection, evidence)
        await worker.bye()
        return machine_verdict(claim, self._devices, batch.models, batch.pairs)

    def _claimed(self) -> tuple[GpuModel, Dims]:
        claim = self._target.claim
        if claim.count < 1:
            raise ProofError(ProofReason.NO_GPU, f"claims {claim.count} devices")
        if claim.count > MAX_DEVICES:
            text = f"claims {claim.count} devices; at most {MAX_DEVICES} are proven"
            raise ProofError(ProofReason.DEVICE_COUNT_MISMATCH, text)
        if claim.gpu not in self._batch.models:
            raise ProofError(ProofReason.UNKNOWN_MODEL, f"{claim.gpu!r} is not in the table of models")
        return self._batch.models[claim.gpu], self._batch.statements[claim.gpu]

    def _check_devices(self, hello: Hello) -> None:
        count = self._target.claim.count
        if len(hello.devices) < count:
            text = f"claims {count} devices and shows {len(hello.devices)}"
            raise ProofError(ProofReason.DEVICE_COUNT_MISMATCH, text)
        uuids = [device.uuid for device in hello.devices[:count] if device.uuid is not None]
        if len(set(uuids)) < len(uuids):
            raise ProofError(ProofReason.SHARED_DEVICE, "shows one device twice")

    def _record(self, hello: Hello, dims: Dims, computed: list[Timed], rehashed: list[Timed] | None) -> None:
        """Turn the times of the phases into judged measurements, one per device."""
        batch, model = self._batch, self._batch.models[self._target.claim.gpu]
        self._devices = []
        for index, first in enumerate(computed):
            measured = DeviceMeasurement(
                index=index,
                reason=ProofReason.OK,
                tflops16=dims.operations / max(first.seconds, 1e-9) / 1e12,
                vram_bytes=dims.resident_bytes,
                compute_seconds=first.seconds,
                uuid=hello.devices[index].uuid,
            )
            if rehashed is not None:
                seconds = rehashed[index].seconds
                rate = dims.passes * dims.resident_bytes / max(seconds, 1e-9) / 1e9
                measured = replace(measured, rehash_seconds=seconds, bandwidth_gbs=rate)
            self._devices.append(judge_device(measured, dims, model, batch.models, batch.settings))

    async def _open(
        self, worker: Conversation, dims: Dims, projection: Projection, evidence: Sequence[Evidence]
    ) -> None:
        """Ask for random rows and passes of every device and check them, one device at a time to bound memory."""
        batch, loop = self._batch, asyncio.get_running_loop()
        questions = [draw_question(dims, batch.settings) for _ in evidence]
        left = batch.settings.open_seconds
        start = batch.clock.monotonic()
        await worker.ask(questions, deadline=start + left)
        passes_per_row = batch.settings.opened_passes
        waiting = {i: dims.opened_bytes(list(q.rows), passes_per_row) for i, q in enumerate(questions)}
        while waiting:
            index, payload = await worker.opened(waiting, deadline=start + left)
            left -= batch.clock.monotonic() - start
            del waiting[index]
            seed = generator.seed_a(batch.nonce, batch.validator_hotkey, self._target.hotkey, index)
            asked = questions[index]
            arguments = (dims, seed, projection, evidence[index], asked.rows, asked.passes, payload)
            try:
                await loop.run_in_executor(batch.executor, verify_device, *arguments)
            except ProofError as error:
                logger.info("%s device %d: %s", self._target.hotkey, index, error)
                self._devices[index] = replace(self._devices[index], reason=error.reason)
            # The time that verification takes is this side's, not the machine's.
            start = batch.clock.monotonic()

    async def _close(self, stack: AsyncExitStack) -> None:
        try:
            await stack.aclose()
        except Exception:
            # The verdict is found; the machine's last words do not change it.
            logger.exception("closing the connection to %s failed", self._target.hotkey)


def draw_question(dims: Dims, settings: ProofSettings) -> Question:
    """Which rows of one device, and which passes of each row, are opened: unpredictable, without repetition."""
    count = min(settings.opened_rows, dims.rows)
    # One large number, of 64 bits a choice. Every call of the system's generator lets go of the interpreter, and a
    # hundred of them would each wait for up to 5 ms to have it back from the thread that verifies.
    number = secrets.randbits(64 * count * (1 + settings.opened_passes))
    number, rows = _sample(number, dims.rows, count)
    passes = []
    for _ in rows:
        number, places = _sample(number, dims.passes, settings.opened_passes)
        passes.append(tuple(place + 1 for place in places))
    return Question(tuple(rows), tuple(passes))


def _sample(number: int, size: int, count: int) -> tuple[int, list[int]]:
    """What is left of a random ``number``, and ``count`` different integers below ``size``, chosen by it."""
    moved: dict[int, int] = {}
    chosen = []
    for last in range(size - 1, size - 1 - count, -1):
        number, place = divmod(number, last + 1)
        chosen.append(moved.get(place, place))
        moved[place] = moved.get(last, last)
    return number, chosen


def _explain(error: Exception) -> tuple[ProofReason, str]:
    if isinstance(error, ProofError):
        return error.reason, str(error)
    if isinstance(error, HostKeyMismatch):
        return ProofReason.HOST_KEY_MISMATCH, str(error)
    if isinstance(error, SshTimeout):
        return ProofReason.TIMEOUT, str(error)
    if isinstance(error, asyncio.TimeoutError):
        return ProofReason.TIMEOUT, "the connection was not there in time"
    if isinstance(error, SshError | CallError):
        return ProofReason.UNREACHABLE, str(error)
    if isinstance(error, LeaseError):
        return ProofReason.REFUSED, str(error)
    return ProofReason.INTERNAL_ERROR, type(error).__name__
