from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from compute.base.store import Database
from compute.notices.delivery import Delivery, pause_seconds
from compute.notices.notice import Notice, NoticeKind, Topic
from compute.notices.outbox import KEPT_NOTICES, Outbox
from compute.testing.clock import ManualClock

BOTH = tuple(Topic)


@pytest.fixture
def outbox() -> Outbox:
    return Outbox(Database(":memory:"))


def put(outbox: Outbox, *rentals: str, at: float = 0.0, topics: Collection[Topic] = BOTH) -> None:
    """Each of these rentals has ended."""
    notices = [Notice.new(NoticeKind.DEALLOCATION, "hk", rental, at, "") for rental in rentals]
    with outbox._database.transaction() as connection:
        outbox.put(connection, notices, topics)


def kinds(outbox: Outbox, now: float) -> list[NoticeKind]:
    return [item.notice.kind for item in outbox.due(now, BOTH)]


def test_a_notice_survives_a_restart(tmp_path: Path) -> None:
    database = Database(tmp_path / "d.db")
    put(Outbox(database), "r1")
    database.close()
    assert kinds(Outbox(Database(tmp_path / "d.db")), 100.0) == [NoticeKind.DEALLOCATION]


def test_what_nobody_wants_to_hear_is_not_kept(outbox: Outbox) -> None:
    put(outbox, "r1", topics=[Topic.STATUS])
    assert kinds(outbox, 1.0) == []


def test_a_failed_notice_waits_for_its_next_try(outbox: Outbox) -> None:
    put(outbox, "r1")
    (queued,) = outbox.due(0.0, BOTH)
    outbox.failed(queued, 10.0)
    assert outbox.due(9.9, BOTH) == []
    (queued,) = outbox.due(10.0, BOTH)
    assert queued.tries == 1
    outbox.delivered(queued.notice.notice_id)
    assert kinds(outbox, 1e6) == []


def test_failures_are_retried_ever_less_often() -> None:
    assert [pause_seconds(tries) for tries in (1, 2, 3, 4)] == [10.0, 20.0, 40.0, 80.0]
    assert pause_seconds(12) == pause_seconds(10_000) == 3600.0


async def test_a_notice_is_tried_for_three_days(outbox: Outbox) -> None:
    put(outbox, "r1")
    clock = ManualClock(3 * 86_400.0)
    delivery = Delivery(outbox, {}, clock)
    await delivery.deliver_due()
    assert kinds(outbox, 1e6) == [NoticeKind.DEALLOCATION]
    clock.advance(1.0)
    await delivery.deliver_due()
    assert kinds(outbox, 1e6) == []


def test_the_outbox_is_bounded_in_time_and_number(outbox: Outbox) -> None:
    put(outbox, *(f"r{number}" for number in range(KEPT_NOTICES + 5)), at=10.0)
    assert outbox.drop_old(10.0) == 5
    assert outbox.due(11.0, BOTH, limit=1)[0].notice.rental == "r5"
    assert outbox.drop_old(10.1) == KEPT_NOTICES
