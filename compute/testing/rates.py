"""A configuration for tests in which a proof is only a step: no machine is too slow or too busy for it.

What measures a machine (the demo, the benches) measures its rates first, by ``compute.proof.calibrate``. A test that
did so would fail whenever something else takes the processor between the two.
"""

from __future__ import annotations

from dataclasses import replace

from compute.localnet.settings import RETRIES, config_text
from compute.proof.calibrate import Calibration, cpu_calibration
from compute.proof.models import CPU_MODEL, GpuModel

_CORE = GpuModel(CPU_MODEL, tflops16=5e-4, vram_gb=1e-6, bandwidth_gbs=8e-3)
"""A hundredth of the least that docs/measurements.md found for a core of a machine with two."""


def easy_rates() -> Calibration:
    """A processor core as a device that is a hundred times slower than any real one.

    Its statement is the smallest that there is. Many passes, since half of the time that computing takes is what all
    of them together may take for each: one pause of this machine, of a second or two, does not disprove C.
    """
    core = cpu_calibration(_CORE)
    patient = replace(core.settings, min_passes=64, max_passes=64, phase_deadline_floor_seconds=120.0)
    return replace(core, settings=patient)


def easy_config(*, retries: int = RETRIES) -> str:
    """The text of a ``config.yaml`` with those rates; see ``config_text``."""
    return config_text(easy_rates(), retries=retries)
