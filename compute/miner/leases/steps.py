"""The machine under the leases: brings a lease's container up, changes it, takes it down, one step at a time.

Each step writes down what it is about to do, does it through the runtime, writes down that it is done. Whatever the
crash, the next ``reconcile`` can tell from store and runtime together what is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from typing import ParamSpec, TypeVar

from compute.base.clock import Clock
from compute.base.errors import LeaseError, RuntimeFailure, RuntimeGone, StoreError
from compute.base.reasons import Refusal
from compute.miner.leases.standby import Standby
from compute.miner.leases.states import DRAINING, HOLDING, LeaseState
from compute.miner.leases.store import Lease, LeaseSecrets, LeaseStore
from compute.miner.runtimes.base import (
    ContainerSpec,
    ContainerState,
    ContainerStatus,
    EndsItself,
    Limits,
    Runtime,
)

logger = logging.getLogger(__name__)

_EXPECTED = {LeaseState.ACTIVE: ContainerState.RUNNING, LeaseState.PAUSED: ContainerState.PAUSED}

P = ParamSpec("P")
T = TypeVar("T")


class LeaseSteps:
    """Runs the runtime's blocking methods in ``executor``, one operation at a time.

    Methods raise LeaseError for what a renter should be told, RuntimeFailure and StoreError for what failed below.
    """

    def __init__(
        self,
        *,
        store: LeaseStore,
        runtime: Runtime,
        clock: Clock,
        ssh_port: int,
        executor: Executor,
        first_ready: Callable[[], Limits] | None,
    ) -> None:
        """``first_ready``: as ``first`` of ``Standby``."""
        self._store = store
        self._runtime = runtime
        self._clock = clock
        self._ssh_port = ssh_port
        self._executor = executor
        self.standby = Standby(runtime, clock=clock, ssh_port=ssh_port, first=first_ready, call=self.call)
        self._lock = asyncio.Lock()
        self._doubtful: set[str] = set()
        self._closing = False

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking function off the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: function(*args, **kwargs))

    async def bring_up(self, lease_id: str) -> None:
        """Start the machine of a reserved lease, after what is left of earlier ones is gone.

        A failure is written into the lease (``failed``, with its reason), and its remains are removed.
        """
        async with self._lock:
            reserved = await self.call(self._store.get, lease_id)
            # It may have been brought up, or ended, before this turn came.
            if reserved is None or reserved.state is not LeaseState.RESERVED:
                return
            if await self.call(self._store.move, lease_id, LeaseState.STARTING) is None:
                return
            try:
                for lease in await self.call(self._store.live):
                    if lease.state in DRAINING:
                        await self._drain(lease)
                await self.standby.make_way(reserved.limits)
                spec = await self._spec(lease_id)
                endpoint = await self.call(self._runtime.start, spec, wanted=lambda: self._is_wanted(spec))
            except (RuntimeFailure, StoreError) as error:
                await self._fail(lease_id, error)
                return
            # Not allowed where it was ended meanwhile: then whoever ended it waits for the lock, to take it down.
            await self.call(
                self._store.move, lease_id, LeaseState.ACTIVE, port=endpoint.port, activated_at=self._clock.now()
            )

    def _is_wanted(self, spec: ContainerSpec) -> bool:
        """Whether the start of a machine should go on. Blocks."""
        lease = self._store.get(spec.lease_id)
        # A script may take longer than the process may to end; whoever asks again begins anew.
        return lease is not None and lease.state is LeaseState.STARTING and not (self._closing and spec.script)

    def close(self) -> None:
        """Let no start go on for long."""
        self._closing = True

    async def stand_ready(self) -> None:
        """See that a machine stands ready for the next lease, unless there is one.

        Raises:
            RuntimeFailure, StoreError: it did not come up.
        """
        async with self._lock:
            if not await self.call(self._store.live):
                await self.standby.make()

    async def dismiss(self) -> None:
        """See that no machine stands ready. Idempotent.

        Raises:
            RuntimeFailure: one still does.
        """
        async with self._lock:
            await self.standby.dismiss()

    async def drain(self, lease_id: str) -> None:
        """Take down what a failed or stopping lease has on the machine, and free it. Idempotent.

        Raises:
            RuntimeFailure, StoreError: something is left; call again.
        """
        async with self._lock:
            lease = await self.call(self._store.get, lease_id)
            if lease is not None and lease.state in DRAINING:
                await self._drain(lease)

    async def pause(self, lease_id: str) -> None:
        """Freeze an active lease's machine. Idempotent."""
        async with self._lock:
            lease = await self._up(lease_id)
            with self._changing(lease_id):
                await self.call(self._runtime.pause, lease_id)
            if lease.state is LeaseState.ACTIVE:
                await self.call(self._store.move, lease_id, LeaseState.PAUSED)

    async def unpause(self, lease_id: str) -> None:
        """Let a paused lease's machine go on. Idempotent."""
        async with self._lock:
            lease = await self._up(lease_id)
            with self._changing(lease_id):
                await self.call(self._runtime.unpause, lease_id)
            if lease.state is LeaseState.PAUSED:
                await self.call(self._store.move, lease_id, LeaseState.ACTIVE)

    async def restart(self, lease_id: str) -> None:
        """Restart an active or paused lease's machine; the lease fails where it does not come up again."""
        async with self._lock:
            await self._up(lease_id)
            await self._restart(lease_id)
            lease = await self.call(self._store.get, lease_id)
            if lease is not None and lease.state is not LeaseState.ACTIVE:
                raise LeaseError(Refusal.RUNTIME_FAILED, f"the machine did not come up again: {lease.reason}")

    async def change_keys(self, lease_id: str, change: Callable[[LeaseSecrets], LeaseSecrets]) -> None:
        """Change a lease's keys. The store goes first: after a crash, the old key does not come back."""
        async with self._lock:
            await self._up(lease_id)
            secrets = change(await self.call(self._store.secrets, lease_id))
            await self.call(self._store.set_secrets, lease_id, secrets)
            with self._changing(lease_id):
                await self.call(self._runtime.set_keys, lease_id, secrets.authorized_keys)

    async def set_end(self, lease_id: str, ends_at: float) -> None:
        """Give a lease another end."""
        async with self._lock:
            await self._up(lease_id)
            await self.call(self._store.set_end, lease_id, ends_at)
            with self._changing(lease_id):
                await self._tell_end(lease_id, ends_at)

    async def look_after(self) -> None:
        """Bring back what was up and is not any more, as after a restart of the engine. Idempotent.

        Raises:
            RuntimeFailure, StoreError: the runtime or the store cannot be asked; call again.
        """
        async with self._lock:
            live = await self.call(self._store.live)
            # What has not been up yet, or is over, is somebody's work just now.
            live = [lease for lease in live if lease.state in HOLDING and lease.activated_at is not None]
            if not live:
                return
            found = {status.lease_id: status for status in await self.call(self._runtime.list)}
            for lease in live:
                status = found.get(lease.lease_id)
                as_expected = status is not None and status.state is _EXPECTED.get(lease.state)
                if not as_expected or lease.lease_id in self._doubtful:
                    await self._settle(lease, found)

    async def reconcile(self) -> None:
        """Make store and runtime agree after any kind of end of the process before this one. Idempotent.

        Raises:
            RuntimeFailure, StoreError: the runtime or the store cannot be asked; call again.
        """
        async with self._lock:
            await self.standby.dismiss()
            found = {status.lease_id: status for status in await self.call(self._runtime.list)}
            live = await self.call(self._store.live)
            for lease_id in found.keys() - {lease.lease_id for lease in live}:
                logger.warning("removing a machine that belongs to no lease: %s", lease_id)
                await self.call(self._runtime.stop, lease_id)
            # What is over makes room first.
            for lease in sorted(live, key=lambda lease: lease.state not in DRAINING):
                await self._settle(lease, found)

    async def _settle(self, lease: Lease, found: Mapping[str, ContainerStatus]) -> None:
        if lease.state in DRAINING:
            await self._drain(lease)
        elif lease.ends_at <= self._clock.now():
            await self._end(lease.lease_id, LeaseState.STOPPING, "its time was over")
        elif lease.activated_at is None:
            # Its owner has no way in yet, and asks again if there still is interest.
            await self._end(lease.lease_id, LeaseState.FAILED, "interrupted before the machine was up")
        else:
            status = found.get(lease.lease_id)
            try:
                await self._adopt(lease, status)
            except RuntimeGone:
                raise
            except (RuntimeFailure, StoreError) as error:
                await self._fail(lease.lease_id, error)
            self._doubtful.discard(lease.lease_id)

    async def _adopt(self, lease: Lease, status: ContainerStatus | None) -> None:
        """Take over a lease whose machine was up when the last process ended."""
        container = ContainerState.ABSENT if status is None else status.state
        if container not in (ContainerState.RUNNING, ContainerState.PAUSED):
            logger.warning("the machine of lease %s is %s: starting it again", lease.lease_id, container.value)
            await self._restart(lease.lease_id)
            return
        secrets = await self.call(self._store.secrets, lease.lease_id)
        try:
            await self.call(self._runtime.set_keys, lease.lease_id, secrets.authorized_keys)
        except RuntimeGone:
            raise
        except RuntimeFailure as error:
            # It may be the renter's own full disk: no reason to take the machine away.
            logger.warning("the keys of lease %s could not be written again: %s", lease.lease_id, error)
        await self._tell_end(lease.lease_id, lease.ends_at)
        if lease.state is LeaseState.STARTING and container is ContainerState.PAUSED:
            await self.call(self._runtime.unpause, lease.lease_id)
            container = ContainerState.RUNNING
        state = LeaseState.PAUSED if container is ContainerState.PAUSED else LeaseState.ACTIVE
        if state is not lease.state:
            await self.call(self._store.move, lease.lease_id, state)

    async def _restart(self, lease_id: str) -> None:
        await self.call(self._store.move, lease_id, LeaseState.STARTING)
        try:
            endpoint = await self.call(self._runtime.restart, await self._spec(lease_id))
        except RuntimeGone:
            # The renter's files may be well. It stays ``starting``, and is looked after as soon as there is an answer.
            raise
        except (RuntimeFailure, StoreError) as error:
            await self._fail(lease_id, error)
            return
        await self.call(self._store.move, lease_id, LeaseState.ACTIVE, port=endpoint.port)

    async def _tell_end(self, lease_id: str, ends_at: float) -> None:
        if isinstance(self._runtime, EndsItself):
            await self.call(self._runtime.set_end, lease_id, ends_at)

    @contextlib.contextmanager
    def _changing(self, lease_id: str) -> Iterator[None]:
        """Where a change was lost with the runtime's answer, store and machine are compared when it is back."""
        try:
            yield
        except RuntimeGone:
            self._doubtful.add(lease_id)
            raise

    async def _fail(self, lease_id: str, error: Exception) -> None:
        logger.warning("lease %s failed: %s", lease_id, error)
        await self._end(lease_id, LeaseState.FAILED, str(error))

    async def _end(self, lease_id: str, state: LeaseState, reason: str) -> None:
        ended = await self.call(self._store.move, lease_id, state, reason=reason)
        if ended is None:
            return
        try:
            await self._drain(ended)
        except RuntimeFailure as error:
            # The lease is over for its owner; the scheduler comes back for the rest.
            logger.warning("lease %s is not cleaned up yet: %s", lease_id, error)

    async def _drain(self, lease: Lease) -> None:
        if lease.state is LeaseState.FAILED:
            await self.call(self._store.move, lease.lease_id, LeaseState.STOPPING)
        await self.call(self._runtime.stop, lease.lease_id)
        await self.call(self._store.move, lease.lease_id, LeaseState.FREE)

    async def _up(self, lease_id: str) -> Lease:
        """The lease, where its machine is up.

        Raises:
            LeaseError: it is starting, or over.
        """
        lease = await self.call(self._store.get, lease_id)
        if lease is not None and lease.state in (LeaseState.ACTIVE, LeaseState.PAUSED):
            return lease
        if lease is not None and lease.state in (LeaseState.RESERVED, LeaseState.STARTING):
            raise LeaseError(Refusal.STARTING, "the machine is starting", retry_after_seconds=5)
        raise LeaseError(Refusal.NO_LEASE, "the lease is over")

    async def _spec(self, lease_id: str) -> ContainerSpec:
        lease = await self.call(self._store.get, lease_id)
        if lease is None:
            raise StoreError("the lease has vanished from the store")
        secrets = await self.call(self._store.secrets, lease_id)
        return ContainerSpec(
            lease_id=lease_id,
            kind=lease.kind,
            ends_at=lease.ends_at,
            limits=lease.limits,
            ssh_port=lease.port or self._ssh_port,
            authorized_keys=secrets.authorized_keys,
            host_key=secrets.host_key,
            password=secrets.password,
            script=secrets.script,
        )
