from __future__ import annotations

from pathlib import Path

import pytest

from compute.base.store import Database
from compute.notices.notice import NoticeKind, Topic
from compute.notices.outbox import KEPT_NOTICES, KEPT_SECONDS, Outbox, pause_seconds
from compute.notices.rentals import Seen

BOTH = tuple(Topic)


@pytest.fixture
def outbox() -> Outbox:
    return Outbox(Database(":memory:"))


def kinds(outbox: Outbox, now: float) -> list[NoticeKind]:
    return [item.notice.kind for item in outbox.due(now, BOTH)]


def test_a_rental_that_ended_while_nobody_watched_is_told(tmp_path: Path) -> None:
    database = Database(tmp_path / "d.db")
    Outbox(database).observe([Seen("r1", "hk", True)], 0.0, BOTH)
    database.close()
    database = Database(tmp_path / "d.db")
    Outbox(database).observe([], 100.0, BOTH)
    database.close()
    assert kinds(Outbox(Database(tmp_path / "d.db")), 100.0) == [NoticeKind.DEALLOCATION]


def test_what_nobody_wants_to_hear_is_not_kept(outbox: Outbox) -> None:
    outbox.observe([Seen("r1", "hk", True)], 0.0, [])
    assert [notice.kind for notice in outbox.observe([], 1.0, [Topic.STATUS])] == [NoticeKind.DEALLOCATION]
    assert kinds(outbox, 1.0) == []


def test_failures_are_retried_ever_less_often(outbox: Outbox) -> None:
    outbox.observe([Seen("r1", "hk", True)], 0.0, BOTH)
    outbox.observe([], 0.0, BOTH)
    now = 0.0
    pauses = []
    for _ in range(12):
        (queued,) = outbox.due(now, BOTH)
        pause = outbox.failed(queued, now)
        assert outbox.due(now + pause - 0.1, BOTH) == []
        now += pause
        pauses.append(pause)
    assert pauses[:4] == [10.0, 20.0, 40.0, 80.0]
    assert pauses[-1] == pause_seconds(10_000) == 3600.0
    outbox.delivered(outbox.due(now, BOTH)[0].notice.notice_id)
    assert kinds(outbox, now + 1e6) == []


def test_the_outbox_is_bounded_in_time_and_number(outbox: Outbox) -> None:
    rentals = [Seen(f"r{number}", "hk", True) for number in range(KEPT_NOTICES + 5)]
    outbox.observe(rentals, 0.0, BOTH)
    outbox.observe([], 10.0, BOTH)
    assert outbox.drop_old(11.0) == 5
    assert outbox.due(11.0, BOTH, limit=1)[0].notice.rental == "r5"
    assert outbox.drop_old(10.0 + KEPT_SECONDS + 1) == KEPT_NOTICES
