"""What the demo's exit status says where it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from compute.base.contention import EXIT_BUSY, Control
from compute.base.errors import ComputeError, ProofError
from compute.base.reasons import ProofReason
from compute.demo import __main__ as demo
from compute.demo.story import TooLate


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The demo owns its process: here it leaves signals and logs alone."""
    monkeypatch.setattr(demo.signal, "signal", lambda *_: None)
    monkeypatch.setattr(demo.logging, "disable", lambda _: None)
    monkeypatch.setattr(demo.tempfile, "mkdtemp", lambda prefix: str(tmp_path))


@pytest.mark.parametrize(
    ("error", "contention", "code"),
    [
        (TooLate("no verdicts within 180 s"), 1.5, EXIT_BUSY),
        (TooLate("no verdicts within 180 s"), 1.0, demo.EXIT_FAILED),
        (ProofError(ProofReason.NOT_RESIDENT, "slow passes"), 1.5, EXIT_BUSY),
        (ProofError(ProofReason.WRONG_ROW, "row 7"), 1.5, demo.EXIT_FAILED),
        (ComputeError("validator has ended, and should not have"), 1.5, demo.EXIT_FAILED),
    ],
)
def test_only_what_came_too_late_may_be_a_busy_machine_s_fault(
    error: Exception, contention: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def play(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(demo, "_play", play)
    options = demo.build_parser().parse_args([])
    assert demo.run(options, Control(lambda: contention)) == code
    said = capsys.readouterr().err
    assert str(error) in said
    assert ("busy: other programs use this machine" in said) is (code == EXIT_BUSY)
