"""test-scripts/gpu_check.sh as it is started on a machine with a GPU: here in small on a CPU, and without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "test-scripts" / "gpu_check.sh"


def start(*arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": python, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], env=environment, cwd="/", capture_output=True, text=True, timeout=240
    )


def test_everything_passes_in_small_on_a_cpu(tmp_path: Path) -> None:
    written = tmp_path / "gpu_check.json"
    ran = start("--device", "cpu", "--output", str(written))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    document = json.loads(written.read_text(encoding="utf-8"))
    assert [check["name"] for check in document["checks"] if check["ok"]] == [
        "honest proofs pass",
        "a prover that drops C is caught",
        "C is the exact product",
        "C lies in the device's memory",
    ]
    # Nothing but the time of its passes gives the prover away.
    assert document["checks"][1]["detail"].startswith(("not_resident", "slower_than_claimed"))
    assert "FAILED" not in ran.stdout
    page = (SCRIPT.parents[1] / "docs" / "measurements.md").read_text(encoding="utf-8")
    assert [name for name in document["figures"] if f"`{name}`" not in page] == []


def test_without_a_gpu_it_says_so_and_has_a_code_of_its_own(tmp_path: Path) -> None:
    ran = start("--output", str(tmp_path / "none.json"))
    assert (ran.returncode, ran.stdout) == (3, "")
    assert "no GPU here, so the CUDA path has not run" in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_torch_it_says_so(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n', encoding="utf-8")
    bare.chmod(0o755)
    ran = start(python=str(bare))
    assert (ran.returncode, ran.stdout) == (3, "")
    assert "has no torch numpy, so the CUDA path cannot run" in ran.stderr
