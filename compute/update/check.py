"""The check of a commit before it is taken: its packages in a virtual environment of its own, then its self-test."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compute.base.errors import UpdateError
from compute.base.reasons import UpdateReason
from compute.update import clone
from compute.update import trial as trials
from compute.update.guard import SELF_TEST

_INSTALL_SECONDS = 1800.0
_FREEZE_SECONDS = 120.0
_SELF_TEST_SECONDS = 300.0
_ANSWER_BYTES = 4096


@dataclass(frozen=True)
class Release:
    """A commit that has passed its check."""

    old: str
    commit: str
    packages: tuple[str, ...] = ()
    """What pip has to install for it, pinned; empty where all is there."""
    old_packages: tuple[str, ...] = ()
    """What brings the present state of those back."""


def check(running: str, commit: str, role: str, argv: Sequence[str]) -> Release:
    """Let a commit show, in a working tree and a process of its own, that it would start. Blocks.

    The environment that the neuron runs in is not touched. Only under ``trial.lock``.

    Raises:
        UpdateError: it does not. ``check_failed`` is the commit's fault, other reasons may pass.
    """
    folder = trials.state_folder()
    assert folder is not None, "only a clone is updated"
    environment, python = folder / "environment", sys.executable
    wanted: list[str] = []
    replaced: list[str] = []
    clone.verify(commit)
    try:
        with clone.checked_out(commit, folder / "check") as tree:
            if clone.requirements_differ(running, commit):
                python = str(environment / "bin" / "python")
                _run([sys.executable, "-m", "venv", "--clear", str(environment)], _INSTALL_SECONDS)
                install(python, ["-r", str(tree / clone.REQUIREMENTS)], _INSTALL_SECONDS)
                installed = _frozen(sys.executable)
                wanted = [line for line in _frozen(python) if line not in installed]
                names = {_name(line) for line in wanted}
                replaced = [line for line in installed if _name(line) in names]
            self_test(tree, python, role, argv)
    finally:
        shutil.rmtree(environment, ignore_errors=True)
    return Release(running, commit, tuple(wanted), tuple(replaced))


def install(python: str, arguments: Sequence[str], seconds: float) -> None:
    """``pip install`` into the environment of ``python``.

    Raises:
        UpdateError: pip failed, or took too long; some packages may be there.
    """
    _run([python, *trials.PIP, "install", "--quiet", *arguments], seconds)


def _frozen(python: str) -> list[str]:
    """The installed packages as requirements that bring back exactly these."""
    text = _run([python, *trials.PIP, "freeze", "--exclude-editable"], _FREEZE_SECONDS)
    return [line for line in text.splitlines() if line and not line.startswith(("#", "-"))]


def _name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\s@=]", requirement, maxsplit=1)[0]).lower()


def self_test(tree: Path, python: str, role: str, argv: Sequence[str], *, seconds: float = _SELF_TEST_SECONDS) -> None:
    """Start the neuron of ``tree`` with this neuron's command line, in its directory, up to its first step.

    What counts is its answer on a pipe that only it was told of, with a word that only it knows; what it prints is kept
    for the message alone.

    Raises:
        UpdateError: it failed, or took too long.
    """
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    nonce = secrets.token_hex(16)
    try:
        command = [python, str(tree / "neurons" / f"{role}.py"), SELF_TEST, str(writing), nonce, *argv]
        _run(command, seconds, reason=UpdateReason.CHECK_FAILED, what="its self-test", descriptors=[writing])
        answer = json.loads(os.read(reading, _ANSWER_BYTES))
        answered = answer["nonce"] == nonce and Path(answer["root"]) == tree.resolve()
    except (OSError, ValueError, KeyError, TypeError):
        answered = False
    finally:
        os.close(reading)
        os.close(writing)
    if not answered:
        raise UpdateError(UpdateReason.CHECK_FAILED, "its self-test ended without an answer")


def _run(
    command: Sequence[str],
    seconds: float,
    *,
    reason: UpdateReason = UpdateReason.INSTALL_FAILED,
    what: str = "pip",
    descriptors: Sequence[int] = (),
) -> str:
    try:
        return trials.run(command, seconds, descriptors=descriptors)
    except trials.Failed as error:
        timed_out = isinstance(error.__cause__, subprocess.TimeoutExpired)
        raise UpdateError(UpdateReason.CHECK_TIMEOUT if timed_out else reason, f"{what}: {error}") from error
