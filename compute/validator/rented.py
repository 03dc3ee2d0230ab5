"""Which machines are rented, and by what evidence: this validator's own leases, and receipts of other validators.

A miner's word alone is none. A lease of ours is in our database, and its machine answers with the host key that was
made for it. A receipt names such a host key too, and is signed by a validator that the chain holds in esteem.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from compute.base.clock import Clock
from compute.base.errors import CallError, LeaseError, SshError
from compute.base.reasons import ProofReason
from compute.chain.access_lists import MINIMAL_STAKE, AccessLists
from compute.chain.subtensor import Metagraph, Neuron
from compute.rental.evidence import Rental
from compute.validator.store import Event, EventKind, FactStore, LeasedMachine, SpecsFact
from compute.wire.keys import fingerprint
from compute.wire.receipts import Receipt, ReceiptError, check
from compute.wire.signing import Verifier
from compute.wire.specs import hardware_changes, machine_of

logger = logging.getLogger(__name__)

LOOK_SECONDS = 600.0
"""A machine with a receipt is looked at so often: once in ten minutes, by every validator."""

Uid = Callable[[str], int | None]


class Keeper(Protocol):
    """Acts as the owner of our rentals; ``renter.keeper.RentalKeeper`` is the real one."""

    async def renew(self, alive: Collection[Rental]) -> None:
        """Keep the receipts of these rentals fresh. Raises StoreError."""

    async def end(self, rental: Rental) -> None:
        """Give the machine back; idempotent. Raises LeaseError, CallError, StoreError."""


@dataclass(frozen=True)
class Leases:
    """This validator's own renting, read anew at every use, and how to check that a rental lives.

    ``watched`` is told after every look; what it raises is an error of that duty. ``verify`` checks the signatures of
    receipts; without a ``keeper`` nothing is done to our own rentals.
    """

    rentals: Callable[[], Sequence[Rental]]
    penalized: Callable[[], Collection[str]]
    host_keys: HostKeys
    verify: Verifier
    watched: Watched = lambda rentals, alive, changes: None
    keeper: Keeper | None = None


def objection(
    receipt: Receipt, neuron: Neuron, metagraph: Metagraph, own_hotkey: str, lists: AccessLists, now: float
) -> str | None:
    """Why whoever signed ``receipt`` for the miner ``neuron`` is no witness; None where it is one."""
    signer = metagraph.by_hotkey.get(receipt.validator)
    if receipt.validator == own_hotkey:
        return "it is in our own name, and our own leases are in our own database"
    if signer is None:
        return "who signed it is not registered on the subnet"
    if not (signer.stake >= MINIMAL_STAKE and signer.validator_permit):
        return f"who signed it has no validator permit, or less than {MINIMAL_STAKE:g} stake"
    if signer.coldkey == neuron.coldkey:
        return "who signed it and the miner have one owner"
    if lists.blacklisted(signer.hotkey, signer.coldkey) is not None:
        return "who signed it is blacklisted"
    return None


@dataclass(frozen=True)
class _Look:
    """What was found when this receipt was looked at; ``problem`` None: it is evidence."""

    receipt: Receipt
    at: float
    problem: str | None


class RentedMachines:
    """What is known of rentals. All methods belong to one event loop."""

    def __init__(
        self,
        *,
        own_hotkey: str,
        leases: Leases,
        facts: FactStore,
        lists: AccessLists,
        clock: Clock,
        uid: Uid,
        on_rented: Callable[[str], object],
    ) -> None:
        """``on_rented`` is told the hotkeys whose lease has just been seen: what their machine is now is wanted."""
        self._own_hotkey = own_hotkey
        self._leases = leases
        self._facts = facts
        self._lists = lists
        self._clock = clock
        self._uid = uid
        self._on_rented = on_rented
        self._own: dict[str, Rental] = {}
        self._looks: dict[str, _Look] = {}
        self._others: dict[str, Receipt] = {}
        self._own_seen = self._others_seen = False
        self._told: dict[str, str] | None = None

    # --- what is known ------------------------------------------------------------------------------------------

    def through(self) -> dict[str, str]:
        """The machines that are rented now, by hotkey, each with the hotkey of the validator that rents it.

        A machine that has become another during its lease is not among them.
        """
        changed = {machine.host_key for machine in self._facts.leased().values() if machine.change is not None}
        return {hotkey: who for hotkey, (host_key, who) in self._all().items() if host_key not in changed}

    def _all(self) -> dict[str, tuple[str, str]]:
        """By hotkey the lease's host key, and who rents; one host key counts once, for ours or else the oldest uid."""
        now = self._clock.now()
        found = {hotkey: (rental.host_key, self._own_hotkey) for hotkey, rental in self._own.items()}
        taken = {host_key for host_key, _ in found.values()}
        for hotkey, receipt in self._others.items():
            if hotkey not in found and receipt.host_key not in taken and receipt.until > now:
                found[hotkey] = (receipt.host_key, receipt.validator)
                taken.add(receipt.host_key)
        return found

    # --- looking ------------------------------------------------------------------------------------------------

    async def watch_own(self, block: int) -> None:
        """See which of our own rentals are alive."""
        rentals = self._leases.rentals()
        changes = self._changes()
        still_alive = await alive(rentals, self._leases.host_keys)
        self._own, self._own_seen = {rental.hotkey: rental for rental in still_alive}, True
        self._note(block)
        self._leases.watched(rentals, still_alive, changes)

    async def look_at_receipts(self, metagraph: Metagraph) -> None:
        """See which machines that show a receipt are rented indeed: new receipts at once, others when it is time."""
        now = self._clock.now()
        specs = self._facts.specs()
        shown: dict[str, Receipt] = {}
        # The oldest uid first: of two that show one host key, it keeps it.
        for neuron in sorted(metagraph.neurons, key=lambda neuron: (neuron.registered_at, neuron.uid)):
            fact = specs.get(neuron.hotkey)
            machine = machine_of(fact.specs) if fact is not None else None
            if machine is not None and machine.receipt is not None and neuron.is_serving:
                shown[neuron.hotkey] = machine.receipt
        due: dict[str, Rental] = {}
        looks: dict[str, _Look] = {}
        for hotkey, receipt in shown.items():
            neuron, before = metagraph.by_hotkey[hotkey], self._looks.get(hotkey)
            if before is not None and before.receipt == receipt and now - before.at < LOOK_SECONDS:
                looks[hotkey] = before
                continue
            problem = self._objection(receipt, neuron, metagraph, now)
            looks[hotkey] = _Look(receipt, now, problem)
            if problem is None:
                due[hotkey] = Rental(hotkey, neuron.ip, receipt.port, receipt.host_key, is_paused=False)
        answering = await alive(list(due.values()), self._leases.host_keys)
        for hotkey, rental in due.items():
            if rental not in answering:
                looks[hotkey] = replace(looks[hotkey], problem="no machine answers with its host key")
        for hotkey, look in looks.items():
            before = self._looks.get(hotkey)
            if look.problem is not None and (before is None or before.problem != look.problem):
                details = {"uid": self._uid(hotkey), "signed_by": look.receipt.validator, "detail": look.problem}
                logger.info("a receipt proves nothing", extra=details)
        self._looks = looks
        self._others = {hotkey: looks[hotkey].receipt for hotkey in shown if looks[hotkey].problem is None}
        self._others_seen = True
        self._note(metagraph.block)

    def _objection(self, receipt: Receipt, neuron: Neuron, metagraph: Metagraph, now: float) -> str | None:
        try:
            check(receipt, netuid=metagraph.netuid, miner=neuron.hotkey, now=now, verify=self._leases.verify)
        except ReceiptError as error:
            return str(error)
        return objection(receipt, neuron, metagraph, self._own_hotkey, self._lists, now)

    def _note(self, block: int) -> None:
        """Tell, and write down, which machines have been rented or become free since the last look."""
        if not (self._own_seen and self._others_seen):
            # After a start only half of the rentals are known: the other half is not free for that.
            return
        if self._told is None:
            self._told = self._facts.rented_last()
        current = {hotkey: f"through {who}" for hotkey, (_, who) in self._all().items()}
        now = self._clock.now()
        for hotkey in self._told.keys() | current.keys():
            who, before = current.get(hotkey), self._told.get(hotkey)
            if who == before:
                continue
            kind = EventKind.FREE if who is None else EventKind.RENTED
            event = "rented machine is gone, or given back" if who is None else "rented machine is alive"
            logger.info(event, extra={"uid": self._uid(hotkey), "detail": who or before})
            self._facts.record_event(Event(hotkey, now, block, kind, who or ""))
            if who is not None:
                self._on_rented(hotkey)
        self._told = current

    # --- hardware -----------------------------------------------------------------------------------------------

    def compare(self, answers: Iterable[SpecsFact], interval_blocks: int) -> None:
        """Hold new specs of rented machines against what these were when their lease was first seen.

        A difference counts when it has been seen twice, ``interval_blocks`` apart or more, and not gone in between.
        """
        rented, known = self._all(), self._facts.leased()
        updates = []
        for fact in answers:
            lease = rented.get(fact.hotkey)
            if lease is None or fact.specs is None or fact.reason not in (ProofReason.OK, ProofReason.NO_GPU):
                continue
            before = known.get(fact.hotkey)
            if before is None or before.host_key != lease[0]:
                updates.append(LeasedMachine(fact.hotkey, lease[0], fact.at, fact.specs))
            elif before.change is None:
                after = self._compared(before, fact, interval_blocks)
                if after != before:
                    updates.append(after)
        if updates:
            self._facts.record_leased(updates)

    def _compared(self, before: LeasedMachine, fact: SpecsFact, interval_blocks: int) -> LeasedMachine:
        was, now = machine_of(before.specs), machine_of(fact.specs)
        change = hardware_changes(was, now) if was is not None and now is not None else None
        if change is None:
            return replace(before, differs_since=None)
        if before.differs_since is None:
            return replace(before, differs_since=fact.block)
        if fact.block - before.differs_since < interval_blocks:
            return before
        logger.warning(
            "a rented machine's hardware has changed", extra={"uid": self._uid(fact.hotkey), "changes": change}
        )
        self._facts.record_event(Event(fact.hotkey, fact.at, fact.block, EventKind.HARDWARE_CHANGED, change))
        return replace(before, change=change)

    def _changes(self) -> Mapping[str, str]:
        """What has changed during a lease, in words, by the lease's host key."""
        return {m.host_key: m.change for m in self._facts.leased().values() if m.change is not None}

    async def keep_own(self) -> None:
        """End those of our rentals whose hardware has changed, and keep the receipts of the others fresh.

        Raises:
            StoreError: the renter's part of the database cannot be used.
        """
        keeper = self._leases.keeper
        if keeper is None:
            return
        changes = self._changes()
        for rental in self._leases.rentals():
            if rental.host_key not in changes:
                continue
            details = {"uid": self._uid(rental.hotkey), "changes": changes[rental.host_key]}
            try:
                await keeper.end(rental)
            except (LeaseError, CallError) as error:
                logger.warning("a lease whose hardware has changed cannot be ended yet: %s", error, extra=details)
            else:
                logger.warning("lease ended: its hardware has changed", extra=details)
        await keeper.renew([rental for rental in self._own.values() if rental.host_key not in changes])


_SECONDS = 15.0
_AT_ONCE = 32


class HostKeys(Protocol):
    """Asks an SSH server for its host key; ``renter.remote.SshRemote`` is the real one."""

    async def host_key_line(self, host: str, port: int, *, timeout_seconds: float) -> str:
        """``TYPE BASE64`` of the key that answers there. Logs nobody in. Raises SshError: none does, in time."""


Watched = Callable[[Sequence[Rental], Collection[Rental], Mapping[str, str]], object]
"""Takes the rentals that were looked at, those of them that are alive, and by host key what has changed of those whose
lease ends for that."""


async def alive(rentals: Sequence[Rental], host_keys: HostKeys) -> set[Rental]:
    """The rentals whose machine answers with its pinned host key; a paused one is taken as alive.

    This is the evidence for a lease that only its renter can have: the key was made for this lease, and its
    fingerprint came encrypted to the renter.
    """
    slots = asyncio.Semaphore(_AT_ONCE)

    async def is_alive(rental: Rental) -> bool:
        if rental.is_paused:
            return True
        try:
            async with slots:
                line = await host_keys.host_key_line(rental.ip, rental.port, timeout_seconds=_SECONDS)
        except SshError:
            return False
        return fingerprint(line) == rental.host_key

    answers = await asyncio.gather(*map(is_alive, rentals))
    return {rental for rental, answer in zip(rentals, answers, strict=True) if answer}
