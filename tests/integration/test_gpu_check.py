"""test-scripts/gpu_check.sh as it is started on a machine with a GPU: here in small on a CPU, and without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from compute.base.contention import EXIT_BUSY

SCRIPT = Path(__file__).resolve().parents[2] / "test-scripts" / "gpu_check.sh"


def start(*arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": python, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], env=environment, cwd="/", capture_output=True, text=True, timeout=240
    )


def test_everything_passes_in_small_on_a_cpu(tmp_path: Path) -> None:
    written = tmp_path / "gpu_check.json"
    ran = start("--device", "cpu", "--output", str(written))
    document = json.loads(written.read_text(encoding="utf-8"))
    found = {check["name"]: check for check in document["checks"]}
    if ran.returncode == EXIT_BUSY:
        # Time is what gives the prover away that drops C, and here something else took it.
        assert all(check["ok"] or check["timed"] for check in found.values())
    else:
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert found["honest proofs pass"]["ok"]
        assert found["a prover that drops C is caught"]["detail"].startswith(("not_resident", "slower_than_claimed"))
    assert found["C is the exact product"]["ok"]
    assert found["C lies in the device's memory"]["ok"]
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
