"""The demo's own ``config.yaml``: a core of this machine as a model, measured, beside the H100 that somebody claims."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml

from compute.config import load_config
from compute.hardware import LOCALNET_CPU_MODEL
from compute.localnet.demo.cast import LIE
from compute.proof.calibrate import Calibration

RETRY_SECONDS = 2.0
RETRIES = 20
"""A busy computer measures badly for a while, and an honest machine should not fall for that."""


def write_config(path: Path, calibration: Calibration, *, retries: int = RETRIES) -> None:
    """Write the configuration that the demo's validator pays by; ``retries`` is ``pog_retry_limit``.

    Machines are proven one after the other: they are one machine, and would measure each other's share of it.
    """
    calibration = replace(calibration, model=replace(calibration.model, name=LOCALNET_CPU_MODEL))
    tables: dict[str, dict[str, float]] = calibration.performance_entry()
    shipped = load_config()
    h100 = shipped.models[LIE]
    tables["GPU_TFLOPS_FP16"][LIE] = h100.tflops16
    tables["GPU_VRAM_GB"][LIE] = h100.vram_gb
    scores = {LOCALNET_CPU_MODEL: 1.0, LIE: shipped.scores[LIE]}
    rounds = {
        "pog_retry_limit": retries,
        "pog_retry_interval": RETRY_SECONDS,
        "max_workers": 1,
        "max_random_delay": 0.0,
    }
    document = {
        "gpu_performance": {**tables, "gpu_scores": scores},
        "merkle_proof": {**calibration.settings_entry(), **rounds},
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
