"""``register.py`` in the test's own process, with real wallet, chain, transport and database: ``cli.main``."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from compute.cli import main as cli
from compute.cli.terminal import SystemTerminal


class Ran(NamedTuple):
    """As ``subprocess.CompletedProcess`` has it."""

    returncode: int
    stdout: str
    stderr: str


def in_process(words: Sequence[str], environ: Mapping[str, str], *, width: int | None = None) -> Ran:
    """One command with nobody at the keyboard; ``width`` is that of a terminal which stdout would be."""
    stdout, stderr = io.StringIO(), io.StringIO()
    disabled = logging.root.manager.disable
    # argparse prints to the process's own streams.
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), open(os.devnull) as nobody:
        try:
            code = cli.main(words, environ=environ, terminal=SystemTerminal(nobody, stderr), width=width)
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        finally:
            # The program switches logging off for good.
            logging.disable(disabled)
    return Ran(code, stdout.getvalue(), stderr.getvalue())
