"""``register.py`` from argv to exit code. The SDK is imported only once a command is known to make sense."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, TextIO

from compute.base.clock import Clock, SystemClock
from compute.base.errors import ComputeError
from compute.cli.exit_codes import Exit
from compute.cli.parser import Invocation, RenterOptions, build_parser, parse_renter

if TYPE_CHECKING:
    from compute.cli.terminal import Terminal
    from compute.rental.service import RenterService


OpenService = Callable[[RenterOptions], "AbstractAsyncContextManager[RenterService]"]


def main(
    argv: Sequence[str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    open_service: OpenService | None = None,
    terminal: Terminal | None = None,
    clock: Clock | None = None,
    stdout: TextIO | None = None,
    stderr: TextIO | None = None,
    width: int | None = None,
) -> int:
    """Run one command, or the shell; returns the exit code. Everything it touches may be given by a test."""
    words = list(sys.argv[1:] if argv is None else argv)
    stdout, stderr = stdout or sys.stdout, stderr or sys.stderr
    invocation = parse_renter(words, os.environ if environ is None else environ)
    try:
        return _run(
            invocation,
            words,
            open_service=open_service,
            terminal=terminal,
            clock=clock or SystemClock(),
            stdout=stdout,
            stderr=stderr,
            width=width,
        )
    except KeyboardInterrupt:
        # A terminal has shown ^C, and perhaps half a question before it.
        stderr.write("\ninterrupted\n" if stderr.isatty() else "interrupted\n")
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader, such as head, has seen enough; flushing at exit would only fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(
    invocation: Invocation,
    words: Sequence[str],
    *,
    open_service: OpenService | None,
    terminal: Terminal | None,
    clock: Clock,
    stdout: TextIO,
    stderr: TextIO,
    width: int | None,
) -> int:
    from compute.base.console import Output
    from compute.cli.commands import COMMANDS, Context
    from compute.cli.exit_codes import report
    from compute.cli.shell import Shell
    from compute.cli.terminal import Runner, SystemTerminal

    output = Output(stdout, stderr, as_json=invocation.as_json, width=width)
    if invocation.command == "completion":
        from compute.cli.completion import completion

        output.raw(completion(build_parser(), invocation.arguments["shell"]) + "\n", "")
        return 0
    try:
        with Runner() as runner:
            opening = (open_service or _open_real_service)(invocation.options)
            service = runner.run(opening.__aenter__())
            try:
                context = Context(
                    service=service,
                    output=output,
                    runner=runner,
                    terminal=terminal or SystemTerminal(sys.stdin, stderr),
                    clock=clock,
                    arguments=invocation.arguments,
                    remote=invocation.remote,
                    repeat=shlex.join(["register.py", *words, "--yes"]),
                )
                if invocation.command == "shell":
                    return Shell(context).run()
                return COMMANDS[invocation.command](context)
            finally:
                runner.run(opening.__aexit__(None, None, None))
    except ComputeError as error:
        return report(error, output, usage=f"All options: register.py {invocation.command} --help")


def _open_real_service(options: RenterOptions) -> AbstractAsyncContextManager[RenterService]:
    from compute.cli.wiring import open_service

    # What the SDK logs, it logs on stdout. It was imported by now, and its own switches have been seen.
    logging.disable(logging.CRITICAL)
    return open_service(options)
