"""The check of a GPU machine: what it makes of what it finds. The path itself runs in tests/integration."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from gpu_inspection import Inspection

from compute.base.contention import EXIT_BUSY, MOST_CONTENTION, Control
from compute.base.errors import ProofError
from compute.base.reasons import ProofReason
from compute.incentive.config import parse_config
from compute.proof.calibrate import Calibration
from compute.proof.frames import Hello
from compute.proof.models import Claim, DeviceInfo, DeviceMeasurement, GpuModel, MachineVerdict, ProofSettings
from compute.proof.statement import Dims

ROOT = Path(__file__).resolve().parents[3]
DIMS = Dims(rows=300, k=64, columns=128, passes=3, tile_rows=128)
CARD = GpuModel("NVIDIA Unlisted", tflops16=560.0, vram_gb=84.9, bandwidth_gbs=2000.0)
FIGURES = {"mm_tflops": 600.0, "copy_gbs": 2600.0}


@pytest.fixture(scope="module")
def gpu_check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "test-scripts" / "gpu_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


def test_an_honest_c_is_exact_and_there() -> None:
    inspection = Inspection("cpu", DIMS, bytes(32))
    wrong, compared, largest = inspection.wrong_entries()
    assert (wrong, compared) == (0, 2 * 4 * 32 * DIMS.columns)
    assert 0 < largest < 2**24
    assert inspection.resident_bytes() == DIMS.resident_bytes


def test_one_wrong_entry_of_a_sampled_row_is_found() -> None:
    inspection = Inspection("cpu", DIMS, bytes(32))
    inspection._device.c[DIMS.rows - 1, 17] += 1
    assert inspection.wrong_entries()[0] >= 1


def test_a_product_that_rounds_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    inspection = Inspection("cpu", DIMS, bytes(32))
    # Half precision on the way, as a product summed in fp16 would have it: below 2^24, but beyond 2^11.
    monkeypatch.setattr(inspection._device, "product", lambda a: torch.mm(a, inspection._device.b).half().float())
    assert inspection.wrong_entries()[0] > 0


def test_the_figures_compare_the_proof_with_a_bare_product_and_a_copy() -> None:
    figures = Inspection("cpu", DIMS, bytes(32)).figures(0.001)
    assert all(value > 0 for name, value in figures.items() if name != "fused_kernels")
    assert figures["compute_over_mm_ratio"] == pytest.approx(figures["compute_tflops"] / figures["mm_tflops"])
    assert figures["pass_over_copy_ratio"] == pytest.approx(figures["pass_gbs"] / figures["copy_gbs"])


def test_it_needs_numpy_and_torch_and_nothing_else() -> None:
    program = (
        "import sys; before = set(sys.modules) | set(sys.stdlib_module_names)\n"
        "sys.path[:0] = ['test-scripts', '.']\n"
        "sys.modules['torch'] = type(sys)('torch')\n"  # whatever torch itself brings with it is there
        "import gpu_check, compute.proof.worker, gpu_inspection\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} - before))"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.stderr == ""
    assert ran.stdout.strip() == "['compute', 'gpu_check', 'gpu_inspection', 'numpy', 'torch']"


def verdict(reason: ProofReason) -> MachineVerdict:
    measured = DeviceMeasurement(0, reason, compute_seconds=4.5, rehash_seconds=2.1)
    return MachineVerdict(reason, Claim(CARD.name, 1), devices=(measured,), detail="")


class FakeInspection:
    wrong = 0

    def __init__(self, kind: str, dims: Dims, nonce: bytes) -> None:
        self.dims = dims

    def wrong_entries(self) -> tuple[int, int, int]:
        return self.wrong, 1000, 2**23

    def resident_bytes(self) -> int:
        return self.dims.resident_bytes

    def figures(self, least_seconds: float) -> dict[str, float]:
        return dict(FIGURES)


Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def run(gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run it on a machine with one GPU that is made up: exit code and document."""

    def start(
        *,
        devices: int = 1,
        honest: ProofReason = ProofReason.OK,
        dropper: ProofReason = ProofReason.NOT_RESIDENT,
        wrong: int = 0,
        error: Exception | None = None,
        contention: float = 1.0,
    ) -> tuple[int, dict[str, Any]]:
        async def hello(kind: str) -> Hello:
            return Hello("2.11.0", (DeviceInfo(CARD.name, "GPU-1", 85 * 10**9),) * devices)

        async def calibrate(*, devices: int, runs: int) -> Calibration:
            if error is not None:
                raise error
            return Calibration(CARD, ProofSettings())

        async def prove(claim: Claim, *statement: object, argv: list[str] | None = None) -> MachineVerdict:
            assert argv is None or (argv[-1] == "--drop-c" and claim.count == 1)
            return verdict(honest if argv is None else dropper)

        monkeypatch.setattr(gpu_check, "Control", lambda: Control(lambda: contention))
        monkeypatch.setattr(gpu_check, "devices_here", hello)
        monkeypatch.setattr(gpu_check, "calibrate_cuda", calibrate)
        monkeypatch.setattr(gpu_check, "prove_here", prove)
        monkeypatch.setattr("gpu_inspection.Inspection", FakeInspection)
        monkeypatch.setattr(FakeInspection, "wrong", wrong)
        code = gpu_check.main(["--output", str(tmp_path / "new" / "result.json")])
        written = tmp_path / "new" / "result.json"
        return code, json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}

    return start


def test_a_machine_that_passes(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = run(devices=2)
    assert (code, document["ok"], document["devices"], document["torch"]) == (0, True, 2, "2.11.0")
    assert document["figures"]["proof_over_mm_ratio"] == pytest.approx(560 / 600)
    assert document["figures"]["copy_over_pass_ratio"] == pytest.approx(1.3)
    assert [goal["met"] for goal in document["goals"]] == [True, True, True]
    printed = capsys.readouterr().out
    assert printed.startswith("2 × NVIDIA Unlisted, torch 2.11.0\n")
    assert "FAILED" not in printed
    entries = yaml.safe_load(printed.split("# for config.yaml\n")[1])
    entries["gpu_performance"]["gpu_scores"] = {CARD.name: 1.0}
    assert parse_config(yaml.safe_dump(entries)).models == {CARD.name: replace(CARD, score=1.0)}


@pytest.mark.parametrize(
    ("machine", "check"),
    [
        ({"honest": ProofReason.SLOWER_THAN_CLAIMED}, "a claim of the new entry is proven"),
        ({"dropper": ProofReason.OK}, "a prover that drops C is caught"),
        ({"dropper": ProofReason.WORKER_FAILED}, "a prover that drops C is caught"),
        ({"wrong": 1}, "C is the exact product"),
    ],
)
def test_each_check_can_fail(machine: dict[str, Any], check: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = run(**machine)
    assert (code, document["ok"]) == (1, False)
    assert [found["name"] for found in document["checks"] if not found["ok"]] == [check]
    assert f"FAILED  {check}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "machine",
    [
        {"honest": ProofReason.SLOWER_THAN_CLAIMED},
        {"dropper": ProofReason.OK},
        {"error": ProofError(ProofReason.NOT_RESIDENT, "slow passes")},
    ],
)
def test_what_failed_while_other_programs_had_the_processors_says_nothing(
    machine: dict[str, Any], run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document = run(**machine, contention=1.5)
    assert (code, document["ok"], document["busy"]) == (EXIT_BUSY, False, True)
    printed = capsys.readouterr()
    assert "busy    " in printed.out
    assert "FAILED" not in printed.out
    assert "1.50" in printed.err
    assert run(**machine, contention=MOST_CONTENTION)[0] == 1


@pytest.mark.parametrize(
    "machine",
    [
        {"wrong": 1, "honest": ProofReason.TIMEOUT},
        {"honest": ProofReason.WRONG_ROW},
        {"dropper": ProofReason.WORKER_FAILED},
        {"error": ProofError(ProofReason.WRONG_ROW, "row 7")},
        {"error": RuntimeError("CUDA error")},
    ],
)
def test_what_no_other_program_can_be_the_reason_of_is_a_failure(machine: dict[str, Any], run: Run) -> None:
    assert run(**machine, contention=9.0)[0] == 1


def test_a_busy_machine_that_passes_has_passed(run: Run) -> None:
    assert run(contention=9.0)[0] == 0


def test_after_failed_proofs_c_is_inspected_all_the_same(run: Run) -> None:
    code, document = run(error=ProofError(ProofReason.WRONG_ROW, "row 7"), wrong=3)
    assert code == 1
    assert [(check["name"], check["ok"]) for check in document["checks"]] == [
        ("honest proofs pass", False),
        ("C is the exact product", False),
        ("C lies in the device's memory", True),
    ]
    assert document["checks"][0]["detail"] == "wrong_row: row 7"
    assert document["figures"]["k"] == 32768
    assert document["config"] == {}


def test_whatever_torch_raises_is_in_the_report(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = run(error=RuntimeError("CUDA error: misaligned address"))
    assert (code, document["ok"]) == (1, False)
    assert document["checks"][-1]["detail"] == "RuntimeError: CUDA error: misaligned address"
    assert "Traceback" in capsys.readouterr().err


def test_without_a_gpu_nothing_is_written(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(devices=0) == (3, {})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no GPU here, so the CUDA path has not run" in captured.err


def test_a_run_without_a_check_has_not_passed(gpu_check: ModuleType) -> None:
    assert not gpu_check.Report("cuda").ok
