"""A clock that tests move by hand."""

from __future__ import annotations

import asyncio


class ManualClock:
    """A clock that a test moves by hand. ``sleep`` returns when ``advance`` has passed its end."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now

    @property
    def ends(self) -> list[float]:
        """When those who sleep now wake up, soonest first."""
        return sorted(end for end, _ in self._sleepers)

    def advance(self, seconds: float) -> None:
        """Move on by ``seconds`` and wake every sleeper whose time has come."""
        self._now += seconds
        due = [event for end, event in self._sleepers if end <= self._now]
        self._sleepers = [(end, event) for end, event in self._sleepers if end > self._now]
        for event in due:
            event.set()

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        sleeper = (self._now + seconds, asyncio.Event())
        self._sleepers.append(sleeper)
        try:
            await sleeper[1].wait()
        finally:
            self._sleepers = [each for each in self._sleepers if each is not sleeper]
