"""Renting machines: what every command of ``register.py`` does, without argv, environment or a terminal."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from compute.base.clock import Clock
from compute.base.errors import (
    CallError,
    ChainError,
    ComputeError,
    HostKeyMismatch,
    LeaseError,
    NotFound,
    SshError,
    UsageError,
)
from compute.base.options import kinds
from compute.rental.leasing import LOGIN_TIMEOUT_SECONDS, Leasing, OnProgress
from compute.rental.market import Market, Offer
from compute.rental.names import MAX_NAME_CHARACTERS, is_name, new_name
from compute.rental.records import Allocation, AllocationState, Penalty, RenterStore
from compute.rental.remote import Remote
from compute.rental.selection import Explanation, Proven
from compute.rental.ssh_command import SshTarget, ssh_invocation
from compute.wire.answers import SignedAnswers
from compute.wire.keys import SessionKey, check_public_line, fingerprint
from compute.wire.lease_client import AllocationClient
from compute.wire.lease_terms import DEFAULT_DAYS, DEFAULT_HOTKEY_DAYS, MAX_DAYS, SECONDS_PER_DAY, Change, KeyLine
from compute.wire.peer import Caller
from compute.wire.receipts import Issuer
from compute.wire.requirements import DeviceRequirement

if TYPE_CHECKING:
    from compute.base.ssh import CommandResult
    from compute.chain.subtensor import Metagraph

#: How many machines one ``allocate`` tries before it gives up.
MAX_ATTEMPTS = 5

T = TypeVar("T")


@dataclass(frozen=True)
class Liveness:
    """What the miner says about an allocation. ``live`` is ``None`` where it gave no answer."""

    live: bool | None
    detail: str


class RenterService:
    """Everything that a renter does. One instance serves one wallet; the caller owns and closes what it passes in.

    Args:
        metagraph: a fresh snapshot of the subnet; raises ChainError.
        caller: signs with the renter's hotkey.
        gpu_scores: value of one GPU by model name, for the tightest fit.
        proofs: what proofs of GPU found, by hotkey, where this machine's database knows.
        issuer: signs receipts of rentals with the renter's hotkey (see ``compute.wire.receipts``).
    """

    def __init__(
        self,
        *,
        metagraph: Callable[[], Awaitable[Metagraph]],
        caller: Caller,
        store: RenterStore,
        remote: Remote,
        clock: Clock,
        gpu_scores: Mapping[str, float],
        proofs: Callable[[], Mapping[str, Proven]] = dict,
        signatures: SignedAnswers | None = None,
        issuer: Callable[[], Issuer] | None = None,
    ) -> None:
        self._client = AllocationClient(caller, clock, signatures=signatures)
        self._market = Market(
            metagraph=metagraph, caller=caller, client=self._client, gpu_scores=gpu_scores, proofs=proofs
        )
        self._leasing = Leasing(client=self._client, store=store, remote=remote, clock=clock, issuer=issuer)
        self._store = store
        self._remote = remote
        self._clock = clock

    async def offers(self, requirement: DeviceRequirement) -> list[Offer]:
        """Every serving miner, its specs, and whether it would take ``requirement`` now; by uid.

        Raises:
            ChainError: no snapshot of the subnet.
        """
        return await self._market.check(await self._market.survey(), requirement)

    async def choose(self, requirement: DeviceRequirement, *, seed: int | None = None) -> list[Explanation]:
        """All miners that gave specs, best first, each with why it stands where it stands.

        Raises:
            ChainError: no snapshot of the subnet.
        """
        return self._market.rank(requirement, await self._market.survey(), self._store, seed)

    async def allocate(
        self,
        requirement: DeviceRequirement,
        *,
        days: int | None = None,
        hotkey: str | None = None,
        name: str | None = None,
        allow_unpinned: bool = False,
        dockerfile: str = "",
        seed: int | None = None,
        on_progress: OnProgress = lambda step: None,
    ) -> Allocation:
        """Lease a machine, log in once, and return its allocation.

        Without ``hotkey`` the miners are ranked and tried in that order, at most ``MAX_ATTEMPTS``. Nothing stays
        leased unless this returns.

        Args:
            days: 90 by default, 30 with a ``hotkey``.
            name: for the allocation; made up by default.
            allow_unpinned: rent from an older miner that names no host key, trusting the first that answers.
            dockerfile: steps that the machine goes through first. Few miners allow that; the others refuse.
            on_progress: told what happens, in a few words.

        Raises:
            UsageError: days, name or hotkey make no sense.
            NotFound: no miner serves the requirement, or none of those tried could be leased.
            LeaseError, CallError, SshError: why the only one tried could not be leased.
            ChainError: no snapshot of the subnet.
        """
        days = _valid_days(days if days is not None else DEFAULT_HOTKEY_DAYS if hotkey else DEFAULT_DAYS)
        if name is not None:
            self._require_free(name)
        if hotkey is not None:
            self._require_new(_require_hotkey(hotkey))
        on_progress("reading the subnet")
        offers = await self._market.survey(hotkey)
        chosen = self._best(requirement, offers, seed) if hotkey is None else _only(offers, hotkey)
        failures: list[ComputeError] = []
        for offer in chosen[:MAX_ATTEMPTS]:
            on_progress(f"asking {offer.peer.hotkey[:8]}… for {offer.describe()}")
            taken = self._store.names()
            free = name if name is not None and name not in taken else new_name(taken, random.SystemRandom())
            try:
                return await self._leasing.lease(
                    offer,
                    requirement,
                    days=days,
                    name=free,
                    allow_unpinned=allow_unpinned,
                    dockerfile=dockerfile,
                    on_progress=on_progress,
                )
            except (LeaseError, CallError, SshError) as error:
                on_progress(f"{offer.peer.hotkey[:8]}… did not work out: {error}")
                failures.append(error)
        if len(failures) == 1:
            raise failures[0]
        raise NotFound(f"none of the {len(failures)} machines tried could be leased: {'; '.join(map(str, failures))}")

    def allocations(self) -> list[Allocation]:
        """Every allocation on record, oldest first. Asks nobody.

        Raises:
            StoreError: the database or the key file does not fit.
        """
        return self._store.all()

    def get(self, name: str) -> Allocation:
        """The allocation of that name, or on the miner of that hotkey.

        Raises:
            NotFound: there is none.
        """
        allocation = self._store.find(name)
        if allocation is None:
            known = ", ".join(sorted(self._store.names())) or "none yet"
            raise NotFound(f"no allocation {name!r}; there are: {known}")
        return allocation

    async def liveness(self, name: str) -> Liveness:
        """Ask the miner whether the allocation still lives.

        Raises:
            NotFound: no such allocation.
        """
        allocation = self.get(name)
        try:
            live = await self._asking(allocation, lambda here: self._client.owns(here.peer, here.keys))
        except (LeaseError, CallError) as error:
            return Liveness(None, str(error))
        return Liveness(live, "the miner confirms it" if live else "the miner no longer holds it")

    async def execute(self, name: str, argv: Sequence[str], *, timeout_seconds: float = 300.0) -> CommandResult:
        """Run a command on the machine over SSH, its host key pinned, and return exit code and output.

        Raises:
            UsageError: no command, or the machine is paused.
            NotFound: no such allocation.
            LeaseError: it never came up.
            SshError: no connection, another host key, too late, or too much output.
        """
        if not argv:
            raise UsageError("no command to run")
        return await self._remote.run(self._running(name), argv, timeout_seconds=timeout_seconds)

    async def ssh(self, name: str, command: Sequence[str] = ()) -> AbstractContextManager[list[str]]:
        """The argument list of the system's ssh for the machine; its key files last as long as the returned context.

        Raises:
            UsageError, NotFound, LeaseError, SshError: as :meth:`execute`.
        """
        allocation = self._running(name)
        host, login = allocation.peer.ip, allocation.require_login()
        line = await self._remote.host_key_line(host, login.port, timeout_seconds=LOGIN_TIMEOUT_SECONDS)
        if fingerprint(line) != login.host_key:
            raise HostKeyMismatch(
                f"{host}:{login.port}: host key {fingerprint(line)} instead of the pinned {login.host_key}"
            )
        target = SshTarget(host, login.port, login.username, line)
        return ssh_invocation(target, allocation.keys.session.private_openssh, command)

    async def deallocate(self, name: str) -> None:
        """End the lease and forget it. A miner that no longer holds it counts as a success.

        Raises:
            NotFound: no such allocation.
            LeaseError: the miner keeps it; the record stays.
            CallError: no answer; the record stays, see :meth:`forget`.
        """
        allocation = self.get(name)
        await self._asking(allocation, lambda here: self._client.deallocate(here.peer, here.keys))
        self._store.delete(allocation.name)

    def forget(self, name: str) -> None:
        """Drop the record without telling the miner, for one that will never answer again.

        Raises:
            NotFound: no such allocation.
        """
        self._store.delete(self.get(name).name)

    async def pause(self, name: str) -> None:
        """Freeze the machine; its lease runs on.

        Raises:
            NotFound, LeaseError, CallError: as :meth:`deallocate`.
        """
        await self._change(name, Change.PAUSE, AllocationState.PAUSED)

    async def resume(self, name: str) -> None:
        """Thaw a paused machine.

        Raises:
            NotFound, LeaseError, CallError: as :meth:`deallocate`.
        """
        await self._change(name, Change.UNPAUSE, AllocationState.ACTIVE)

    async def restart(self, name: str) -> None:
        """Restart the machine; its lease, host key and login stay.

        Raises:
            NotFound, LeaseError, CallError: as :meth:`deallocate`.
        """
        await self._change(name, Change.RESTART, AllocationState.ACTIVE)

    async def extend(self, name: str, *, days: int) -> Allocation:
        """Let the lease last at least ``days`` from now; returns it with its new end.

        Raises:
            UsageError: the days make no sense.
            NotFound, LeaseError, CallError: as :meth:`deallocate`.
        """
        days = _valid_days(days)
        allocation = self._came_up(name)
        await self._asking(allocation, lambda here: self._client.extend(here.peer, here.keys, days=days))
        ends_at = max(allocation.ends_at, self._clock.now() + days * SECONDS_PER_DAY)
        allocation = replace(self.get(allocation.name), ends_at=ends_at)
        self._store.save(allocation)
        await self._leasing.give_receipt(allocation)
        return allocation

    async def renew_receipt(self, name: str) -> None:
        """Give the miner a fresh receipt of the allocation (see ``compute.wire.receipts``).

        Raises:
            NotFound, LeaseError, CallError: as :meth:`deallocate`; an older miner takes none.
        """
        await self._asking(self.get(name), self._leasing.hand_over)

    def receipts(self) -> dict[str, float]:
        """Until when (Unix seconds) each allocation's miner has a receipt, by the allocation's host key."""
        return self._store.receipts()

    async def exchange_key(self, name: str) -> None:
        """Replace the key that logs in by a fresh one; the old one stops working.

        Raises:
            NotFound, LeaseError, CallError: as :meth:`deallocate`.
        """
        allocation, session = self._came_up(name), SessionKey.generate()
        line = session.public_line
        await self._asking(allocation, lambda here: self._client.exchange_key(here.peer, here.keys, line))
        keys = replace(allocation.keys, session=session)
        self._store.save(replace(self.get(allocation.name), keys=keys))

    async def install_terminal_key(self, name: str, public_line: str) -> None:
        """Let a key of one's own log in too: line 2 of the machine's ``authorized_keys``.

        Raises:
            UsageError: no such key.
            NotFound, LeaseError, CallError: as :meth:`deallocate`.
        """
        try:
            line = check_public_line(public_line)
        except LeaseError as error:
            raise UsageError(str(error)) from None
        await self._asking(
            self._came_up(name), lambda here: self._client.exchange_key(here.peer, here.keys, line, KeyLine.TERMINAL)
        )

    def penalize(self, hotkey: str, note: str = "") -> None:
        """Take no more machines from this miner when allocating by requirement.

        Raises:
            UsageError: not a hotkey.
        """
        self._store.penalize(Penalty(_require_hotkey(hotkey), note, self._clock.now()))

    def unpenalize(self, hotkey: str) -> None:
        """Lift the penalty.

        Raises:
            NotFound: there is none.
        """
        if not self._store.unpenalize(hotkey):
            raise NotFound(f"hotkey {hotkey!r} is not penalized")

    def penalized(self) -> list[Penalty]:
        """Every penalty, oldest first."""
        return self._store.penalties()

    def _came_up(self, name: str) -> Allocation:
        allocation = self.get(name)
        allocation.require_login()
        return allocation

    def _running(self, name: str) -> Allocation:
        allocation = self._came_up(name)
        if allocation.state is AllocationState.PAUSED:
            resume = f"register.py resume {allocation.name}"
            raise UsageError(f"{allocation.name} is paused", next_step=f"Thaw it first: {resume}")
        return allocation

    async def _change(self, name: str, change: Change, state: AllocationState) -> None:
        allocation = self._came_up(name)
        await self._asking(allocation, lambda here: self._client.change(here.peer, here.keys, change))
        self._store.save(replace(self.get(allocation.name), state=state))

    async def _asking(self, allocation: Allocation, work: Callable[[Allocation], Awaitable[T]]) -> T:
        """Do ``work`` with the allocation; if nobody answers and the chain knows a new address, with that one."""
        try:
            return await work(allocation)
        except CallError:
            try:
                peer = await self._market.locate(allocation.hotkey)
            except ChainError:
                peer = None
            if peer is None or peer == allocation.peer:
                raise
        moved = replace(allocation, peer=peer)
        self._store.save(moved)
        return await work(moved)

    def _require_free(self, name: str) -> None:
        if not is_name(name):
            raise UsageError(
                f"name {name!r}: lower-case letters, digits and single dashes, beginning with a letter, at most "
                f"{MAX_NAME_CHARACTERS} characters, such as brisk-otter"
            )
        if name in self._store.names():
            raise UsageError(f"name {name!r} is taken by another allocation")

    def _require_new(self, hotkey: str) -> None:
        allocation = self._store.find(hotkey)
        if allocation is not None:
            raise UsageError(
                f"you rent the machine of {hotkey} already", next_step=f"See it: register.py show {allocation.name}"
            )

    def _best(self, requirement: DeviceRequirement, offers: Sequence[Offer], seed: int | None) -> list[Offer]:
        ranking = self._market.rank(requirement, offers, self._store, seed)
        by_hotkey = {offer.peer.hotkey: offer for offer in offers}
        best = [by_hotkey[entry.candidate.hotkey] for entry in ranking if entry.rank is not None]
        if not best:
            raise NotFound(f"none of the {len(offers)} serving miners has a free machine for this requirement")
        return best


def _only(offers: Sequence[Offer], hotkey: str) -> list[Offer]:
    if not offers:
        raise NotFound(f"no miner {hotkey} serves an axon on this subnet")
    return list(offers)


def _valid_days(days: int) -> int:
    if not 1 <= days <= MAX_DAYS:
        raise UsageError(f"{days} days: a lease lasts from 1 to {MAX_DAYS} days")
    return days


def _require_hotkey(hotkey: str) -> str:
    try:
        (only,) = kinds.keys(hotkey)
    except ValueError:
        raise UsageError(
            f"{hotkey!r} is not a hotkey (an ss58 address of 48 characters, as a wallet shows it)"
        ) from None
    return only
