"""How every test waits: for a condition, and never for a time.

There is one deadline. It is generous, because a test must not bet on how busy the machine is: only a bug reaches it,
and then the failure shows what was seen. A limit that is itself under test runs on an injected clock.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from compute.testing.clock import ManualClock

DEADLINE_SECONDS = 120.0

T = TypeVar("T")


def until(
    condition: Callable[[], T],
    what: str = "the condition",
    *,
    dump: Callable[[], object] | None = None,
    pause_seconds: float = 0.02,
) -> T:
    """Poll ``condition`` until it holds, and return its value.

    ``what`` is awaited, in words; ``dump`` gives what helps to understand a failure, such as the end of a log.

    Raises:
        AssertionError: it does not hold within ``DEADLINE_SECONDS``.
    """
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (value := condition()):
        if time.monotonic() >= deadline:
            raise AssertionError(_seen(what, value, dump))
        time.sleep(pause_seconds)
    return value


async def until_async(
    condition: Callable[[], T | Awaitable[T]],
    what: str = "the condition",
    *,
    dump: Callable[[], object] | None = None,
    passing: ManualClock | None = None,
    step: float = 1.0,
    pause_seconds: float = 0.001,
) -> T:
    """As ``until``, while the event loop runs. ``condition`` may be a coroutine function.

    ``passing`` is a clock that moves on by ``step`` seconds at each look: whoever waits by it may have been between
    reading it and going to sleep when a test moved it.
    """
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        found = condition()
        value = await found if inspect.isawaitable(found) else found
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(_seen(what, value, dump))
        await asyncio.sleep(pause_seconds)
        if passing is not None:
            passing.advance(step)


def _seen(what: str, value: object, dump: Callable[[], object] | None) -> str:
    seen = f"not within {DEADLINE_SECONDS:.0f} s: {what}; its last value was {value!r}"
    return seen if dump is None else f"{seen}\n{dump()}"
