from __future__ import annotations

import asyncio

import pytest

from compute.base.clock import within


async def test_a_result_in_time_is_returned_and_an_error_raised() -> None:
    async def good() -> int:
        return 7

    async def bad() -> int:
        raise ValueError("bad")

    assert await within(10.0, good()) == 7
    with pytest.raises(ValueError, match="bad"):
        await within(10.0, bad())


async def test_what_is_late_has_ended_before_the_error_is_raised() -> None:
    ended = []

    async def late() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    with pytest.raises(asyncio.TimeoutError):
        await within(0.001, late())
    assert ended == [True]


async def test_a_cancellation_is_not_lost_when_the_result_arrives_with_it() -> None:
    result: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(within(10.0, result))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    result.set_result(1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_cancelling_ends_what_was_waited_for() -> None:
    ended = asyncio.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    waiting = asyncio.create_task(within(10.0, forever()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()
