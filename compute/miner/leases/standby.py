"""The standby container: brought up while there is no lease, with the limits that the last lease had.

Nothing depends on it. Where it is missing, or a lease needs other limits, the container is made when the lease is.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from compute.base.clock import Clock
from compute.miner.runtimes.base import ContainerSpec, Limits, Prewarms, Runtime

_RETRY_SECONDS = 600.0


class Standby:
    """At most one container. All methods belong to one event loop; ``make`` and ``dismiss`` come one at a time."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        clock: Clock,
        ssh_port: int,
        first: Callable[[], Limits] | None,
        call: Callable[..., Coroutine[Any, Any, Any]],
    ) -> None:
        """``first`` says the limits while there has been no lease, and may block; None: no standby container.
        ``call`` runs a blocking function elsewhere."""
        self._runtime = runtime
        self._prewarms = runtime if isinstance(runtime, Prewarms) and first is not None else None
        self._clock = clock
        self._ssh_port = ssh_port
        self._first = first
        self._call = call
        self._spec: ContainerSpec | None = None
        self._is_asked_for = False
        self._usual: Limits | None = None
        self._due_at = 0.0

    @property
    def is_there(self) -> bool:
        """Whether it stands ready for whoever comes, or is on its way."""
        return self._spec is not None and not self._is_asked_for

    @property
    def is_due(self) -> bool:
        """Whether it should be made now, if there is no lease."""
        return self._prewarms is not None and self._spec is None and self._clock.monotonic() >= self._due_at

    def ask_for(self, limits: Limits) -> ContainerSpec | None:
        """The spec for a new lease, where a container with these limits is there: say soon what came of the lease.

        Meanwhile it is nobody else's, and goes where another lease's container comes up first.
        """
        if self._spec is None or self._spec.limits != limits or self._is_asked_for:
            return None
        self._is_asked_for = True
        return self._spec

    def hand_over(self, spec: ContainerSpec) -> None:
        """The lease is there; the container is its own from now on."""
        if self._spec is spec:
            self._gone()

    def keep(self, spec: ContainerSpec) -> None:
        """There is no lease after all."""
        if self._spec is spec:
            self._is_asked_for = False

    async def make_way(self, limits: Limits) -> None:
        """See that none is there, for a lease's container comes up; the next one will have the limits of that.

        Raises:
            RuntimeFailure: as ``dismiss``.
        """
        await self.dismiss()
        self._usual, self._due_at = limits, 0.0

    async def make(self) -> None:
        """See that one is there, and return when it is. It may be handed over before.

        Raises:
            RuntimeFailure: it did not come up; it is due again in a while.
        """
        if self._prewarms is None or self._first is None or self._spec is not None:
            return
        self._due_at = self._clock.monotonic() + _RETRY_SECONDS
        # What fails is not tried twice.
        usual, self._usual = self._usual, None
        limits = usual if usual is not None else await self._call(self._first)
        self._spec = made = ContainerSpec.new(limits, self._ssh_port)
        try:
            await self._call(self._prewarms.prewarm, made)
        except BaseException:
            if self._spec is made:
                self._gone()
            raise
        self._usual = usual

    async def dismiss(self) -> None:
        """See that none is there. Idempotent.

        Raises:
            RuntimeFailure: it still is.
        """
        if self._spec is not None:
            await self._call(self._runtime.stop, self._spec.lease_id)
            self._gone()

    def _gone(self) -> None:
        self._spec, self._is_asked_for = None, False
