"""What the demo says when the verdicts do not come, or not as they should."""

from __future__ import annotations

from dataclasses import replace

from compute.base.reasons import ProofReason
from compute.demo.cast import cast
from compute.demo.story import Scene, lacking
from compute.validator.show import MinerRow

_ROW = MinerRow(
    uid=1,
    hotkey="5Miner",
    claim_gpu="Localnet CPU core",
    claim_count=1,
    gpu=None,
    count=0,
    reason=ProofReason.OK,
    tflops16=0.01,
    score=1.0,
    weight=0.5,
    allocated=False,
    proven_at=1_700_000_000.0,
    detail="",
)


def test_the_demo_names_who_lacks_a_fitting_verdict_and_why() -> None:
    slow = replace(_ROW, reason=ProofReason.SLOWER_THAN_CLAIMED, detail="measured 0.015 TFLOPS")
    rows = (_ROW, slow, slow, None, replace(_ROW, proven_at=None))
    scenes = [Scene(actor, row, 0.0) for actor, row in zip(cast(5), rows, strict=True)]
    assert [scene.actor.name for scene in scenes] == ["honest-1", "honest-2", "liar", "dying", "honest-3"]
    assert lacking(scenes) == [
        "honest-2 is honest and got slower_than_claimed (measured 0.015 TFLOPS)",
        "dying has no verdict",
        "honest-3 has no verdict",
    ]
    assert lacking([replace(scene, row=_ROW) for scene in scenes]) == []
