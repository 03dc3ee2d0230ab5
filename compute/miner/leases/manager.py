"""Who gets the machine, for how long, and what its owner may do to it: the miner's side of every lease."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from compute.base.clock import Clock
from compute.base.errors import LeaseError, RuntimeFailure, StoreError
from compute.base.reasons import Refusal
from compute.miner.leases.states import DRAINING, HOLDING, LeaseState
from compute.miner.leases.steps import LeaseSteps
from compute.miner.leases.store import Lease, LeaseSecrets, LeaseStore, Owner, busy
from compute.miner.runtimes.base import USERNAME, ContainerSpec, Limits, Renews, Runtime
from compute.wire.keys import LoginInfo, SessionKey, new_password
from compute.wire.lease_terms import MAX_DAYS, PROBE_SECONDS, SECONDS_PER_DAY, KeyLine, LeaseKind
from compute.wire.receipts import Receipt
from compute.wire.requirements import DeviceRequirement, leased_gpus, shortfall
from compute.wire.specs import MachineSpecs

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_SECONDS = float(MAX_DAYS * SECONDS_PER_DAY)
"""The longest that a customer's lease may last from now."""

RETRY_SECONDS = 10.0
WATCH_SECONDS = 5.0
_LOOK_SECONDS = 60.0
_CLOSE_SECONDS = 30.0
_DISMISS_SECONDS = 5.0
_REST_SECONDS = 0.5
_REST_LIMIT_SECONDS = 3600.0
_THREADS = 4


@dataclass(frozen=True)
class LeaseRequest:
    """What a caller wants: parsed and checked. ``ssh_key`` is a checked public line, empty for login by password.

    ``script`` is the renter's steps of a Dockerfile, as ``dockerfile.script_of`` gives them.
    """

    owner: Owner
    kind: LeaseKind
    requirement: DeviceRequirement
    image: str
    ssh_key: str
    seconds: float
    script: str = ""

    def identity(self) -> str:
        """The same for the same request asked again; its length in time is no part of it."""
        parts = [asdict(self.requirement), self.image, self.ssh_key, *([self.script] if self.script else [])]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Granted:
    """A lease that is up, and how to log in."""

    lease: Lease
    info: LoginInfo


class LeaseManager:
    """One machine's leases. All methods are coroutines of one event loop, none blocks it, and all may be cancelled.

    What they start goes on in the background when ``answer_seconds`` have passed or the caller has gone; asking again
    finds it. Methods raise LeaseError with the reason, StoreError where the database fails.
    """

    def __init__(
        self,
        *,
        store: LeaseStore,
        runtime: Runtime,
        specs: Callable[[], MachineSpecs],
        clock: Clock,
        ssh_port: int = 4444,
        answer_seconds: float = 20.0,
        stand_ready: bool = False,
    ) -> None:
        """``specs`` measures this machine, and may block. ``stand_ready``: while there is no lease, a machine waits
        for the next, where the runtime has such machines."""
        self.ssh_port = ssh_port
        self.answer_seconds = answer_seconds
        self._store = store
        self._runtime = runtime
        self._specs = specs
        self._clock = clock
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="lease")
        self._steps = LeaseSteps(
            store=store,
            runtime=runtime,
            clock=clock,
            ssh_port=ssh_port,
            executor=self._executor,
            first_ready=self._whole_machine if stand_ready else None,
        )
        self._reconciled = False
        self._wake = asyncio.Event()
        self._duties: list[asyncio.Task[None]] = []
        self._work: dict[str, asyncio.Task[Any]] = {}
        self._drained_at: dict[str, float] = {}

    @property
    def is_ready(self) -> bool:
        """Whether a machine stands ready for the next lease, and nothing starts or stops."""
        return self._steps.standby.is_there and not self._work

    async def start(self) -> None:
        """Put right what the process before this one left, then keep watch over machines and the ends of leases.

        A runtime that does not answer yet is asked again every ``RETRY_SECONDS``; until then there are no new leases.
        """
        await self._reconcile()
        self._duties = [asyncio.create_task(self._schedule()), asyncio.create_task(self._watch())]

    async def close(self) -> None:
        """Stop watching and let work in progress end. Leases go on without this process."""
        for duty in self._duties:
            duty.cancel()
        await asyncio.gather(*self._duties, return_exceptions=True)
        self._steps.close()
        if self._work:
            await asyncio.wait(list(self._work.values()), timeout=_CLOSE_SECONDS)
        with contextlib.suppress(RuntimeFailure, asyncio.TimeoutError):
            # What is left of it, the next start removes.
            await asyncio.wait_for(self._steps.dismiss(), _DISMISS_SECONDS)
        self._executor.shutdown(wait=False)

    async def at_rest(self) -> None:
        """Return when nobody proves the machine, and nothing starts, stops or changes it. A customer may have it.

        Where one proof follows the other without a gap, it gives up on one after an hour.
        """
        end = self._clock.monotonic() + _REST_LIMIT_SECONDS
        while True:
            lease = await self._live()
            if self._work:
                await asyncio.wait(list(self._work.values()))
            elif lease is None or _is_settled(lease) or self._clock.monotonic() >= end:
                return
            else:
                await self._clock.sleep(_REST_SECONDS)

    async def current(self) -> Lease | None:
        """The lease that has the machine now, for whoever tells the world about it."""
        return await self._steps.call(self._store.holder)

    async def owns(self, public_pem: str) -> bool:
        """Whether the live lease belongs to this key."""
        lease = await self._live()
        return lease is not None and lease.owner.public_pem == public_pem

    async def check(self, requirement: DeviceRequirement, kind: LeaseKind) -> None:
        """Return where a lease of this kind could be had now; a customer gets a probe's machine.

        Raises:
            LeaseError: what falls short, or ``busy``.
        """
        lease = await self._live()
        if lease is not None and not (lease.kind is LeaseKind.PROBE and kind is LeaseKind.CUSTOMER):
            raise busy(lease, None, self._clock.now())
        await self._suitable(requirement)

    async def allocate(self, request: LeaseRequest) -> Granted:
        """Lease the machine, or return what the same request has been given already.

        Raises:
            LeaseError: ``busy``, what falls short, ``unsupported``, ``runtime_failed``; ``starting`` where the machine
                was not up in time: ask again.
        """
        self._require_reconciled()
        lease = await self._live()
        wanted = (request.owner, request.kind, request.identity())
        if lease is None or (lease.owner, lease.kind, lease.request) != wanted:
            lease = await self._reserve(request)
        if lease.state in (LeaseState.RESERVED, LeaseState.STARTING):
            if lease.state is LeaseState.RESERVED:
                self._begin(f"start {lease.lease_id}", lambda: self._steps.bring_up(lease.lease_id))
            await self._wait_for(f"start {lease.lease_id}")
        return await self._granted(lease.lease_id)

    async def deallocate(self, owner: Owner) -> None:
        """End the lease. When this returns it is over for its owner; the machine may still be winding down."""
        lease = await self._owned(owner)
        if await self._stop(lease.lease_id, "deallocated by its owner") is None:
            raise LeaseError(Refusal.NO_LEASE, "the lease is over")
        with contextlib.suppress(LeaseError, StoreError):
            await self._wait_for(f"drain {lease.lease_id}")

    async def pause(self, owner: Owner) -> None:
        """Freeze the machine. Idempotent."""
        await self._change(owner, "pause", self._steps.pause)

    async def unpause(self, owner: Owner) -> None:
        """Let a paused machine go on. Idempotent."""
        await self._change(owner, "unpause", self._steps.unpause)

    async def restart(self, owner: Owner) -> None:
        """Restart the machine; files and keys stay."""
        await self._change(owner, "restart", self._steps.restart)

    async def exchange_key(self, owner: Owner, line: KeyLine, key: str) -> None:
        """Replace one line of ``authorized_keys`` by a checked public line; no new login uses the old one."""

        def exchanged(secrets: LeaseSecrets) -> LeaseSecrets:
            if line is KeyLine.USER:
                return replace(secrets, user_key=key)
            return replace(secrets, terminal_key=key)

        # Not shared between requests: each brings its own key.
        name = f"exchange_key {line.value} {key}"
        await self._change(owner, name, lambda lease_id: self._steps.change_keys(lease_id, exchanged))

    async def carry(self, owner: Owner, receipt: Receipt) -> None:
        """Show this receipt of the lease's owner from now on. It has been checked; here it must fit the lease.

        Raises:
            LeaseError: also ``bad_request``: it is another lease's, or ``unsupported``: the lease is a probe's.
        """
        lease = await self._owned(owner)
        if lease.kind is LeaseKind.PROBE:
            raise LeaseError(Refusal.UNSUPPORTED, "a probe needs no receipt")
        secrets = await self._steps.call(self._store.secrets, lease.lease_id)
        host_key = SessionKey.from_private_openssh(secrets.host_key).fingerprint
        if (receipt.validator, receipt.host_key, receipt.port) != (owner.hotkey, host_key, lease.port):
            raise LeaseError(Refusal.BAD_REQUEST, "the receipt's validator, host_key or port is not this lease's")
        await self._steps.call(self._store.set_receipt, lease.lease_id, receipt)

    async def receipt(self) -> Receipt | None:
        """The receipt to show now: of the lease that has the machine."""
        lease = await self._live()
        receipt = lease.receipt if lease is not None else None
        return receipt if receipt is not None and receipt.until > self._clock.now() else None

    async def extend(self, owner: Owner, seconds: float) -> float:
        """Let the lease last at least ``seconds`` from now; returns its end. Idempotent, and never shortens.

        Raises:
            LeaseError: also ``unsupported`` for a probe's lease.
        """
        lease = await self._owned(owner)
        if lease.kind is LeaseKind.PROBE:
            raise LeaseError(Refusal.UNSUPPORTED, f"a probe lasts at most {PROBE_SECONDS:g} s and cannot be extended")
        ends_at = max(lease.ends_at, self._clock.now() + min(seconds, MAX_SECONDS))
        await self._change(owner, f"extend {ends_at}", lambda lease_id: self._steps.set_end(lease_id, ends_at))
        self._wake.set()
        return ends_at

    async def _change(self, owner: Owner, name: str, work: Callable[[str], Coroutine[Any, Any, None]]) -> None:
        self._require_reconciled()
        lease_id = (await self._owned(owner)).lease_id
        self._begin(f"{name} {lease_id}", lambda: work(lease_id))
        await self._wait_for(f"{name} {lease_id}")

    async def _live(self) -> Lease | None:
        """The holder, unless its time is over and only the scheduler has not come by yet."""
        lease = await self._steps.call(self._store.holder)
        return None if lease is None or lease.ends_at <= self._clock.now() else lease

    async def _owned(self, owner: Owner) -> Lease:
        lease = await self._live()
        if lease is None:
            raise LeaseError(Refusal.NO_LEASE, "there is no lease on this machine")
        if lease.owner != owner:
            raise LeaseError(Refusal.NOT_OWNER, "the lease belongs to another hotkey or another public_key")
        return lease

    async def _suitable(self, requirement: DeviceRequirement) -> MachineSpecs:
        self._require_reconciled()
        machine = await self._steps.call(self._specs)
        missing = shortfall(requirement, machine)
        if missing is not None:
            raise LeaseError(missing.reason, missing.text)
        return machine

    async def _limits(self, request: LeaseRequest) -> Limits:
        if not self._runtime.accepts_image(request.image):
            raise LeaseError(Refusal.UNSUPPORTED, "the image is not among those that this miner runs")
        requirement = request.requirement
        machine = await self._suitable(requirement)
        # A probe is there to see the whole machine.
        gpus = machine.gpus if request.kind is LeaseKind.PROBE else leased_gpus(requirement, machine)
        uuids = tuple(gpu.uuid for gpu in gpus if gpu.uuid)
        return Limits(requirement.cpu_count, requirement.ram_bytes, requirement.disk_bytes, uuids)

    def _whole_machine(self) -> Limits:
        """What a probe gets, and most leases are probes. Blocks."""
        return Limits(gpu_uuids=tuple(gpu.uuid for gpu in self._specs().gpus if gpu.uuid))

    async def _reserve(self, request: LeaseRequest) -> Lease:
        limits = await self._limits(request)
        ready = self._steps.standby.ask_for(limits)
        spec = ready or ContainerSpec.new(limits, self.ssh_port)
        now = self._clock.now()
        lease = Lease(
            lease_id=spec.lease_id,
            state=LeaseState.RESERVED,
            kind=request.kind,
            owner=request.owner,
            request=request.identity(),
            image=request.image,
            limits=limits,
            created_at=now,
            ends_at=now + min(request.seconds, PROBE_SECONDS if request.kind is LeaseKind.PROBE else MAX_SECONDS),
        )
        secrets = _new_secrets(request, spec.host_key)
        reserving = asyncio.ensure_future(self._steps.call(self._store.reserve, lease, secrets, now=now))
        reserving.add_done_callback(lambda done: self._reserved(done, ready))
        # It goes on where the caller does not, and the machine is the lease's, or it is not.
        reserved = await asyncio.shield(reserving)
        self._wake.set()
        return reserved

    def _reserved(self, done: asyncio.Future[Lease], ready: ContainerSpec | None) -> None:
        if ready is None:
            return
        if done.cancelled() or done.exception() is not None:
            self._steps.standby.keep(ready)
        else:
            self._steps.standby.hand_over(ready)

    async def _granted(self, lease_id: str) -> Granted:
        lease = await self._steps.call(self._store.get, lease_id)
        if lease is None or lease.state not in HOLDING:
            reason = lease.reason if lease is not None else "the lease has vanished"
            raise LeaseError(Refusal.RUNTIME_FAILED, f"the lease did not come up: {reason}")
        if lease.state in (LeaseState.RESERVED, LeaseState.STARTING):
            raise LeaseError(Refusal.STARTING, "the machine is starting: ask again", retry_after_seconds=5)
        secrets = await self._steps.call(self._store.secrets, lease_id)
        host_key = SessionKey.from_private_openssh(secrets.host_key).fingerprint
        info = LoginInfo(USERNAME, lease.port, host_key, secrets.password)
        return Granted(lease, info)

    async def _stop(self, lease_id: str, reason: str) -> Lease | None:
        stopped = await self._steps.call(self._store.move, lease_id, LeaseState.STOPPING, reason=reason)
        if stopped is not None:
            self._drain(lease_id)
        return stopped

    def _drain(self, lease_id: str) -> None:
        self._drained_at[lease_id] = self._clock.monotonic()
        self._begin(f"drain {lease_id}", lambda: self._steps.drain(lease_id))

    def _require_reconciled(self) -> None:
        if not self._reconciled:
            text = "the miner is still putting its machine in order"
            raise LeaseError(Refusal.STARTING, text, retry_after_seconds=RETRY_SECONDS)

    def _begin(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``work`` in the background, unless the same is running already."""
        if name in self._work:
            return
        task = asyncio.create_task(work(), name=name)
        self._work[name] = task
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        del self._work[task.get_name()]
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, LeaseError):
            known = isinstance(error, (RuntimeFailure, StoreError))
            logger.warning("%s: %s", task.get_name().split()[0], error, exc_info=None if known else error)
            # Where a step broke off half-way, store and runtime have to be compared again.
            self._reconciled = self._reconciled and isinstance(error, RuntimeFailure)
        self._wake.set()

    async def _wait_for(self, name: str) -> None:
        """Wait for work in the background, for ``answer_seconds`` at most.

        Raises:
            LeaseError: ``starting``: it goes on, ask again; or what the work itself raised.
        """
        task = self._work.get(name)
        if task is None:
            return
        waiting = asyncio.ensure_future(self._clock.sleep(self.answer_seconds))
        try:
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not task.done():
            raise LeaseError(Refusal.STARTING, "this takes a while: ask again", retry_after_seconds=5)
        try:
            task.result()
        except RuntimeFailure as error:
            raise LeaseError(Refusal.RUNTIME_FAILED, str(error)) from error

    async def _schedule(self) -> None:
        while True:
            self._wake.clear()
            try:
                pause = await self._end_due()
            except Exception:
                # The scheduler is what ends leases: nothing may end it.
                logger.exception("the lease scheduler stumbled; trying again in %g s", RETRY_SECONDS)
                pause = RETRY_SECONDS
            sleeping = asyncio.ensure_future(self._clock.sleep(pause))
            waking = asyncio.ensure_future(self._wake.wait())
            try:
                await asyncio.wait({sleeping, waking}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleeping.cancel()
                waking.cancel()

    async def _end_due(self) -> float:
        """End what is due; returns the seconds until the next look."""
        if not self._reconciled:
            await self._reconcile()
            return 0.0 if self._reconciled else RETRY_SECONDS
        live = await self._steps.call(self._store.live)
        self._drained_at = {lease.lease_id: self._drained_at.get(lease.lease_id, -RETRY_SECONDS) for lease in live}
        # Not longer than a minute: the wall clock may be set meanwhile.
        pause = _LOOK_SECONDS
        for lease in live:
            left = lease.ends_at - self._clock.now()
            if lease.state in DRAINING:
                left = self._drained_at[lease.lease_id] + RETRY_SECONDS - self._clock.monotonic()
                if left <= 0:
                    self._drain(lease.lease_id)
            elif left <= 0:
                logger.info("lease %s ends: its time is over", lease.lease_id)
                await self._stop(lease.lease_id, "its time was over")
            if left > 0:
                pause = min(pause, left)
        if not live and self._steps.standby.is_due:
            self._begin("stand_ready", self._steps.stand_ready)
        return pause

    async def _watch(self) -> None:
        """Look after machines that go down by themselves, or with their engine."""
        told = ""
        while True:
            await self._clock.sleep(WATCH_SECONDS)
            if not self._reconciled:
                continue
            try:
                await self._steps.look_after()
                if isinstance(self._runtime, Renews):
                    await self._steps.call(self._runtime.renew)
                told = ""
            except (RuntimeFailure, StoreError) as error:
                # An engine that is away is news once.
                if str(error) != told:
                    logger.warning("the machine cannot be looked after: %s", error)
                told = str(error)
            except Exception:
                # A machine that nobody looks after would stay down for the rest of its lease.
                logger.exception("looking after the machine went wrong")

    async def _reconcile(self) -> None:
        try:
            await self._steps.reconcile()
        except (RuntimeFailure, StoreError) as error:
            logger.error("the machine cannot be put in order yet, trying again in %g s: %s", RETRY_SECONDS, error)
        else:
            self._reconciled = True


def _is_settled(lease: Lease) -> bool:
    """Whether it stays as it is until its customer says otherwise."""
    return lease.kind is LeaseKind.CUSTOMER and lease.state in (LeaseState.ACTIVE, LeaseState.PAUSED)


def _new_secrets(request: LeaseRequest, host_key: str) -> LeaseSecrets:
    # Peers that send no key can only log in by password, and older validators probe by password whatever they send.
    by_password = not request.ssh_key or request.kind is LeaseKind.PROBE
    return LeaseSecrets(
        host_key=host_key,
        password=new_password() if by_password else None,
        user_key=request.ssh_key,
        script=request.script,
    )
