from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from compute.base.contention import EXIT_BUSY, Control
from compute.base.errors import ProofError
from compute.base.reasons import ProofReason
from compute.incentive.config import parse_config
from compute.proof.calibrate import Calibration, cpu_calibration
from compute.proof.models import CPU_MODEL, GpuModel, ProofSettings

SCRIPT = Path(__file__).parents[3] / "test-scripts" / "benchmark.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def contention(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the control measurements find, each in turn; the last of them stays."""
    found = [1.0]
    monkeypatch.setattr(benchmark, "Control", lambda: Control(lambda: found.pop(0) if len(found) > 1 else found[0]))
    return found


def measuring(found: Calibration) -> Callable[..., Any]:
    async def measure(*, devices: int, runs: int, on_run: Callable[[], None]) -> Calibration:
        for _ in range(runs):
            on_run()
        return found

    return measure


CPU = cpu_calibration(GpuModel(CPU_MODEL, 0.1, 1.0, 1.5))
CUDA = Calibration(GpuModel("NVIDIA Unlisted", 560.0, 84.9, 2000.0), ProofSettings())


def test_proof_prints_one_json_object_and_nothing_else(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "calibrate_cpu", measuring(CPU))
    assert benchmark.main(["proof", "--device", "cpu", "--devices", "2", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert (found["name"], found["devices"], found["tflops16"]) == (CPU_MODEL, 2, 0.1)
    page = (SCRIPT.parents[1] / "docs" / "measurements.md").read_text(encoding="utf-8")
    assert [key for key in found if f"`{key}`" not in page] == []
    assert captured.err == ""


def test_beside_other_programs_a_figure_is_printed_and_does_not_count(
    benchmark: ModuleType,
    contention: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    contention[:] = [1.5, 1.0]
    monkeypatch.setattr(benchmark, "verification", lambda: {"verify_gpu_ms": 30.0})
    assert benchmark.main(["verify", "--json"]) == EXIT_BUSY
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"verify_gpu_ms": 30.0}
    assert captured.err.startswith("busy: ")


def test_a_gpu_is_compared_with_the_table(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "calibrate_cuda", measuring(CUDA))
    assert benchmark.main(["proof", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nearest_in_config"] == "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(("device", "found"), [("cpu", CPU), ("cuda", CUDA)])
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_the_emitted_entries_are_a_valid_configuration(
    device: str,
    found: Calibration,
    flags: list[str],
    benchmark: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(benchmark, f"calibrate_{device}", measuring(found))
    assert benchmark.main(["proof", "--device", device, "--emit-config", *flags]) == 0
    entries = yaml.safe_load(capsys.readouterr().out)
    entries["gpu_performance"]["gpu_scores"] = {found.model.name: 1.0}
    config = parse_config(yaml.safe_dump(entries))
    assert config.models[found.model.name] == replace(found.model, score=1.0)
    assert config.proof == found.settings


def test_a_machine_that_cannot_be_measured_is_exit_code_1_and_says_why(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def measure(**options: object) -> Calibration:
        raise ProofError(ProofReason.NO_GPU, "torch sees no GPU; try --device cpu")

    monkeypatch.setattr(benchmark, "calibrate_cuda", measure)
    assert benchmark.main(["proof"]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: torch sees no GPU; try --device cpu\n")


def test_verify_prints_the_validators_cost(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "verification", lambda: {"shared_u_seconds": 1.5, "verify_gpu_ms": 13.4})
    assert benchmark.main(["verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"shared_u_seconds": 1.5, "verify_gpu_ms": 13.4}
    assert benchmark.main(["verify"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["shared_u_seconds", "1.5"] in lines
    assert ["verify_gpu_ms", "13.4"] in lines


@pytest.mark.parametrize("argv", [["proof", "--devices", "0"], ["proof", "--device", "tpu"], ["--json"]])
def test_wrong_usage_is_exit_code_2(argv: list[str], benchmark: ModuleType) -> None:
    with pytest.raises(SystemExit) as caught:
        benchmark.main(argv)
    assert caught.value.code == 2
