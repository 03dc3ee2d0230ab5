"""Who may call a miner: every combination of everything that matters, against the rules as the manual words them."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

import pytest

from compute.base.options.shared import ListOptions
from compute.base.reasons import AccessReason as R
from compute.chain import access_lists
from compute.chain.access_lists import MINIMAL_STAKE, AccessLists
from compute.miner.access import AccessPolicy, decide

JUST_BELOW = 1023.9999999999999
ENFORCED = 190


@dataclass(frozen=True)
class Case:
    """One caller in front of one miner."""

    hotkey_black: bool
    hotkey_exploits: bool
    exploiters_switched_on: bool
    hotkey_white: bool
    coldkey_black: bool
    coldkey_white: bool
    metagraph_known: bool
    registered: bool
    stake: float
    permit: bool
    version: int
    quorum: bool
    poor_allowed: bool
    old_allowed: bool

    @property
    def coldkey(self) -> str:
        return "cold"

    @property
    def validator_permit(self) -> bool:
        return self.permit


BOOLEANS = (False, True)
CASES = [
    Case(*values)
    for values in itertools.product(
        *(BOOLEANS,) * 8,
        (0.0, JUST_BELOW, MINIMAL_STAKE, 5000.0, float("nan")),
        BOOLEANS,
        (0, ENFORCED - 1, ENFORCED, ENFORCED + 10),
        *(BOOLEANS,) * 3,
    )
]


def by_the_manual(case: Case) -> R:
    """docs/miner.md, "Who is answered", sentence by sentence."""
    # 1. a blacklisted hotkey, a known exploiter, or a blacklisted coldkey is refused
    if case.hotkey_black:
        return R.BLACKLISTED_HOTKEY
    if case.hotkey_exploits and case.exploiters_switched_on:
        return R.EXPLOITER
    if case.coldkey_black and case.registered:
        return R.BLACKLISTED_COLDKEY
    # 2. a whitelisted hotkey or coldkey is answered
    if case.hotkey_white:
        return R.WHITELISTED_HOTKEY
    if case.coldkey_white and case.registered:
        return R.WHITELISTED_COLDKEY
    # 3. a hotkey that is not registered on the subnet is refused
    if not case.registered:
        return R.NOT_REGISTERED if case.metagraph_known else R.METAGRAPH_UNKNOWN
    # 4. less than 1024 stake, or no validator permit, is refused, unless --miner.whitelist.not.enough.stake
    if case.stake in (0.0, JUST_BELOW) or case.stake != case.stake:
        if not case.poor_allowed:
            return R.NOT_ENOUGH_STAKE
    elif not case.permit and not case.poor_allowed:
        return R.NO_PERMIT
    # 5. an outdated version is refused as soon as a quorum has updated, unless --miner.whitelist.not.updated
    if case.quorum and case.version in (0, ENFORCED - 1) and not case.old_allowed:
        return R.OLD_VERSION
    # 6. everybody else is answered
    return R.ALLOWED


def by_the_program(case: Case) -> R:
    def keys(*named: tuple[bool, str]) -> tuple[str, ...]:
        return ("somebody else", *(key for is_named, key in named if is_named))

    lists = AccessLists.from_options(
        ListOptions(
            blacklist_exploiters=case.exploiters_switched_on,
            blacklist_hotkeys=keys((case.hotkey_black, "hot")),
            blacklist_coldkeys=keys((case.coldkey_black, "cold")),
            whitelist_hotkeys=keys((case.hotkey_white, "hot")),
            whitelist_coldkeys=keys((case.coldkey_white, "cold")),
        )
    )
    decision = decide(
        "hot",
        case if case.registered else None,
        policy=AccessPolicy(lists, allow_not_enough_stake=case.poor_allowed, allow_not_updated=case.old_allowed),
        enforced_version=ENFORCED if case.quorum else 0,
        metagraph_known=case.metagraph_known,
    )
    allowing = (R.ALLOWED, R.WHITELISTED_HOTKEY, R.WHITELISTED_COLDKEY)
    assert decision.allowed is (decision.reason in allowing), case
    return decision.reason


@pytest.mark.parametrize("exploits", BOOLEANS, ids=["exploiter", "nobody"])
def test_every_combination_is_decided_as_the_manual_says(exploits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_lists, "EXPLOITERS", ("hot",) if exploits else ("somebody else",))
    # Whoever is registered is so in a metagraph that is known.
    cases = [
        case for case in CASES if case.hotkey_exploits is exploits and (case.metagraph_known or not case.registered)
    ]
    decided: Counter[R] = Counter()
    for case in cases:
        expected = by_the_manual(case)
        assert by_the_program(case) is expected, case
        decided[expected] += 1
    every = set(R) - {R.RATE_LIMITED} - (set() if exploits else {R.EXPLOITER})
    assert set(decided) == every, "the table reaches every rule"


def test_the_table_is_whole() -> None:
    assert len(CASES) == len(set(map(repr, CASES))) == 2**8 * 5 * 2 * 4 * 2**3
