"""The check of a commit before it is taken: its packages in an environment of their own, then its self-test."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compute.base.errors import UpdateError
from compute.base.reasons import UpdateReason
from compute.update.clone import REQUIREMENTS, Clone
from compute.update.decision import Offer
from compute.update.guard import SELF_TEST
from compute.update.trial import FOLDER

_INSTALL_SECONDS = 1800.0
_SWITCH_SECONDS = 900.0
_SELF_TEST_SECONDS = 300.0
_ANSWER_BYTES = 4096
_OUTPUT_BYTES = 1 << 20
_WORDS_BYTES = 300
_PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input", "--retries", "2", "--timeout", "30")

_running: set[subprocess.Popen[bytes]] = set()


@dataclass(frozen=True)
class Release:
    """A commit that has passed its check."""

    old: str
    offer: Offer
    packages: tuple[str, ...] = ()
    """What pip has to install for it, pinned; empty where all is there."""
    old_packages: tuple[str, ...] = ()
    """What brings the present state of those back."""


def check(clone: Clone, offer: Offer, role: str, argv: Sequence[str]) -> Release:
    """Let the offered commit show, in a working tree and a process of its own, that it would start. Blocks.

    The environment that the neuron runs in is not touched: packages go into one on top of it, which is thrown away.

    Raises:
        UpdateError: it does not. ``check_failed`` is the commit's fault, other reasons may pass.
    """
    overlay = clone.state / "packages"
    clone.verify(offer.commit)
    try:
        with clone.checked_out(offer.commit) as tree:
            python = sys.executable
            packages: tuple[str, ...] = ()
            old_packages: tuple[str, ...] = ()
            if clone.requirements_differ(clone.running, offer.commit):
                python = make_overlay(overlay)
                install(python, ["-r", str(tree / REQUIREMENTS)], _INSTALL_SECONDS)
                packages = frozen(sys.executable, "--path", str(_packages_of(overlay)))
                old_packages = _same(frozen(sys.executable), packages)
            self_test(tree, python, role, argv)
    finally:
        shutil.rmtree(overlay, ignore_errors=True)
    return Release(clone.running, offer, packages, old_packages)


def install_for(release: Release) -> None:
    """Bring the packages of a release into the environment of this process. Blocks.

    Raises:
        UpdateError: pip failed; some may be there.
    """
    if release.packages:
        install(sys.executable, ["--no-deps", *release.packages], _SWITCH_SECONDS)


def make_overlay(folder: Path) -> str:
    """A virtual environment that sees every package of this one; returns its Python."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    _run("python -m venv", command, 120.0, UpdateReason.INSTALL_FAILED)
    seen = dict.fromkeys([*site.getsitepackages(), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    if site.ENABLE_USER_SITE:
        seen[site.getusersitepackages()] = None
    # addsitedir also reads what is installed as editable there.
    lines = [f"import site; site.addsitedir({path!r})" for path in seen]
    (_packages_of(folder) / "below.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder / "bin" / "python")


def install(python: str, arguments: Sequence[str], seconds: float) -> None:
    """``pip install`` into the environment of ``python``.

    Raises:
        UpdateError: pip failed, or took too long.
    """
    _run("pip install", [python, *_PIP, "install", "--quiet", *arguments], seconds, UpdateReason.INSTALL_FAILED)


def frozen(python: str, *options: str) -> tuple[str, ...]:
    """The installed packages as requirements that bring back exactly these.

    Raises:
        UpdateError: pip failed.
    """
    command = [python, *_PIP, "freeze", "--exclude-editable", *options]
    text = _run("pip freeze", command, 120.0, UpdateReason.INSTALL_FAILED)
    return tuple(line for line in text.splitlines() if line and not line.startswith(("#", "-")))


def _same(installed: Sequence[str], packages: Sequence[str]) -> tuple[str, ...]:
    """Those of ``installed`` that ``packages`` would replace."""
    names = {_name(line) for line in packages}
    return tuple(line for line in installed if _name(line) in names)


def _name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\s@=]", requirement, maxsplit=1)[0]).lower()


def _packages_of(environment: Path) -> Path:
    return next((environment / "lib").glob("python3*")) / "site-packages"


def self_test(tree: Path, python: str, role: str, argv: Sequence[str], *, seconds: float = _SELF_TEST_SECONDS) -> None:
    """Start the neuron of ``tree`` with this neuron's command line, in its directory, up to its first step.

    What counts is its answer on a pipe that only it was told of, with a word that only it knows; what it prints is kept
    for the message alone.

    Raises:
        UpdateError: it failed, or took too long.
    """
    reading, writing = os.pipe()
    nonce = secrets.token_hex(16)
    command = [python, str(tree / "neurons" / f"{role}.py"), SELF_TEST, str(writing), nonce, *argv]
    try:
        words = _run("its self-test", command, seconds, UpdateReason.CHECK_FAILED, descriptor=writing)
        os.close(writing)
        writing = -1
        os.set_blocking(reading, False)
        try:
            answer = json.loads(os.read(reading, _ANSWER_BYTES))
            answered = answer["nonce"] == nonce and Path(answer["root"]) == tree.resolve()
        except (OSError, ValueError, KeyError, TypeError):
            answered = False
        if not answered:
            raise UpdateError(UpdateReason.CHECK_FAILED, f"its self-test ended without an answer: {_tail(words)}")
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)


def _run(
    what: str,
    command: Sequence[str],
    seconds: float,
    reason: UpdateReason,
    *,
    descriptor: int | None = None,
) -> str:
    """Run a program to its end, with all that it starts; returns what it printed."""
    with tempfile.TemporaryFile() as printed:
        try:
            process = subprocess.Popen(
                command,
                cwd=FOLDER,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                pass_fds=() if descriptor is None else (descriptor,),
                start_new_session=True,
            )
        except OSError as error:
            raise UpdateError(reason, f"{what} cannot be started: {error}") from error
        _running.add(process)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            message = f"{what} was not done after {seconds:.0f} s"
            raise UpdateError(UpdateReason.CHECK_TIMEOUT, message) from None
        finally:
            _running.discard(process)
            _end(process)
            process.wait()
        printed.seek(max(0, printed.seek(0, os.SEEK_END) - _OUTPUT_BYTES))
        text = printed.read().decode(errors="replace")
        if code != 0:
            raise UpdateError(reason, f"{what} ended with code {code}: {_tail(text)}")
        return text


def end_all() -> None:
    """End what a check in another thread has started; that check fails."""
    for process in list(_running):
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _tail(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-2:])[-_WORDS_BYTES:] or "it printed nothing"
