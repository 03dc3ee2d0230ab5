from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from compute.notices.notice import Notice, NoticeKind
from compute.validator.rentals import (
    Key,
    Look,
    RentalRow,
    RentalSource,
    after_own_look,
    after_receipts_look,
    counting,
)
from compute.wire.receipts import Receipt

R1, R2 = ("hk", "r1"), ("hk", "r2")
UP, DOWN = {R1: True}, {R1: False}


class Story:
    """The rows as they are after each look."""

    def __init__(self) -> None:
        self.rows: dict[Key, RentalRow] = {}
        self.now = 0.0

    def own(self, held: dict[Key, bool]) -> list[Notice]:
        self.now += 60.0
        changed, notices = after_own_look(self.rows, held, "us", self.now)
        self.rows |= {row.key: row for row in changed}
        return notices

    def receipts(self, *keys: Key, until: int = 10**9) -> None:
        looks = {
            hotkey: Look(Receipt("other", hotkey, host_key, 22, until), self.now, None) for hotkey, host_key in keys
        }
        self.rows |= {row.key: row for row in after_receipts_look(self.rows, looks, self.now)}

    def counting(self, *by_age: str) -> dict[str, RentalRow]:
        return counting(self.rows.values(), by_age, self.now)


def told(*looks: dict[Key, bool]) -> list[list[NoticeKind]]:
    """What the operator is told after each of ``looks`` at our own rentals."""
    story = Story()
    return [[notice.kind for notice in story.own(held)] for held in looks]


def test_a_rental_that_begins_is_no_news() -> None:
    assert told(UP, UP) == [[], []]


def test_offline_is_told_once_and_only_after_two_misses() -> None:
    assert told(UP, DOWN, DOWN, DOWN) == [[], [], [NoticeKind.OFFLINE], []]


def test_one_lost_answer_is_no_news() -> None:
    assert told(UP, DOWN, UP, DOWN, UP) == [[], [], [], [], []]


def test_back_is_told_once() -> None:
    assert told(DOWN, DOWN, UP, UP) == [[], [NoticeKind.OFFLINE], [NoticeKind.ONLINE], []]


def test_the_end_is_told_once_whether_the_machine_answered_or_not() -> None:
    assert told(UP, {}, {}) == [[], [NoticeKind.DEALLOCATION], []]
    assert told(DOWN, DOWN, {}, {}) == [[], [NoticeKind.OFFLINE], [NoticeKind.DEALLOCATION], []]


def test_an_end_for_a_reason_says_so() -> None:
    story = Story()
    other = ("hk2", "r2")
    story.own({R1: True, other: True})
    story.rows[R1] = replace(story.rows[R1], change="CPUs were 8, now 4")
    assert {(notice.rental, notice.details) for notice in story.own({})} == {
        ("r1", "ended, as its hardware has changed: CPUs were 8, now 4"),
        ("r2", "the rental has ended or was given back"),
    }


def test_a_new_rental_of_the_same_miner_is_another() -> None:
    assert told(UP, {R2: True}) == [[], [NoticeKind.DEALLOCATION]]


def test_two_miners_with_one_host_key_are_two_rentals() -> None:
    """Told by the host key alone, each look would bring it back, and the next take it away."""
    twin = ("hk2", "r1")
    held = {R1: True, twin: False}
    assert told(held, held, held, held) == [[], [NoticeKind.OFFLINE], [], []]


@given(st.lists(st.sampled_from([UP, DOWN, {}]), max_size=30))
def test_online_follows_offline_and_both_end_with_the_rental(looks: list[dict[Key, bool]]) -> None:
    """Of one rental: offline and online alternate, beginning with offline; an end starts anew."""
    state = "up"
    for kind in (kind for kinds in told(*looks) for kind in kinds):
        if kind is NoticeKind.OFFLINE:
            assert state == "up"
            state = "down"
        elif kind is NoticeKind.ONLINE:
            assert state == "down"
            state = "up"
        else:
            state = "up"


def test_what_we_rent_ourselves_is_ours_whatever_receipt_is_shown() -> None:
    story = Story()
    story.own(UP)
    story.receipts(R1)
    assert story.rows[R1].source is RentalSource.OWN
    story.own({})
    assert story.counting("hk") == {}
    story.receipts(R1)
    assert story.counting("hk")["hk"].validator == "other"


def test_a_rental_that_comes_back_has_its_baseline() -> None:
    story = Story()
    story.receipts(R1)
    story.rows[R1] = replace(story.rows[R1], specs="{}")
    story.receipts()
    assert not story.rows[R1].is_spent
    story.receipts(R1)
    assert story.rows[R1].specs == "{}"
    assert story.counting("hk") == {"hk": story.rows[R1]}


def test_a_receipt_counts_until_its_end() -> None:
    story = Story()
    story.receipts(R1, until=100)
    assert story.rows[R1].is_alive(99.9)
    assert not story.rows[R1].is_alive(100.0)


def test_a_host_key_counts_for_the_oldest_that_has_no_other() -> None:
    story = Story()
    story.own({("a", "r1"): True})
    story.receipts(("a", "r2"), ("b", "r2"), ("c", "r2"), ("d", "r1"))
    assert {hotkey: row.host_key for hotkey, row in story.counting("a", "d", "b", "c").items()} == {
        "a": "r1",
        "b": "r2",
    }
