"""A deadline that never swallows a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


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
