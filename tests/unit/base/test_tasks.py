import asyncio
import itertools

import pytest

from compute.base.errors import ChainUnreachable
from compute.base.tasks import repeat
from compute.testing.clock import ManualClock


async def run(clock: ManualClock, seconds: int) -> None:
    for _ in range(seconds):
        for _ in range(3):
            await asyncio.sleep(0)
        clock.advance(1.0)


async def test_errors_are_logged_and_the_duty_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    clock, calls = ManualClock(), []

    async def work() -> None:
        calls.append(clock.now())
        if len(calls) == 1:
            raise ChainUnreachable("no chain")
        if len(calls) == 2:
            raise ZeroDivisionError

    task = asyncio.create_task(repeat("weights", work, clock=clock, pause_seconds=2.0))
    await run(clock, 30)
    assert [round(later - earlier) for earlier, later in itertools.pairwise(calls)][:4] == [4, 8, 2, 2]
    assert "weights: no chain; next try in 4.0 s" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_pause_grows_to_five_minutes_at_most() -> None:
    clock, calls = ManualClock(), []

    async def work() -> None:
        calls.append(clock.now())
        raise ChainUnreachable("no chain")

    task = asyncio.create_task(repeat("sync", work, clock=clock, pause_seconds=100.0))
    await run(clock, 1200)
    gaps = [round(later - earlier) for earlier, later in itertools.pairwise(calls)]
    assert gaps == [200, 300, 300, 300]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
