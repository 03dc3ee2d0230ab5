"""Which notices follow from what is seen of the rented machines. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from compute.notices.notice import Notice, NoticeKind

MISSES_UNTIL_OFFLINE = 2
"""A machine is offline when it has not answered so many times in a row: one lost packet is no news."""


@dataclass(frozen=True)
class Seen:
    """A rental as it was found just now. ``rental`` tells it from every other, also of the same miner."""

    rental: str
    hotkey: str
    is_alive: bool


@dataclass(frozen=True)
class Known:
    """What is remembered of a rental: how often in a row it has not answered, and whether the operator was told."""

    hotkey: str
    misses: int = 0
    told_offline: bool = False


def changes(
    known: Mapping[str, Known], seen: Sequence[Seen], now: float, why_ended: Mapping[str, str] = MappingProxyType({})
) -> tuple[dict[str, Known], list[Notice]]:
    """What to remember from now on, and what to tell. A rental that is no longer there has ended.

    ``why_ended`` has the reasons of those that did not simply end or were given back.
    """
    following: dict[str, Known] = {}
    notices: list[Notice] = []

    def tell(kind: NoticeKind, hotkey: str, rental: str, details: str) -> None:
        notices.append(Notice(uuid.uuid4().hex, kind, hotkey, now, rental, details))

    for item in seen:
        before = known.get(item.rental, Known(item.hotkey))
        if item.is_alive:
            if before.told_offline:
                tell(NoticeKind.ONLINE, item.hotkey, item.rental, "the machine answers again")
            following[item.rental] = Known(item.hotkey)
            continue
        misses = before.misses + 1
        offline = misses >= MISSES_UNTIL_OFFLINE
        if offline and not before.told_offline:
            tell(NoticeKind.OFFLINE, item.hotkey, item.rental, "the machine no longer answers with its host key")
        following[item.rental] = replace(before, misses=misses, told_offline=offline)
    for rental, before in known.items():
        if rental not in following:
            details = why_ended.get(rental, "the rental has ended or was given back")
            tell(NoticeKind.DEALLOCATION, before.hotkey, rental, details)
    return following, notices
