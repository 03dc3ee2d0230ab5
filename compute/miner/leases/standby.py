"""The machine that stands ready while there is no lease, made as the last lease's was.

Nothing depends on it. Where it is missing, or a lease is to have another machine, that is made when the lease is.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from compute.base.clock import Clock
from compute.miner.runtimes.base import Limits, MachineOrder, Runtime
from compute.wire.keys import SessionKey

_RETRY_SECONDS = 600.0


@dataclass(frozen=True)
class Identity:
    """What a lease and its machine have in common before anybody knows whose they will be. The key is private."""

    lease_id: str
    host_key: str = field(repr=False)

    @classmethod
    def new(cls) -> Identity:
        return cls(secrets.token_hex(16), SessionKey.generate().private_openssh)


class Standby:
    """At most one machine. All methods belong to one event loop; ``make`` and ``dismiss`` come one at a time."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        clock: Clock,
        ssh_port: int,
        first: Callable[[], Limits] | None,
        call: Callable[..., Coroutine[Any, Any, Any]],
    ) -> None:
        """``first`` says the limits while there has been no lease, and may block; None: nothing ever stands ready.
        ``call`` runs a blocking function elsewhere."""
        self._runtime = runtime
        self._clock = clock
        self._ssh_port = ssh_port
        self._first = first
        self._call = call
        self._identity: Identity | None = None
        self._is_asked_for = False
        self._limits = Limits()
        self._usual: Limits | None = None
        self._due_at = 0.0

    @property
    def is_there(self) -> bool:
        """Whether it stands ready for whoever comes, or is on its way."""
        return self._identity is not None and not self._is_asked_for

    @property
    def is_due(self) -> bool:
        """Whether it should be made now, if there is no lease."""
        return self._first is not None and self._identity is None and self._clock.monotonic() >= self._due_at

    def ask_for(self, limits: Limits) -> Identity | None:
        """The identity for a new lease, where a machine with these limits is there: say soon what came of the lease.

        Meanwhile it is nobody else's, and goes where another lease's machine comes up first.
        """
        if limits != self._limits or not self.is_there:
            return None
        self._is_asked_for = True
        return self._identity

    def hand_over(self, identity: Identity) -> None:
        """The lease is there; the machine is its own from now on."""
        if self._identity is identity:
            self._gone()

    def keep(self, identity: Identity) -> None:
        """There is no lease after all."""
        if self._identity is identity:
            self._is_asked_for = False

    async def make_way(self, limits: Limits) -> None:
        """See that none is there, for a lease's machine comes up; the next one will have the limits of that.

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
        if self._first is None or self._identity is not None:
            return
        self._due_at = self._clock.monotonic() + _RETRY_SECONDS
        # What fails is not tried twice.
        usual, self._usual = self._usual, None
        self._limits = usual if usual is not None else await self._call(self._first)
        self._identity = made = Identity.new()
        is_made = False
        try:
            order = MachineOrder(made.lease_id, self._limits, self._ssh_port, made.host_key)
            is_made = await self._call(self._runtime.prepare, order)
        finally:
            if not is_made and self._identity is made:
                self._gone()
        if is_made:
            self._usual = usual
        else:
            self._first = None

    async def dismiss(self) -> None:
        """See that none is there. Idempotent.

        Raises:
            RuntimeFailure: it still is.
        """
        if self._identity is not None:
            await self._call(self._runtime.stop, self._identity.lease_id)
            self._gone()

    def _gone(self) -> None:
        self._identity, self._is_asked_for = None, False
