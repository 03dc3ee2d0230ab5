from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from compute.notices.notice import NoticeKind
from compute.notices.rentals import Known, Seen, changes

UP, DOWN = Seen("r1", "hk", True), Seen("r1", "hk", False)


def story(*rounds: list[Seen]) -> list[list[NoticeKind]]:
    """What is told after each of ``rounds``."""
    known: dict[str, Known] = {}
    told = []
    for number, seen in enumerate(rounds):
        known, notices = changes(known, seen, float(number))
        told.append([notice.kind for notice in notices])
    return told


def test_a_rental_that_begins_is_no_news() -> None:
    assert story([UP], [UP]) == [[], []]


def test_offline_is_told_once_and_only_after_two_misses() -> None:
    assert story([UP], [DOWN], [DOWN], [DOWN]) == [[], [], [NoticeKind.OFFLINE], []]


def test_one_lost_answer_is_no_news() -> None:
    assert story([UP], [DOWN], [UP], [DOWN], [UP]) == [[], [], [], [], []]


def test_back_is_told_once() -> None:
    assert story([DOWN], [DOWN], [UP], [UP]) == [[], [NoticeKind.OFFLINE], [NoticeKind.ONLINE], []]


def test_the_end_is_told_once_whether_the_machine_answered_or_not() -> None:
    assert story([UP], [], []) == [[], [NoticeKind.DEALLOCATION], []]
    assert story([DOWN], [DOWN], [], []) == [[], [NoticeKind.OFFLINE], [NoticeKind.DEALLOCATION], []]


def test_an_end_for_a_reason_says_so() -> None:
    known, _ = changes({}, [UP, Seen("r2", "hk2", True)], 0.0)
    _, notices = changes(known, [], 1.0, {"r1": "ended, as its hardware has changed: CPUs were 8, now 4"})
    assert [(notice.rental, notice.details) for notice in notices] == [
        ("r1", "ended, as its hardware has changed: CPUs were 8, now 4"),
        ("r2", "the rental has ended or was given back"),
    ]


def test_a_new_rental_of_the_same_miner_is_another() -> None:
    assert story([UP], [Seen("r2", "hk", True)]) == [[], [NoticeKind.DEALLOCATION]]


@given(st.lists(st.sampled_from([[UP], [DOWN], []]), max_size=30))
def test_online_follows_offline_and_both_end_with_the_rental(rounds: list[list[Seen]]) -> None:
    """Of one rental: offline and online alternate, beginning with offline; an end starts anew."""
    state = "up"
    for kind in (kind for told in story(*rounds) for kind in told):
        if kind is NoticeKind.OFFLINE:
            assert state == "up"
            state = "down"
        elif kind is NoticeKind.ONLINE:
            assert state == "down"
            state = "up"
        else:
            state = "up"
