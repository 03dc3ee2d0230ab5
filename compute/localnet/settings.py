"""A localnet's own ``config.yaml``: a core of this machine as a model, measured, beside an H100 that may be claimed."""

from __future__ import annotations

import yaml

from compute.incentive.config import load_config
from compute.proof.calibrate import Calibration
from compute.proof.models import CPU_MODEL

H100 = "NVIDIA H100 80GB HBM3"
RETRY_SECONDS = 2.0
RETRIES = 20
"""A busy computer measures badly for a while, and an honest machine should not fall for that."""


def config_text(calibration: Calibration, *, retries: int = RETRIES) -> str:
    """The configuration that a localnet's validator pays by; ``retries`` is ``pog_retry_limit``.

    Machines are proven one after the other: they are one machine, and would measure each other's share of it.
    """
    tables: dict[str, dict[str, float]] = calibration.performance_entry()
    shipped = load_config()
    h100 = shipped.models[H100]
    tables["GPU_TFLOPS_FP16"][H100] = h100.tflops16
    tables["GPU_VRAM_GB"][H100] = h100.vram_gb
    scores = {CPU_MODEL: 1.0, H100: shipped.scores[H100]}
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
    return yaml.safe_dump(document, sort_keys=False)
