"""Which Python of a rented machine runs the worker."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from compute.proof.bootstrap import BOOTSTRAP
from tests.waiting import DEADLINE_SECONDS

SOURCE = b"import sys; print('it runs', sys.stdin.buffer.read(3), flush=True)\n"


def run(folder: Path, python3: str) -> subprocess.CompletedProcess[bytes]:
    """What sshd does with the command, on a machine whose ``python3`` is the shell script given."""
    program = folder / "python3"
    program.write_text(f"#!/bin/sh\n{python3}\n", encoding="utf-8")
    program.chmod(0o755)
    return subprocess.run(
        ["/bin/sh", "-c", shlex.join(BOOTSTRAP)],
        input=b"%d\n" % len(SOURCE) + SOURCE + b"abc",
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        env={"PATH": f"{folder}:/usr/bin:/bin"},
    )


def test_python3_with_torch_runs_the_worker_and_loses_no_byte_of_it(tmp_path: Path) -> None:
    ended = run(tmp_path, f'exec {shlex.quote(sys.executable)} "$@"')
    assert (ended.returncode, ended.stdout) == (0, b"it runs b'abc'\n")


@pytest.mark.skipif(Path("/opt/conda/bin/python").exists(), reason="this machine has conda where older images have it")
def test_without_torch_the_conda_of_older_images_is_tried(tmp_path: Path) -> None:
    ended = run(tmp_path, "exit 1")
    assert ended.returncode != 0
    assert b"/opt/conda/bin/python" in ended.stderr
