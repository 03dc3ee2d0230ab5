"""The renter's side of a lease: check → allocate → decrypt → … → deallocate; for the validator and for register.py.

A miner's answer is hostile until parsed: whatever arrives, callers see a ``LoginInfo``, a ``LeaseError`` with a reason,
or a ``CallError``, and nothing else. Allocation is idempotent on the miner for one key, so a timeout or ``starting`` is
answered by asking again; giving up, for whatever cause, takes down what may have been started.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from compute.base.clock import Clock
from compute.base.errors import CallError, CallRefused, CallTimeout, CallUnreachable, LeaseError
from compute.base.reasons import Refusal
from compute.protocol import Allocate
from compute.wire.answers import SignedAnswers, accepted, open_info
from compute.wire.dockerfile import STEPS_SECONDS
from compute.wire.keys import LoginInfo, RenterKey, SessionKey
from compute.wire.lease_terms import Change, KeyLine
from compute.wire.peer import Caller, Peer
from compute.wire.receipts import Receipt
from compute.wire.requirements import DeviceRequirement

_log = logging.getLogger(__name__)

CHECK_TIMEOUT_SECONDS = 15.0
#: Older miners build an image inside the request, so one call may take this long.
ALLOCATE_TIMEOUT_SECONDS = 60.0
CHANGE_SECONDS = 120.0
RELEASE_TIMEOUT_SECONDS = 10.0
RELEASE_ATTEMPTS = 3
RETRY_SECONDS = 2.0
MAX_RETRY_SECONDS = 30.0


@dataclass(frozen=True)
class LeaseKeys:
    """Both keys of one lease: RSA-2048 owns the lease and opens its ``info``, Ed25519 logs in over SSH."""

    owner: RenterKey = field(repr=False)
    session: SessionKey = field(repr=False)

    @classmethod
    async def generate(cls) -> LeaseKeys:
        """Make a pair in memory; the RSA key takes about 100 ms, in the default executor."""
        loop = asyncio.get_running_loop()
        owner = await loop.run_in_executor(None, RenterKey.generate)
        return cls(owner=owner, session=SessionKey.generate())


class AllocationClient:
    """Speaks ``Allocate`` to miners through ``caller``. Holds no state between calls; any number may run at once.

    With ``signatures``, an ``info`` that the miner ought to have signed and did not is a ``bad_answer``.
    """

    def __init__(self, caller: Caller, clock: Clock, *, signatures: SignedAnswers | None = None) -> None:
        self._caller = caller
        self._clock = clock
        self._signatures = signatures

    async def check(self, peer: Peer, requirement: DeviceRequirement, *, days: int, testing: bool = False) -> None:
        """Return if the miner could take the requirement now.

        Raises:
            LeaseError: it could not; the reason says what fell short.
            CallError: no answer.
        """
        _require_days(days)
        synapse = Allocate(timeline=days, device_requirement=_wire(requirement, testing), checking=True)
        await self._ask(peer, synapse, CHECK_TIMEOUT_SECONDS)

    async def owns(self, peer: Peer, keys: LeaseKeys) -> bool:
        """Whether ``keys`` owns the live lease on the miner.

        Raises:
            LeaseError: the answer made no sense.
            CallError: no answer.
        """
        synapse = Allocate(timeline=0, checking=True, public_key=keys.owner.public_pem)
        try:
            await self._ask(peer, synapse, CHECK_TIMEOUT_SECONDS)
        except LeaseError as error:
            if error.reason is Refusal.BAD_ANSWER:
                raise
            return False
        return True

    async def allocate(
        self,
        peer: Peer,
        requirement: DeviceRequirement,
        *,
        days: int,
        keys: LeaseKeys,
        testing: bool = False,
        allow_unpinned: bool = False,
        start_seconds: float = 180.0,
        base_image: str = "ubuntu",
        dockerfile: str = "",
    ) -> LoginInfo:
        """Lease the machine for ``days`` and return how to log in.

        While the miner says ``starting``, or does not answer in time, it is asked again with the same keys until
        ``start_seconds`` have passed, ``STEPS_SECONDS`` more with a ``dockerfile``. If this ends in any other way than
        with a yes, cancellation included, and the miner may hold a lease for these keys, the lease is given back
        first.

        Args:
            allow_unpinned: accept an older miner that names no host key (``LoginInfo.host_key`` is then ``None``). Then
                whoever answers first is trusted, and the caller has to say so to its user.
            dockerfile: steps that the machine goes through before it is up; many miners refuse them.

        Raises:
            LeaseError: refused, never came up, or the answer made no sense; the reason says which.
            CallError: no answer.
        """
        _require_days(days)
        synapse = Allocate(
            timeline=days,
            device_requirement=_wire(requirement, testing),
            checking=False,
            public_key=keys.owner.public_pem,
            docker_requirement={
                "base_image": base_image,
                "ssh_key": keys.session.public_line,
                "ssh_port": 4444,
                "volume_path": "/tmp",  # noqa: S108 - the wire's documented default, a path on the miner
                "dockerfile": dockerfile,
            },
        )
        granted = False
        attempt = _Attempt()
        try:
            output = await self._until_started(
                peer, synapse, attempt, start_seconds + (STEPS_SECONDS if dockerfile else 0)
            )
            attempt.may_hold = True
            info = open_info(peer, keys.owner, output.get("info"))
            if info.host_key is None and not allow_unpinned:
                raise LeaseError(
                    Refusal.UNPINNED,
                    f"miner {peer.hotkey} names no SSH host key, so its machine cannot be told from an impostor's; "
                    "allow trust on first use to rent from it anyway",
                )
            granted = True
            return info
        finally:
            if not granted and attempt.may_hold:
                await run_to_end(self._release(peer, keys))

    async def deallocate(self, peer: Peer, keys: LeaseKeys) -> None:
        """End the lease. Idempotent: a miner that no longer holds a lease for these keys is a success.

        Raises:
            LeaseError: the miner keeps the lease.
            CallError: no answer, after bounded retries.
        """
        synapse = Allocate(timeline=0, checking=False, public_key=keys.owner.public_pem)
        for attempt in range(1, RELEASE_ATTEMPTS + 1):
            try:
                await self._ask(peer, synapse, RELEASE_TIMEOUT_SECONDS)
            except LeaseError as error:
                if error.reason in {Refusal.NO_LEASE, Refusal.NOT_OWNER}:
                    return
                # An older miner gives no reason, so whether the lease is gone has to be asked.
                if error.reason is Refusal.UNSPECIFIED and not await self.owns(peer, keys):
                    return
                if attempt == RELEASE_ATTEMPTS:
                    raise
            except CallError:
                if attempt == RELEASE_ATTEMPTS:
                    raise
            else:
                return
            await self._clock.sleep(RETRY_SECONDS)

    async def change(self, peer: Peer, keys: LeaseKeys, action: Change) -> None:
        """Restart, pause or unpause the machine.

        Raises:
            LeaseError: refused, with a reason.
            CallError: no answer.
            ValueError: ``action`` is one of those that have a method of their own.
        """
        if action in (Change.EXCHANGE_KEY, Change.EXTEND, Change.RECEIPT):
            raise ValueError(f"{action.value} has a method of its own, which takes what it needs")
        await self._change(peer, keys, action)

    async def extend(self, peer: Peer, keys: LeaseKeys, *, days: int) -> None:
        """Let the lease last at least ``days`` from now. Idempotent; it never shortens a lease.

        Raises:
            LeaseError: refused, with a reason; older miners know no extension.
            CallError: no answer.
        """
        _require_days(days)
        await self._change(peer, keys, Change.EXTEND, days=days)

    async def exchange_key(self, peer: Peer, keys: LeaseKeys, public_line: str, line: KeyLine = KeyLine.USER) -> None:
        """Replace one line of the machine's ``authorized_keys`` by ``public_line``; the key before it stops working.

        Raises:
            LeaseError: refused, with a reason.
            CallError: no answer.
        """
        await self._change(peer, keys, Change.EXCHANGE_KEY, ssh_key=public_line, key_type=line.value)

    async def hand_receipt(self, peer: Peer, keys: LeaseKeys, receipt: Receipt) -> None:
        """Give the miner a receipt to show to other validators, in the place of the one before.

        Raises:
            LeaseError: refused, with a reason; older miners know no receipts.
            CallError: no answer.
        """
        await self._change(peer, keys, Change.RECEIPT, receipt=receipt.to_wire())

    @asynccontextmanager
    async def rented(
        self,
        peer: Peer,
        requirement: DeviceRequirement,
        *,
        days: int,
        keys: LeaseKeys,
        testing: bool = False,
        allow_unpinned: bool = False,
        start_seconds: float = 180.0,
    ) -> AsyncIterator[LoginInfo]:
        """A lease for the length of the block, given back on every way out, cancellation included.

        Giving back is bounded (``RELEASE_ATTEMPTS`` calls of ``RELEASE_TIMEOUT_SECONDS``); if the miner does not take
        it, that is logged with its reason and the lease's own end remains.

        Raises:
            LeaseError, CallError: as :meth:`allocate`.
        """
        info = await self.allocate(
            peer,
            requirement,
            days=days,
            keys=keys,
            testing=testing,
            allow_unpinned=allow_unpinned,
            start_seconds=start_seconds,
        )
        try:
            yield info
        finally:
            await run_to_end(self._release(peer, keys))

    async def _change(self, peer: Peer, keys: LeaseKeys, action: Change, *, days: int = 0, **details: object) -> None:
        synapse = Allocate(
            timeline=days,
            checking=False,
            public_key=keys.owner.public_pem,
            docker_change=True,
            docker_action={"action": action.value, "ssh_key": "", "key_type": "", **details},
        )
        # A change that takes the miner longer than one request goes on there, and asking again finds it done.
        await self._until_started(peer, synapse, _Attempt(), CHANGE_SECONDS)

    async def _release(self, peer: Peer, keys: LeaseKeys) -> None:
        try:
            await self.deallocate(peer, keys)
        except (LeaseError, CallError) as error:
            _log.warning("lease on %s was not given back and will end by itself: %s", peer.hotkey, error)

    async def _until_started(
        self, peer: Peer, synapse: Allocate, attempt: _Attempt, start_seconds: float
    ) -> Mapping[str, object]:
        deadline = self._clock.monotonic() + start_seconds
        while True:
            try:
                return await self._ask_noting(peer, synapse, attempt)
            except LeaseError as error:
                # After a timeout an older miner says no without a reason while it still works on the first request.
                still_working = error.reason is Refusal.UNSPECIFIED and attempt.may_hold
                if error.reason is not Refusal.STARTING and not still_working:
                    raise
                pause = min(max(error.retry_after_seconds or RETRY_SECONDS, 0.1), MAX_RETRY_SECONDS)
                last: LeaseError | CallTimeout = error
            except CallTimeout as error:
                pause = RETRY_SECONDS
                last = error
            if self._clock.monotonic() + pause >= deadline:
                raise last
            await self._clock.sleep(pause)

    async def _ask_noting(self, peer: Peer, synapse: Allocate, attempt: _Attempt) -> Mapping[str, object]:
        """Ask once, and note whether the miner may hold a lease now if this fails."""
        before, attempt.may_hold = attempt.may_hold, True
        try:
            return await self._ask(peer, synapse, ALLOCATE_TIMEOUT_SECONDS)
        except LeaseError as error:
            attempt.may_hold = before or error.reason in {Refusal.STARTING, Refusal.BAD_ANSWER}
            raise
        except (CallRefused, CallUnreachable):
            attempt.may_hold = before
            raise

    async def _ask(self, peer: Peer, synapse: Allocate, timeout_seconds: float) -> Mapping[str, object]:
        """One request; returns the output of a yes.

        Raises:
            LeaseError: a no, or an answer without sense.
            CallError: no answer.
        """
        answer = await self._caller.call(peer, synapse, timeout_seconds=timeout_seconds)
        output = accepted(peer, answer.output)
        if self._signatures is not None:
            self._signatures.check(peer, answer)
        return output


@dataclass
class _Attempt:
    """``may_hold``: the miner may hold a lease that this side was not told of."""

    may_hold: bool = False


def _require_days(days: int) -> None:
    if days < 1:
        raise ValueError(f"a lease of {days} days: at least 1, because 0 means deallocate on the wire")


def _wire(requirement: DeviceRequirement, testing: bool) -> dict[str, Any]:
    wire: dict[str, Any] = requirement.to_wire()
    if testing:
        wire["testing"] = True
    return wire


async def run_to_end(work: Coroutine[Any, Any, None]) -> None:
    """Run ``work`` to its end even if this task is cancelled meanwhile, then let the cancellation through.

    ``work`` must bound its own time.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
