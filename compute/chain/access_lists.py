"""Whom of the metagraph a neuron talks to: black and white lists, the stake asked for, the version asked for. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compute.base.reasons import AccessReason

if TYPE_CHECKING:
    from compute.base.options.shared import ListOptions

# Hotkeys known to exploit the subnet, blacklisted unless --blacklist.exploiters is switched off. None is listed today.
EXPLOITERS: tuple[str, ...] = ()


MINIMAL_STAKE = 1024.0
"""Stake in alpha, as the metagraph gives it, that a caller needs."""


@dataclass(frozen=True)
class AccessLists:
    """Black and white lists. Black wins over white."""

    blacklist_hotkeys: frozenset[str] = frozenset()
    blacklist_coldkeys: frozenset[str] = frozenset()
    whitelist_hotkeys: frozenset[str] = frozenset()
    whitelist_coldkeys: frozenset[str] = frozenset()
    exploiters: frozenset[str] = frozenset()

    @classmethod
    def from_options(cls, options: ListOptions) -> AccessLists:
        """The lists of a command line; the built-in exploiters unless they are switched off there."""
        return cls(
            blacklist_hotkeys=frozenset(options.blacklist_hotkeys),
            blacklist_coldkeys=frozenset(options.blacklist_coldkeys),
            whitelist_hotkeys=frozenset(options.whitelist_hotkeys),
            whitelist_coldkeys=frozenset(options.whitelist_coldkeys),
            exploiters=frozenset(EXPLOITERS if options.blacklist_exploiters else ()),
        )

    def blacklisted(self, hotkey: str, coldkey: str | None) -> AccessReason | None:
        """Which blacklist has this neuron, if any. ``coldkey`` None: unknown."""
        if hotkey in self.blacklist_hotkeys:
            return AccessReason.BLACKLISTED_HOTKEY
        if hotkey in self.exploiters:
            return AccessReason.EXPLOITER
        if coldkey is not None and coldkey in self.blacklist_coldkeys:
            return AccessReason.BLACKLISTED_COLDKEY
        return None

    def whitelisted(self, hotkey: str, coldkey: str | None) -> AccessReason | None:
        """Which whitelist has this neuron, if any."""
        if hotkey in self.whitelist_hotkeys:
            return AccessReason.WHITELISTED_HOTKEY
        if coldkey is not None and coldkey in self.whitelist_coldkeys:
            return AccessReason.WHITELISTED_COLDKEY
        return None


def enforced_version(versions: Iterable[int], minimals: Iterable[int], threshold_percent: int) -> int:
    """The highest of ``minimals`` that at least ``threshold_percent`` of ``versions`` have reached; 0 if none is.

    At least one has reached it: whatever the minimals and the threshold say, somebody is left. A peer that publishes
    no version (0) counts as not updated.
    """
    known = list(versions)
    reached = {minimal: sum(version >= minimal for version in known) for minimal in minimals}
    return max(
        (
            minimal
            for minimal, updated in reached.items()
            if updated and 100 * updated >= threshold_percent * len(known)
        ),
        default=0,
    )
