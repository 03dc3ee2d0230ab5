"""One lease from the first question to the first login, and the rollback from every point in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from compute.base.clock import Clock
from compute.base.errors import CallError, ComputeError, HostKeyMismatch, LeaseError, SshError
from compute.base.reasons import Refusal
from compute.rental.market import Offer
from compute.rental.records import Allocation, AllocationState, RenterStore
from compute.rental.remote import Remote
from compute.wire.keys import fingerprint
from compute.wire.lease_client import AllocationClient, LeaseKeys, run_to_end
from compute.wire.lease_terms import SECONDS_PER_DAY
from compute.wire.receipts import Issuer
from compute.wire.requirements import DeviceRequirement

LOGIN_TIMEOUT_SECONDS = 15.0
LOGIN_ATTEMPTS = 5
LOGIN_RETRY_SECONDS = 2.0

#: After these the miner may hold a lease that this side has not seen the end of.
_MAYBE_HELD = frozenset({Refusal.STARTING, Refusal.BAD_ANSWER, Refusal.UNPINNED, Refusal.UNSPECIFIED})

#: Told what happens, in a few words.
OnProgress = Callable[[str], None]


class Leasing:
    """Leases one machine at a time, and keeps its record up to date."""

    def __init__(
        self,
        *,
        client: AllocationClient,
        store: RenterStore,
        remote: Remote,
        clock: Clock,
        issuer: Callable[[], Issuer] | None = None,
    ) -> None:
        """Without ``issuer``, which may raise ConfigError, no receipts are given."""
        self._client = client
        self._store = store
        self._remote = remote
        self._clock = clock
        self._issuer = issuer

    async def lease(
        self,
        offer: Offer,
        requirement: DeviceRequirement,
        *,
        days: int,
        name: str,
        allow_unpinned: bool,
        dockerfile: str,
        on_progress: OnProgress,
    ) -> Allocation:
        """Lease one machine, log in once, and return its allocation.

        The record is written before the miner is asked, so that a crash in between leaves something to deallocate.
        Nothing stays leased unless this returns; what could not be given back stays on record.

        Raises:
            LeaseError, CallError, SshError: why it did not work out.
        """
        hotkey = offer.peer.hotkey
        if hotkey in self._store.hotkeys():
            raise LeaseError(Refusal.BUSY, f"you already rent the machine of {hotkey}")
        await self._client.check(offer.peer, requirement, days=days)
        now = self._clock.now()
        allocation = Allocation(
            name=name,
            peer=offer.peer,
            state=AllocationState.STARTING,
            machine=offer.describe(),
            requirement=requirement.to_wire(),
            created_at=now,
            ends_at=now + days * SECONDS_PER_DAY,
            keys=await LeaseKeys.generate(),
        )
        self._store.save(allocation)
        try:
            on_progress("starting the machine" + (" and taking its steps" if dockerfile else ""))
            login = await self._client.allocate(
                offer.peer,
                requirement,
                days=days,
                keys=allocation.keys,
                allow_unpinned=allow_unpinned,
                dockerfile=dockerfile,
            )
            ends_at = self._clock.now() + days * SECONDS_PER_DAY
            allocation = replace(allocation, state=AllocationState.ACTIVE, login=login, ends_at=ends_at)
            self._store.save(allocation)
            on_progress("logging in")
            allocation = await self._log_in(allocation)
            self._store.save(allocation)
            await self.give_receipt(allocation, on_progress)
        except BaseException as error:
            await run_to_end(self._abandon(allocation, error, on_progress))
            raise
        self._store.note_outcome(hotkey, now, good=True)
        return allocation

    async def give_receipt(self, allocation: Allocation, on_progress: OnProgress = lambda step: None) -> None:
        """Give the miner a receipt, so that other validators see the rental. A miner that takes none is no failure."""
        try:
            await self.hand_over(allocation)
        except (LeaseError, CallError) as error:
            on_progress(f"the miner took no receipt, so other validators cannot see the rental: {error}")

    async def hand_over(self, allocation: Allocation) -> None:
        """Sign a receipt for the lease of ``allocation`` and give it to the miner.

        Raises:
            LeaseError, CallError: the miner did not take it.
            StoreError: that it did could not be recorded.
        """
        login = allocation.require_login()
        if self._issuer is None or login.host_key is None:
            return
        receipt = self._issuer().issue(allocation.hotkey, login.host_key, login.port, allocation.ends_at)
        await self._client.hand_receipt(allocation.peer, allocation.keys, receipt)
        self._store.note_receipt(login.host_key, receipt.until)

    async def _abandon(self, allocation: Allocation, error: BaseException, on_progress: OnProgress) -> None:
        """Give back what may be held, and drop the record unless the miner still holds it or does not answer."""
        refused = isinstance(error, LeaseError) and error.reason not in _MAYBE_HELD
        try:
            if not refused:
                await self._client.deallocate(allocation.peer, allocation.keys)
        except (LeaseError, CallError) as failure:
            on_progress(f"could not give {allocation.name} back, it stays on the list: {failure}")
        else:
            self._store.delete(allocation.name)
        if isinstance(error, ComputeError):
            self._store.note_outcome(allocation.hotkey, allocation.created_at, good=False)

    async def _log_in(self, allocation: Allocation) -> Allocation:
        """Log in once; where no host key was named and that was allowed, the one that answers is pinned from now on."""
        login = allocation.require_login()
        for attempt in range(1, LOGIN_ATTEMPTS + 1):
            try:
                if login.host_key is None:
                    line = await self._remote.host_key_line(
                        allocation.peer.ip, login.port, timeout_seconds=LOGIN_TIMEOUT_SECONDS
                    )
                    login = replace(login, host_key=fingerprint(line))
                    allocation = replace(allocation, login=login, trusted_on_first_use=True)
                await self._remote.run(allocation, ["true"], timeout_seconds=LOGIN_TIMEOUT_SECONDS)
                break
            except HostKeyMismatch:
                raise
            except SshError:
                if attempt == LOGIN_ATTEMPTS:
                    raise
                await self._clock.sleep(LOGIN_RETRY_SECONDS)
        return allocation
