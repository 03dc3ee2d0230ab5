from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from compute.miner.leases.states import DRAINING, HOLDING, LeaseState, may_move

states = st.sampled_from(LeaseState)


def test_the_way_of_a_good_lease() -> None:
    way = ["free", "reserved", "starting", "active", "paused", "active", "stopping", "free"]
    for current, following in itertools.pairwise(way):
        assert may_move(LeaseState(current), LeaseState(following))


def test_every_state_is_holding_draining_or_free_and_no_two() -> None:
    assert HOLDING | DRAINING | {LeaseState.FREE} == set(LeaseState)
    assert not HOLDING & DRAINING


def test_failed_leads_through_stopping_and_nothing_comes_back_from_there() -> None:
    assert [state for state in LeaseState if may_move(LeaseState.FAILED, state)] == [LeaseState.STOPPING]
    assert [state for state in LeaseState if may_move(LeaseState.STOPPING, state)] == [LeaseState.FREE]


@given(st.lists(states, max_size=12))
def test_a_walk_by_the_table_frees_the_machine_only_by_taking_it_down(wishes: list[LeaseState]) -> None:
    walk = [LeaseState.FREE]
    for wish in wishes:
        if may_move(walk[-1], wish):
            walk.append(wish)
    for before, after in itertools.pairwise(walk):
        assert before is not after
        if after is LeaseState.FREE:
            assert before is LeaseState.STOPPING
        if before in DRAINING:
            assert after not in HOLDING
        if after is LeaseState.RESERVED:
            assert before is LeaseState.FREE


@given(states)
def test_the_machine_can_be_freed_from_every_state(state: LeaseState) -> None:
    for _ in range(3):
        if state is LeaseState.FREE:
            break
        state = LeaseState.FREE if may_move(state, LeaseState.FREE) else LeaseState.STOPPING
    assert state is LeaseState.FREE
