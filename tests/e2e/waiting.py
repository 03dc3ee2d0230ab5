"""How a test waits for what a stage's processes do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from compute.demo.stage import Stage


async def until(stage: Stage, condition: Callable[[], object], seconds: float, seen: Callable[[], object]) -> None:
    """Return once ``condition`` holds. Fails if a process ends before, or ``seconds`` pass: then ``seen`` says why."""
    deadline = time.monotonic() + seconds
    while not condition():
        fallen = stage.fallen()
        assert fallen is None, stage.log_tail(fallen or "")
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {seen()}"
        await asyncio.sleep(0.2)
