"""Whether other programs had this machine's processors while it was measured: then a bad figure says nothing about it.

A control measurement: threads that do nothing but compute, as many as the measured work has, and for each how much
longer than on a processor of its own it took. On an idle machine that is 1; beside one other busy program for each
processor it is 2.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

EXIT_BUSY = 75
"""The exit code of a program that could not measure; ``EX_TEMPFAIL`` in sysexits.h: try again later."""
MOST_CONTENTION = 1.2
"""Above this a measurement does not count. An idle machine is below 1.05."""
_SECONDS = 0.5
_BLOCK = bytes(1 << 20)
"""So much at once that hashlib lets go of the interpreter, and the threads run side by side."""


def contention(threads: int = 2) -> float:
    """How much longer the slowest of ``threads`` took than the processor time that it had; takes half a second.

    Never more threads than the processors that this process may use.
    """
    count = min(threads, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(count) as pool:
        return max(pool.map(lambda _: _spin(_SECONDS), range(count)))


def _spin(seconds: float) -> float:
    began, worked = time.perf_counter(), time.thread_time()
    while time.perf_counter() - began < seconds:
        hashlib.sha256(_BLOCK)
    return (time.perf_counter() - began) / max(time.thread_time() - worked, 1e-6)


class Control:
    """The control measurement of one run: one when it begins, and one more at each ``is_busy``."""

    def __init__(self, measure: Callable[[], float] = contention) -> None:
        self._measure = measure
        self.found = [measure()]

    def is_busy(self) -> bool:
        """Whether other programs disturbed the run, as far as it has come."""
        self.found.append(self._measure())
        return max(self.found) > MOST_CONTENTION

    def words(self) -> str:
        """What was found, for people."""
        factors = ", then ".join(f"{factor:.2f}" for factor in self.found)
        return (
            f"busy: other programs use this machine, so this run says nothing about it. Work of a fixed amount took "
            f"{factors} times as long as alone ({MOST_CONTENTION} is the most that counts). End them, and try again"
        )
