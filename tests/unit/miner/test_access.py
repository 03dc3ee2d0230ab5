from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.base.options.shared import ListOptions
from compute.base.reasons import AccessReason
from compute.chain import access_lists
from compute.chain.access_lists import EXPLOITERS, AccessLists, enforced_version
from compute.chain.versions import OWN
from compute.miner.access import AccessDecision, AccessPolicy, RateLimiter, decide, priority
from compute.miner.options import parse_miner
from compute.testing.clock import ManualClock
from tests.waiting import DEADLINE_SECONDS

ALICE = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
MINIMAL = OWN.validator


@dataclass(frozen=True)
class CallerNeuron:
    coldkey: str
    stake: float
    validator_permit: bool
    version: int


GOOD = CallerNeuron(coldkey="cold", stake=1024.0, validator_permit=True, version=MINIMAL)
POOR = CallerNeuron("cold", 1023.999, True, MINIMAL)
UNPERMITTED = CallerNeuron("cold", 5000.0, False, MINIMAL)
OUTDATED = CallerNeuron("cold", 5000.0, True, MINIMAL - 1)
SILENT = CallerNeuron("cold", 5000.0, True, 0)
UPDATED = MINIMAL
NOT_YET = 0

BLACK_HOTKEY = AccessLists(blacklist_hotkeys=frozenset({"hot"}))
BLACK_COLDKEY = AccessLists(blacklist_coldkeys=frozenset({"cold"}))
EXPLOITER = AccessLists(exploiters=frozenset({"hot"}))
WHITE_HOTKEY = AccessLists(whitelist_hotkeys=frozenset({"hot"}))
WHITE_COLDKEY = AccessLists(whitelist_coldkeys=frozenset({"cold"}))
OTHERS_WHITE = AccessLists(whitelist_hotkeys=frozenset({"other"}), whitelist_coldkeys=frozenset({"other"}))
OTHERS_BLACK = AccessLists(
    blacklist_hotkeys=frozenset({"ho", "hot2"}), blacklist_coldkeys=frozenset({"col"}), exploiters=frozenset({"HOT"})
)

R = AccessReason


@pytest.mark.parametrize(
    ("lists", "neuron", "enforced", "expected"),
    [
        # the lists, wherever the caller stands
        (BLACK_HOTKEY, GOOD, UPDATED, R.BLACKLISTED_HOTKEY),
        (BLACK_HOTKEY, None, UPDATED, R.BLACKLISTED_HOTKEY),
        (BLACK_COLDKEY, GOOD, UPDATED, R.BLACKLISTED_COLDKEY),
        (BLACK_COLDKEY, None, UPDATED, R.NOT_REGISTERED),
        (EXPLOITER, GOOD, UPDATED, R.EXPLOITER),
        (WHITE_HOTKEY, None, UPDATED, R.WHITELISTED_HOTKEY),
        (WHITE_HOTKEY, POOR, UPDATED, R.WHITELISTED_HOTKEY),
        (WHITE_COLDKEY, OUTDATED, UPDATED, R.WHITELISTED_COLDKEY),
        (WHITE_COLDKEY, UNPERMITTED, UPDATED, R.WHITELISTED_COLDKEY),
        (WHITE_COLDKEY, None, UPDATED, R.NOT_REGISTERED),
        # being absent from a list that exists says nothing by itself
        (OTHERS_WHITE, GOOD, UPDATED, R.ALLOWED),
        (OTHERS_WHITE, POOR, UPDATED, R.NOT_ENOUGH_STAKE),
        (OTHERS_WHITE, None, UPDATED, R.NOT_REGISTERED),
        (OTHERS_BLACK, GOOD, UPDATED, R.ALLOWED),
        # the metagraph
        (AccessLists(), GOOD, UPDATED, R.ALLOWED),
        (AccessLists(), None, UPDATED, R.NOT_REGISTERED),
        (AccessLists(), POOR, UPDATED, R.NOT_ENOUGH_STAKE),
        (AccessLists(), CallerNeuron("cold", float("nan"), True, MINIMAL), UPDATED, R.NOT_ENOUGH_STAKE),
        (AccessLists(), UNPERMITTED, UPDATED, R.NO_PERMIT),
        (AccessLists(), CallerNeuron("cold", 0.0, False, 0), UPDATED, R.NOT_ENOUGH_STAKE),
        # versions
        (AccessLists(), OUTDATED, UPDATED, R.OLD_VERSION),
        (AccessLists(), SILENT, UPDATED, R.OLD_VERSION),
        (AccessLists(), OUTDATED, NOT_YET, R.ALLOWED),
    ],
)
def test_the_first_rule_that_matches_decides(
    lists: AccessLists, neuron: CallerNeuron | None, enforced: int, expected: AccessReason
) -> None:
    decision = decide("hot", neuron, policy=AccessPolicy(lists), enforced_version=enforced)
    allowing = {R.ALLOWED, R.WHITELISTED_HOTKEY, R.WHITELISTED_COLDKEY}
    assert decision == AccessDecision(expected in allowing, expected)


@pytest.mark.parametrize("neuron", [None, GOOD, POOR, OUTDATED])
@pytest.mark.parametrize(
    ("black", "reason"),
    [
        ({"blacklist_hotkeys": frozenset({"hot"})}, R.BLACKLISTED_HOTKEY),
        ({"exploiters": frozenset({"hot"})}, R.EXPLOITER),
    ],
)
def test_black_wins_over_white(
    neuron: CallerNeuron | None, black: dict[str, frozenset[str]], reason: AccessReason
) -> None:
    white = {"whitelist_hotkeys": frozenset({"hot"}), "whitelist_coldkeys": frozenset({"cold"})}
    decision = decide("hot", neuron, policy=AccessPolicy(AccessLists(**black, **white)), enforced_version=UPDATED)
    assert decision == AccessDecision(False, reason)


def test_a_blacklisted_coldkey_wins_over_a_whitelisted_hotkey() -> None:
    lists = AccessLists(blacklist_coldkeys=frozenset({"cold"}), whitelist_hotkeys=frozenset({"hot"}))
    decision = decide("hot", GOOD, policy=AccessPolicy(lists), enforced_version=UPDATED)
    assert decision == AccessDecision(False, R.BLACKLISTED_COLDKEY)


@pytest.mark.parametrize("neuron", [POOR, UNPERMITTED])
def test_not_enough_stake_can_be_allowed_and_the_version_still_counts(neuron: CallerNeuron) -> None:
    policy = AccessPolicy(allow_not_enough_stake=True)
    assert decide("hot", neuron, policy=policy, enforced_version=UPDATED).reason is R.ALLOWED
    old = CallerNeuron(neuron.coldkey, neuron.stake, neuron.validator_permit, MINIMAL - 1)
    assert decide("hot", old, policy=policy, enforced_version=UPDATED).reason is R.OLD_VERSION
    assert decide("hot", None, policy=policy, enforced_version=UPDATED).reason is R.NOT_REGISTERED


def test_outdated_callers_can_be_allowed_and_the_stake_still_counts() -> None:
    policy = AccessPolicy(allow_not_updated=True)
    assert decide("hot", OUTDATED, policy=policy, enforced_version=UPDATED).reason is R.ALLOWED
    poor = CallerNeuron("cold", 1.0, True, 0)
    assert decide("hot", poor, policy=policy, enforced_version=UPDATED).reason is R.NOT_ENOUGH_STAKE


def test_before_the_first_metagraph_only_the_lists_allow() -> None:
    unknown = decide("hot", None, policy=AccessPolicy(), enforced_version=NOT_YET, metagraph_known=False)
    assert unknown == AccessDecision(False, R.METAGRAPH_UNKNOWN)
    white = decide("hot", None, policy=AccessPolicy(WHITE_HOTKEY), enforced_version=NOT_YET, metagraph_known=False)
    assert white == AccessDecision(True, R.WHITELISTED_HOTKEY)


@pytest.mark.parametrize(
    ("versions", "minimals", "percent", "expected"),
    [
        ([200] * 6 + [100] * 4, [190], 60, 190),
        ([200] * 59 + [100] * 41, [190], 60, 0),
        ([200] * 119 + [100] * 81, [190], 60, 0),
        ([190], [190], 100, 190),
        ([189, 190], [190], 51, 0),
        # those that publish none count as not updated
        ([200, 0, 0], [190], 34, 0),
        # nobody, or nobody updated: nothing is enforced, whatever the threshold
        ([], [190], 0, 0),
        ([100] * 5, [190], 0, 0),
        # of several minimal versions the highest that has its quorum
        ([200] * 6 + [195] * 4, [190, 198], 60, 198),
        ([200] * 5 + [195] * 5, [190, 198], 60, 190),
        ([200] * 10, [190, 99_999], 60, 190),
        ([200] * 10, [190, 0], 60, 190),
    ],
)
def test_a_version_is_enforced_by_a_quorum(
    versions: list[int], minimals: list[int], percent: int, expected: int
) -> None:
    assert enforced_version(iter(versions), iter(minimals), percent) == expected


@given(
    versions=st.lists(st.integers(0, 300), max_size=30),
    minimals=st.lists(st.integers(0, 400), max_size=4),
    percent=st.integers(0, 100),
)
@settings(max_examples=150)
def test_whatever_is_asked_for_never_drops_everybody(versions: list[int], minimals: list[int], percent: int) -> None:
    enforced = enforced_version(versions, minimals, percent)
    left = sum(version >= enforced for version in versions)
    assert left > 0 or not versions
    assert 100 * left >= percent * len(versions)


@given(
    stake=st.floats(0, 10_000),
    permit=st.booleans(),
    version=st.integers(0, 400),
    stake_waived=st.booleans(),
    version_waived=st.booleans(),
    enforced=st.sampled_from([0, MINIMAL]),
)
@settings(max_examples=150)
def test_each_waiver_only_ever_lets_more_callers_in(
    stake: float, permit: bool, version: int, stake_waived: bool, version_waived: bool, enforced: int
) -> None:
    neuron = CallerNeuron("cold", stake, permit, version)
    strict = decide("hot", neuron, policy=AccessPolicy(), enforced_version=enforced)
    waived = decide(
        "hot",
        neuron,
        policy=AccessPolicy(allow_not_enough_stake=stake_waived, allow_not_updated=version_waived),
        enforced_version=enforced,
    )
    assert waived.allowed or not strict.allowed
    rich_enough = stake >= 1024 and permit
    recent_enough = version >= enforced
    assert waived.allowed is ((rich_enough or stake_waived) and (recent_enough or version_waived))


def test_policy_from_the_command_line() -> None:
    argv = [
        *("--blacklist.hotkeys", ALICE, "--whitelist.coldkeys", ALICE, "--miner.whitelist.not.enough.stake"),
        *("--miner.whitelist.not.updated", "--miner.whitelist.updated.threshold", "70"),
    ]
    policy = AccessPolicy.from_options(parse_miner(argv, {}))
    assert policy.lists == AccessLists(
        blacklist_hotkeys=frozenset({ALICE}),
        whitelist_coldkeys=frozenset({ALICE}),
        exploiters=frozenset(EXPLOITERS),
    )
    assert (policy.allow_not_enough_stake, policy.allow_not_updated) == (True, True)
    assert policy.updated_threshold_percent == 70
    assert policy.minimal_stake == 1024.0
    strict = AccessPolicy.from_options(parse_miner([], {}))
    assert strict == AccessPolicy(AccessLists(exploiters=frozenset(EXPLOITERS)))


@pytest.mark.parametrize("switched_on", [True, False])
def test_exploiters_can_be_switched_off(switched_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_lists, "EXPLOITERS", ("hot",))
    lists = AccessLists.from_options(ListOptions(blacklist_exploiters=switched_on))
    assert decide("hot", GOOD, policy=AccessPolicy(lists), enforced_version=UPDATED).allowed is not switched_on


def test_priority_orders_by_stake_then_by_kind() -> None:
    assert priority(10.0, "Allocate") == 13.0
    assert priority(10.0, "Challenge") == 12.0
    assert priority(10.0, "Specs") == 11.0
    assert priority(10.0, "Other") == 10.0
    for low, high in itertools.pairwise(["Other", "Specs", "Challenge", "Allocate"]):
        assert priority(5.0, low) < priority(5.0, high)


def test_a_burst_and_then_the_rate() -> None:
    clock = ManualClock()
    limiter = RateLimiter(clock, per_second=0.5, burst=3)
    assert [limiter.take("a") for _ in range(3)] == [0.0, 0.0, 0.0]
    assert limiter.take("a") == pytest.approx(2.0)
    assert limiter.take("b") == 0.0
    clock.advance(1.0)
    assert limiter.take("a") == pytest.approx(1.0)
    clock.advance(1.0)
    assert limiter.take("a") == 0.0
    assert limiter.take("a") > 0.0
    clock.advance(1e6)
    assert [limiter.take("a") > 0 for _ in range(4)] == [False, False, False, True]


@given(waits=st.lists(st.floats(0, 30), max_size=30), per_second=st.floats(0.01, 5), burst=st.integers(1, 10))
@settings(max_examples=60)
def test_never_more_than_burst_plus_rate(waits: list[float], per_second: float, burst: int) -> None:
    clock = ManualClock()
    limiter = RateLimiter(clock, per_second=per_second, burst=burst)
    taken = 0
    for wait in waits:
        clock.advance(wait)
        taken += limiter.take("a") == 0.0
    assert taken <= burst + sum(waits) * per_second + 1e-3


@given(st.floats(0.01, 50))
@settings(max_examples=60)
def test_waiting_as_long_as_told_is_enough(per_second: float) -> None:
    clock = ManualClock(start=0.0)
    limiter = RateLimiter(clock, per_second=per_second, burst=1)
    limiter.take("a")
    clock.advance(limiter.take("a"))
    assert limiter.take("a") == 0.0


def test_memory_is_bounded_and_the_quiet_are_forgotten_first() -> None:
    clock = ManualClock()
    limiter = RateLimiter(clock, per_second=0.001, burst=1, capacity=10)
    assert limiter.take("busy") == 0.0
    for number in range(1000):
        limiter.take(f"caller-{number}")
        assert limiter.take("busy") > 0.0
        assert len(limiter) == min(number + 2, 10)
    assert limiter.take("caller-0") == 0.0


@pytest.mark.parametrize("settings_", [{"per_second": 0.0}, {"burst": 0}, {"capacity": 0}])
def test_a_limiter_that_lets_nobody_in_is_a_mistake(settings_: dict[str, float]) -> None:
    arguments = {"per_second": 1.0, "burst": 1, "capacity": 1, **settings_}
    with pytest.raises(ValueError, match="must be positive"):
        RateLimiter(
            ManualClock(),
            per_second=arguments["per_second"],
            burst=int(arguments["burst"]),
            capacity=int(arguments["capacity"]),
        )


def test_the_module_is_pure() -> None:
    code = "import sys, compute.miner.access, compute.incentive.scoring; print(sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=True
    )
    for heavy in ("bittensor", "torch", "sqlite3", "docker", "paramiko", "argparse"):
        assert f"'{heavy}'" not in done.stdout
