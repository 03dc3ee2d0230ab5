"""Which machines are rented, and by what evidence: this validator's own leases, and receipts of other validators.

A miner's word alone is none. A lease of ours is in our database, and its machine answers with the host key that was
made for it. A receipt names such a host key too, and is signed by a validator that the chain holds in esteem.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from compute.base.clock import Clock
from compute.base.errors import CallError, LeaseError
from compute.base.reasons import ProofReason
from compute.chain.access_lists import MINIMAL_STAKE, AccessLists
from compute.chain.subtensor import Metagraph, Neuron
from compute.notices.notice import Notice
from compute.rental.evidence import Rental, alive
from compute.rental.remote import HostKeys
from compute.validator.rental_table import RentalEvent, RentalEventKind
from compute.validator.rentals import (
    Key,
    Look,
    RentalRow,
    RentalSource,
    after_own_look,
    after_receipts_look,
    counting,
    hardware_changed,
)
from compute.validator.store import FactStore, SpecsFact
from compute.wire.receipts import Receipt, ReceiptError, check
from compute.wire.signing import Verifier
from compute.wire.specs import hardware_changes, machine_of

logger = logging.getLogger(__name__)

LOOK_SECONDS = 600.0
"""A machine with a receipt is looked at so often: once in ten minutes, by every validator."""

Uid = Callable[[str], int | None]


class Keeper(Protocol):
    """Acts as the owner of our rentals; ``rental.keeper.RentalKeeper`` is the real one."""

    async def renew(self, alive: Collection[Rental]) -> None:
        """Keep the receipts of these rentals fresh. Raises StoreError."""

    async def end(self, rental: Rental) -> None:
        """Give the machine back; idempotent. Raises LeaseError, CallError, StoreError."""


@dataclass(frozen=True)
class OwnRentals:
    """This validator's own renting, read anew at every use, and how to check that a rental lives.

    ``notify`` keeps the notices for the operator, in the transaction that writes down that they were told. ``verify``
    checks the signatures of receipts; without a ``keeper`` nothing is done to our own rentals.
    """

    rentals: Callable[[], Sequence[Rental]]
    penalized: Callable[[], Collection[str]]
    host_keys: HostKeys
    verify: Verifier
    notify: Callable[[sqlite3.Connection, Sequence[Notice]], object] = lambda connection, notices: None
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


class RentedMachines:
    """Which machines are rented, by the table ``rental``. All methods belong to one event loop."""

    def __init__(
        self,
        *,
        own_hotkey: str,
        own_rentals: OwnRentals,
        facts: FactStore,
        lists: AccessLists,
        clock: Clock,
        uid: Uid,
        on_rented: Callable[[str], object],
    ) -> None:
        """``on_rented`` is told the hotkeys whose lease has just been seen: what their machine is now is wanted."""
        self._own_hotkey = own_hotkey
        self._own_rentals = own_rentals
        self._facts = facts
        self._lists = lists
        self._clock = clock
        self._uid = uid
        self._on_rented = on_rented
        # When each receipt was last looked at, and what was found; of the oldest uid first.
        self._looks: dict[str, Look] = {}
        self._looked_at: set[RentalSource] = set()

    # --- what is known ------------------------------------------------------------------------------------------

    def through(self) -> dict[str, str]:
        """The machines that are rented now, by hotkey, each with the hotkey of the validator that rents it.

        A machine that has become another during its lease is not among them.
        """
        rows = self._facts.rentals.rows()
        changed = hardware_changed(rows.values())
        counted = self._counting(rows)
        return {hotkey: row.validator for hotkey, row in counted.items() if row.host_key not in changed}

    def _counting(self, rows: Mapping[Key, RentalRow]) -> dict[str, RentalRow]:
        return counting(rows.values(), self._looks, self._clock.now())

    # --- looking ------------------------------------------------------------------------------------------------

    async def watch_own(self, block: int) -> None:
        """See which of our own rentals are alive."""
        rentals = self._own_rentals.rentals()
        answering = await alive(rentals, self._own_rentals.host_keys)
        held = dict.fromkeys(map(_key, rentals), False) | dict.fromkeys(map(_key, answering), True)
        rows = self._facts.rentals.rows()
        changed, notices = after_own_look(rows, held, self._own_hotkey, self._clock.now())
        self._looked_at.add(RentalSource.OWN)
        self._write(rows, changed, block, notices)

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
        looks: dict[str, Look] = {}
        for hotkey, receipt in shown.items():
            neuron, before = metagraph.by_hotkey[hotkey], self._looks.get(hotkey)
            if before is not None and before.receipt == receipt and now - before.at < LOOK_SECONDS:
                looks[hotkey] = before
                continue
            problem = self._objection(receipt, neuron, metagraph, now)
            looks[hotkey] = Look(receipt, now, problem)
            if problem is None:
                due[hotkey] = Rental(hotkey, neuron.ip, receipt.port, receipt.host_key, is_paused=False)
        answering = await alive(list(due.values()), self._own_rentals.host_keys)
        for hotkey, rental in due.items():
            if rental not in answering:
                looks[hotkey] = replace(looks[hotkey], problem="no machine answers with its host key")
        for hotkey, look in looks.items():
            before = self._looks.get(hotkey)
            if look.problem is not None and (before is None or before.problem != look.problem):
                details = {"uid": self._uid(hotkey), "signed_by": look.receipt.validator, "detail": look.problem}
                logger.info("a receipt proves nothing", extra=details)
        self._looks = looks
        rows = self._facts.rentals.rows()
        self._looked_at.add(RentalSource.RECEIPT)
        self._write(rows, after_receipts_look(rows, looks, self._clock.now()), metagraph.block)

    def _objection(self, receipt: Receipt, neuron: Neuron, metagraph: Metagraph, now: float) -> str | None:
        try:
            check(receipt, netuid=metagraph.netuid, miner=neuron.hotkey, now=now, verify=self._own_rentals.verify)
        except ReceiptError as error:
            return str(error)
        return objection(receipt, neuron, metagraph, self._own_hotkey, self._lists, now)

    def _write(
        self, before: Mapping[Key, RentalRow], changed: Iterable[RentalRow], block: int, notices: Sequence[Notice] = ()
    ) -> None:
        """Write down what has changed, and tell which machines have been rented or become free since the last look."""
        rows = {**before, **{row.key: row for row in changed}}
        events: list[RentalEvent] = []
        told = {row.hotkey: row.told_rented for row in rows.values() if row.told_rented is not None}
        # After a start only half of the rentals are known: the other half is not free for that.
        if self._looked_at == set(RentalSource):
            counted, now = self._counting(rows), self._clock.now()
            through = {hotkey: f"through {row.validator}" for hotkey, row in counted.items()}
            for hotkey in told.keys() | through.keys():
                if told.get(hotkey) != through.get(hotkey):
                    kind = RentalEventKind.RENTED if hotkey in through else RentalEventKind.FREE
                    events.append(RentalEvent(hotkey, now, block, kind, through.get(hotkey, "")))
            for key, row in rows.items():
                told_rented = through[row.hotkey] if counted.get(row.hotkey) is row else None
                if told_rented != row.told_rented:
                    rows[key] = replace(row, told_rented=told_rented)
        written = [row for key, row in rows.items() if row is not before.get(key)]
        if written:
            self._facts.rentals.write(written, events, lambda connection: self._own_rentals.notify(connection, notices))
        for event in events:
            is_rented = event.kind is RentalEventKind.RENTED
            words = "rented machine is alive" if is_rented else "rented machine is gone, or given back"
            details = {"uid": self._uid(event.hotkey), "detail": event.detail or told.get(event.hotkey)}
            logger.info(words, extra=details)
            if is_rented:
                self._on_rented(event.hotkey)
        for notice in notices:
            logger.info("notice", extra={"hotkey": notice.hotkey, "status": notice.kind.value})

    # --- hardware -----------------------------------------------------------------------------------------------

    def compare(self, answers: Iterable[SpecsFact], interval_blocks: int) -> None:
        """Hold new specs of rented machines against what these were when their lease was first seen.

        A difference counts when it has been seen twice, ``interval_blocks`` apart or more, and not gone in between.
        """
        rows = self._facts.rentals.rows()
        counted = self._counting(rows)
        written: dict[Key, RentalRow] = {}
        events: list[RentalEvent] = []
        for fact in answers:
            row = counted.get(fact.hotkey)
            if row is None or fact.specs is None or fact.reason not in (ProofReason.OK, ProofReason.NO_GPU):
                continue
            if row.specs is None:
                # A new baseline replaces that of the lease before.
                for other in rows.values():
                    if other.hotkey == row.hotkey and other.specs is not None:
                        written[other.key] = replace(other, specs=None, differs_since=None, change=None)
                written[row.key] = replace(row, specs=fact.specs)
            elif row.change is None:
                after = self._compared(row, row.specs, fact, interval_blocks)
                if after != row:
                    written[row.key] = after
                if after.change is not None:
                    kind = RentalEventKind.HARDWARE_CHANGED
                    events.append(RentalEvent(fact.hotkey, fact.at, fact.block, kind, after.change))
        if written:
            self._facts.rentals.write(list(written.values()), events)

    def _compared(self, row: RentalRow, baseline: str, fact: SpecsFact, interval_blocks: int) -> RentalRow:
        was, now = machine_of(baseline), machine_of(fact.specs)
        change = hardware_changes(was, now) if was is not None and now is not None else None
        if change is None:
            return replace(row, differs_since=None)
        if row.differs_since is None:
            return replace(row, differs_since=fact.block)
        if fact.block - row.differs_since < interval_blocks:
            return row
        details = {"uid": self._uid(fact.hotkey), "changes": change}
        logger.warning("a rented machine's hardware has changed", extra=details)
        return replace(row, change=change)

    async def keep_own(self) -> None:
        """End those of our rentals whose hardware has changed, and keep the receipts of the others fresh.

        Raises:
            StoreError: the renter's part of the database cannot be used.
        """
        keeper = self._own_rentals.keeper
        if keeper is None:
            return
        rows = self._facts.rentals.rows()
        changes = hardware_changed(rows.values())
        for rental in self._own_rentals.rentals():
            if rental.host_key not in changes:
                continue
            details = {"uid": self._uid(rental.hotkey), "changes": changes[rental.host_key]}
            try:
                await keeper.end(rental)
            except (LeaseError, CallError) as error:
                logger.warning("a lease whose hardware has changed cannot be ended yet: %s", error, extra=details)
            else:
                logger.warning("lease ended: its hardware has changed", extra=details)
        counted = {row.key for row in self._counting(rows).values() if row.host_key not in changes}
        await keeper.renew([rental for rental in self._own_rentals.rentals() if _key(rental) in counted])


def _key(rental: Rental) -> Key:
    return rental.hotkey, rental.host_key
