"""What the validator knows of each rental, and what follows from a look at its machine. Pure.

A rental is known by its miner's hotkey and the SSH host key of its machine, which was made for this lease alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from compute.notices.notice import Notice, NoticeKind
from compute.wire.receipts import Receipt

MISSES_UNTIL_OFFLINE = 2
"""The operator is told that a machine is offline after so many looks in a row without an answer."""

Key = tuple[str, str]
"""The hotkey and the host key (``SHA256:…``) of a rental."""


class RentalSource(str, Enum):
    """How we know of a rental: we rent it ourselves, or its miner shows a receipt. The values are the database form."""

    OWN = "own"
    RECEIPT = "receipt"


@dataclass(frozen=True)
class RentalRow:
    """One row of the table ``rental``; ``validator`` is the hotkey through which it is rented. Times are Unix seconds.

    ``until`` is the end of a receipt, None for our own. ``misses`` counts the last looks without an answer.
    ``ended``: it is given back, or there is no evidence of it any more.

    ``specs`` is the baseline: what the machine said it was when the rental was first seen. One row of a hotkey at most
    has one. ``differs_since`` is the block since which all answers say something else, ``change`` what has changed, in
    words, once that is certain.

    ``told_rented`` is the detail of the last event that said that it is rented, unless another has said that it is
    free; ``told_offline``: the operator was told, and not yet that it is back.
    """

    hotkey: str
    host_key: str
    source: RentalSource
    validator: str
    first_seen: float
    until: float | None = None
    last_alive: float | None = None
    misses: int = 0
    ended: float | None = None
    specs: str | None = None
    differs_since: int | None = None
    change: str | None = None
    told_rented: str | None = None
    told_offline: bool = False

    @property
    def key(self) -> Key:
        return self.hotkey, self.host_key

    @property
    def is_spent(self) -> bool:
        """Whether nothing will ever ask for this row again."""
        return self.ended is not None and self.specs is None and self.told_rented is None

    def lasts(self, source: RentalSource) -> bool:
        """Whether it is a rental of this kind, and has not ended."""
        return self.source is source and self.ended is None

    def is_alive(self, now: float) -> bool:
        """Whether the rental lasts at ``now`` and its machine answered the last look."""
        return self.ended is None and self.misses == 0 and (self.until is None or self.until > now)

    def over(self, now: float) -> RentalRow:
        """This row once the rental has ended."""
        return replace(self, ended=now, misses=0, told_offline=False)


def counting(rows: Iterable[RentalRow], by_age: Iterable[str], now: float) -> dict[str, RentalRow]:
    """By hotkey, the rental that counts: one host key counts once, for ours or else the oldest uid.

    ``by_age`` has the hotkeys that show a receipt, the oldest uid first.
    """
    alive = [row for row in rows if row.is_alive(now)]
    found = {row.hotkey: row for row in alive if row.source is RentalSource.OWN}
    taken = {row.host_key for row in found.values()}
    receipts = {row.hotkey: row for row in alive if row.source is RentalSource.RECEIPT}
    for hotkey in by_age:
        row = receipts.get(hotkey)
        if row is not None and hotkey not in found and row.host_key not in taken:
            found[hotkey] = row
            taken.add(row.host_key)
    return found


def after_own_look(
    rows: Mapping[Key, RentalRow], held: Mapping[Key, bool], validator: str, now: float
) -> tuple[list[RentalRow], list[Notice]]:
    """What changes in ``rows`` when our own rentals have been looked at, and what the operator is told.

    Args:
        held: the rentals that we hold, and whether each is alive.
        validator: our hotkey.
    """
    changed: list[RentalRow] = []
    notices: list[Notice] = []
    for key, is_alive in held.items():
        row = _begun(rows.get(key), key, RentalSource.OWN, validator, now)
        if is_alive:
            if row.told_offline:
                notices.append(Notice.new(NoticeKind.ONLINE, *key, now, "the machine answers again"))
            row = replace(row, misses=0, told_offline=False, last_alive=now)
        else:
            row = replace(row, misses=row.misses + 1)
            if row.misses >= MISSES_UNTIL_OFFLINE and not row.told_offline:
                details = "the machine no longer answers with its host key"
                notices.append(Notice.new(NoticeKind.OFFLINE, *key, now, details))
                row = replace(row, told_offline=True)
        changed.append(row)
    changes = hardware_changed(rows.values())
    for row in rows.values():
        if row.lasts(RentalSource.OWN) and row.key not in held:
            change = changes.get(row.host_key)
            why = "the rental has ended or was given back"
            why = why if change is None else f"ended, as its hardware has changed: {change}"
            notices.append(Notice.new(NoticeKind.DEALLOCATION, *row.key, now, why))
            changed.append(row.over(now))
    return changed, notices


@dataclass(frozen=True)
class Look:
    """What was found when this receipt was looked at; ``problem`` None: it is evidence."""

    receipt: Receipt
    at: float
    problem: str | None


def after_receipts_look(rows: Mapping[Key, RentalRow], looks: Mapping[str, Look], now: float) -> list[RentalRow]:
    """What changes in ``rows`` by these looks at receipts, by hotkey. What we rent ourselves stays ours."""
    good = {(hotkey, look.receipt.host_key): look for hotkey, look in looks.items() if look.problem is None}
    changed = [row.over(now) for row in rows.values() if row.lasts(RentalSource.RECEIPT) and row.key not in good]
    for key, look in good.items():
        before = rows.get(key)
        if before is None or not before.lasts(RentalSource.OWN):
            row = _begun(before, key, RentalSource.RECEIPT, look.receipt.validator, now)
            row = replace(row, until=look.receipt.until, last_alive=look.at)
            if row != before:
                changed.append(row)
    return changed


def _begun(before: RentalRow | None, key: Key, source: RentalSource, validator: str, now: float) -> RentalRow:
    """The row of a rental that lasts. One that comes back has the baseline and the told event of before."""
    if before is None:
        return RentalRow(*key, source, validator, now)
    if not before.lasts(source):
        before = replace(before, source=source, first_seen=now, until=None, misses=0, ended=None, told_offline=False)
    return replace(before, validator=validator)


def hardware_changed(rows: Iterable[RentalRow]) -> dict[str, str]:
    """What has changed during a rental, in words, by its host key."""
    return {row.host_key: row.change for row in rows if row.change is not None}
