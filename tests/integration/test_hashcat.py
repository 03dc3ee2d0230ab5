"""Real hashcat, where it is installed, on a search small enough for a CPU."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hashcat import Challenge, Plan, crack, find_hashcat

from compute.base.errors import ProgramFailed
from tests.waiting import DEADLINE_SECONDS, until

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    shutil.which("hashcat") is None,
    reason="hashcat is not installed: apt-get install hashcat pocl-opencl-icd",
)


def test_hashcat_finds_the_password() -> None:
    # A colon separates hashcat's fields, and a leading hyphen looks like an option. One search only: on a machine that
    # has not run hashcat before, compiling its kernels takes half a minute.
    challenge = Challenge(":-=}", secrets.token_hex(8), "-:,=}{")
    attempt = crack(find_hashcat(), challenge, Plan((6,)), time_limit_seconds=300)
    assert (attempt.difficulty, attempt.solved) == (4, True)


def test_an_option_that_hashcat_does_not_know_is_quoted() -> None:
    with pytest.raises(ProgramFailed, match="bogus"):
        crack(find_hashcat(), Challenge.draw(4), Plan((6,), options=("--bogus",)))


def test_an_interrupt_ends_hashcat_too(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "test-scripts/benchmark.py", "hashcat", "--difficulty", "12"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        until(lambda: any(tmp_path.glob("hashcat-*/hashcat/sessions")), "hashcat runs and has made its folder")
        os.killpg(process.pid, signal.SIGINT)  # what a terminal sends on Ctrl-C, to the whole group
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, out) == (130, "")
    assert "interrupted" in err
    # A compiler that it runs may be ended in the middle of its own work.
    assert list(tmp_path.glob("hashcat-*")) == []
    until(lambda: not _alive(process.pid), "its whole group has ended")


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
