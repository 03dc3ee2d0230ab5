from __future__ import annotations

import math
from typing import Any

import pytest

from compute.base.errors import ConfigError
from compute.proof.models import GpuModel, ProofSettings


@pytest.mark.parametrize(
    "options",
    [
        {"device": "tpu"},
        {"device": "cpu"},
        {"device": "cpu", "rows": 100},
        {"columns": 32770},
        {"columns": 33},
        {"columns": 0},
        {"k": 65536},
        {"k": 1001},
        {"rows": 0},
        {"opened_rows": 0},
        {"opened_passes": 0},
        {"min_passes": 2},
        {"max_passes": 7},
        {"time_tolerance": 0.5},
        {"time_tolerance": -0.1},
        {"time_tolerance": math.nan},
        {"compute_seconds": 0},
        {"phase_deadline_factor": 0.5},
    ],
)
def test_settings_out_of_bounds_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        ProofSettings(**options)
    assert any(key in str(caught.value) for key in options)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_model_needs_positive_numbers(value: float) -> None:
    with pytest.raises(ConfigError, match="bandwidth_gbs"):
        GpuModel("x", tflops16=1, vram_gb=1, bandwidth_gbs=value)
