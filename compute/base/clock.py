"""Time behind an interface, so that no test waits for it; and how people read it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from datetime import datetime, timezone
from typing import Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """Wall time, monotonic time and a sleep. Implementations never raise."""

    def now(self) -> float:
        """Seconds since the Unix epoch, UTC."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``; cancellable."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def utc(moment: float) -> str:
    """Unix seconds as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def utc_short(moment: float) -> str:
    """The same without year and letters, for a narrow column under the title UTC: ``01-31 12:00:00``."""
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%m-%d %H:%M:%S")


def duration(seconds: float) -> str:
    """The two largest units of a time span: ``89 d 23 h``; ``-`` for what is over."""
    if seconds <= 0:
        return "-"
    minutes = int(seconds) // 60
    days, hours = divmod(minutes // 60, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


async def within(seconds: float, awaitable: Awaitable[T]) -> T:
    """The result of ``awaitable``, or ``asyncio.TimeoutError`` after ``seconds``; it has ended either way.

    ``asyncio.wait_for`` before Python 3.12 returns the result, and goes on as if nothing had been asked, when it is
    cancelled in the same turn in which the result arrives.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise asyncio.TimeoutError
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                # Looked at, so that nobody reports it as forgotten.
                task.exception()
