"""What a command needs of the process around it: an event loop that Ctrl-C leaves tidily, and a terminal to ask."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import signal
import subprocess
import sys
import threading
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any, Protocol, TextIO, TypeVar

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Runner:
    """One event loop for all commands of a process, because connections belong to the loop that made them.

    Ctrl-C or SIGTERM cancels what runs, waits until it has cleaned up, and comes out as ``KeyboardInterrupt``.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` to its end and return its result.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM; ``work`` has been cancelled and has ended.
        """
        task = self._loop.create_task(work)
        # Signal handlers belong to the main thread; elsewhere no signal arrives.
        listening = threading.current_thread() is threading.main_thread()
        if listening:
            for number in _SIGNALS:
                self._loop.add_signal_handler(number, task.cancel)
        try:
            return self._loop.run_until_complete(task)
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        finally:
            if listening:
                for number in _SIGNALS:
                    self._loop.remove_signal_handler(number)


class Terminal(Protocol):
    """The person at the keyboard, or nobody."""

    @property
    def is_interactive(self) -> bool:
        """Whether somebody can answer."""

    def ask(self, question: str) -> str:
        """One line of input, without its newline.

        Raises:
            EOFError: there is no more input.
        """

    def call(self, argv: Sequence[str]) -> int:
        """Run a program that takes over the terminal, such as ssh; returns its exit code.

        Raises:
            OSError: it cannot be started.
        """


class SystemTerminal:
    """The process's own standard streams. Questions go to stderr, because stdout is data, and to nobody in a pipe."""

    def __init__(self, stdin: TextIO, stderr: TextIO) -> None:
        self._stdin = stdin
        self._stderr = stderr

    @property
    def is_interactive(self) -> bool:
        return self._stdin.isatty() and self._stderr.isatty()

    def ask(self, question: str) -> str:
        if self.is_interactive and self._stdin is sys.stdin and sys.stdout.isatty():
            return _edited_line(question)
        if self.is_interactive:
            self._stderr.write(question)
            self._stderr.flush()
        line = self._stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    def call(self, argv: Sequence[str]) -> int:
        code = subprocess.run(argv, check=False).returncode
        return code if code >= 0 else 128 - code


def _edited_line(question: str) -> str:
    """A line with editing and history, which Python's ``input`` has once readline is imported."""
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")
    return input(question)
