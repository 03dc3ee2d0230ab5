"""A duty: one thing that a neuron does again and again, inside its own error boundary."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

from compute.base.clock import Clock
from compute.base.errors import ComputeError
from compute.base.metrics import DUTY_FAILURES, DUTY_SECONDS

logger = logging.getLogger(__name__)

_MAX_BACKOFF_SECONDS = 300.0
unexpected: Counter[str] = Counter()
"""By duty: how often it has failed in this process with an error that is none of this project's, a bug by all odds."""


async def repeat(name: str, work: Callable[[], Awaitable[object]], *, clock: Clock, pause_seconds: float) -> None:
    """Call ``work`` for ever, ``pause_seconds`` apart. An error is logged with its context and never ends the duty.

    After an error the pause doubles, up to five minutes; after a success it is as before. Only cancellation ends it.
    """
    backoff = pause_seconds
    while True:
        begun = clock.monotonic()
        try:
            await work()
        except asyncio.CancelledError:
            raise
        except ComputeError as error:
            DUTY_FAILURES.labels(name).inc()
            backoff = min(2 * backoff, _MAX_BACKOFF_SECONDS)
            logger.warning("%s: %s; next try in %.1f s", name, error, backoff)
        except Exception:
            # A bug in one duty ends neither the others nor this one; an update that is on trial counts it.
            DUTY_FAILURES.labels(name).inc()
            unexpected[name] += 1
            backoff = min(2 * backoff, _MAX_BACKOFF_SECONDS)
            logger.exception("%s failed unexpectedly; next try in %.1f s", name, backoff)
        else:
            backoff = pause_seconds
        DUTY_SECONDS.labels(name).observe(clock.monotonic() - begun)
        await clock.sleep(backoff)


async def give_way() -> None:
    """Between two steps of a duty that each take the event loop some milliseconds: let go first whatever waits.

    One turn would not do: what became due during the first step is queued in it, behind whoever asked for a turn.
    """
    for _ in range(2):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def beside(*duties: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run ``duties`` as tasks while the block runs; they are cancelled, and have ended, when it is left."""
    tasks = [asyncio.create_task(duty) for duty in duties]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
