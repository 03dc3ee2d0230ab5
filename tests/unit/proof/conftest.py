from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from compute.base.clock import Clock
from compute.proof.models import GpuModel, MachineVerdict, ProofSettings
from compute.proof.session import OnVerdict, Target, prove_batch
from compute.testing.clock import ManualClock

Prove = Callable[..., Awaitable[list[MachineVerdict]]]

CARD = GpuModel("Card", tflops16=5e-6, vram_gb=1.0, bandwidth_gbs=1e-3)
SETTINGS = ProofSettings(
    device="cpu", rows=1500, k=32, columns=32, tile_rows=512, min_passes=4, max_passes=4, connect_seconds=5.0
)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def prove(clock: ManualClock) -> Prove:
    """``prove_batch`` with a table of one card and a small statement; everything can be given instead."""

    async def run(
        targets: Sequence[Target],
        *,
        settings: ProofSettings = SETTINGS,
        model: GpuModel = CARD,
        on_verdict: OnVerdict = lambda target, verdict: None,
        executor: Executor | None = None,
        clock: Clock = clock,
        **changes: Any,
    ) -> list[MachineVerdict]:
        with ThreadPoolExecutor(1) as own:
            return await prove_batch(
                targets,
                validator_hotkey="validator",
                models={model.name: model},
                tolerance_pairs=[],
                settings=replace(settings, **changes),
                on_verdict=on_verdict,
                executor=executor or own,
                clock=clock,
            )

    return run
