"""Brings notices to the operator's URLs. Certificates are verified, redirects are not followed."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Mapping
from urllib.parse import urlsplit

import aiohttp

from compute.base.clock import Clock
from compute.notices.notice import Topic
from compute.notices.outbox import Outbox, QueuedNotice

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10.0
FIRST_PAUSE_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 3600.0
KEPT_SECONDS = 3 * 86_400.0
"""A notice that nobody takes is tried for so long."""
_WORDS_OF_ANSWER = 200


def pause_seconds(tries: int) -> float:
    """How long to wait after the ``tries``-th failure: twice as long each time, up to an hour."""
    return float(min(FIRST_PAUSE_SECONDS * 2 ** min(tries - 1, 20), LONGEST_PAUSE_SECONDS))


class Delivery:
    """Empties the outbox, as far as the receivers let it. ``tasks.repeat`` calls ``deliver_due``."""

    def __init__(
        self,
        outbox: Outbox,
        urls: Mapping[Topic, str],
        clock: Clock,
        *,
        trust: ssl.SSLContext | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """``trust``: whose certificates count; by default the system's authorities."""
        self._outbox = outbox
        self._urls = dict(urls)
        self._clock = clock
        self._trust = trust or ssl.create_default_context()
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)

    async def deliver_due(self) -> None:
        """Try every notice that is due, once.

        A receiver that cannot be reached gets nothing more in this round; one that answers with an error gets the next
        notice all the same.

        Raises:
            StoreError: the outbox cannot be read or written.
        """
        now = self._clock.now()
        if dropped := self._outbox.drop_old(now - KEPT_SECONDS):
            logger.error("notices were never taken and are dropped", extra={"notices": dropped})
        due = self._outbox.due(now, self._urls.keys())
        if not due:
            return
        away: set[Topic] = set()
        # A session a round: rounds with something to say are rare, and no connection is kept for them.
        async with aiohttp.ClientSession(timeout=self._timeout) as session:
            for item in due:
                topic = item.notice.kind.topic
                if topic not in away and not await self._deliver(session, item):
                    away.add(topic)

    async def _deliver(self, session: aiohttp.ClientSession, item: QueuedNotice) -> bool:
        """One try; returns whether the receiver could be reached."""
        notice, url = item.notice, self._urls[item.notice.kind.topic]
        # The path of such a URL is often the secret that lets one post there.
        details: dict[str, object] = {
            "notice": notice.kind.value,
            "hotkey": notice.hotkey,
            "to": urlsplit(url).hostname,
        }
        try:
            async with session.post(
                url,
                data=notice.body(self._clock.now()),
                headers={"Content-Type": "application/json"},
                allow_redirects=False,
                ssl=self._trust,
            ) as answer:
                if answer.status // 100 == 2:
                    self._outbox.delivered(notice.notice_id)
                    logger.info("notice delivered", extra={**details, "tries": item.tries + 1})
                    return True
                words = (await answer.content.read(_WORDS_OF_ANSWER)).decode(errors="replace")
                problem, is_reached = f"status {answer.status}: {words}", True
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            problem, is_reached = type(error).__name__, False
        tries = item.tries + 1
        pause = pause_seconds(tries)
        self._outbox.failed(item, self._clock.now() + pause)
        extra = {**details, "problem": problem, "tries": tries, "next_try_seconds": pause}
        logger.warning("notice not delivered", extra=extra)
        return is_reached
