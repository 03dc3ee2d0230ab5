"""A validator for one table of two models, and machines in memory that tell it what they like."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import pytest

from compute.proof.models import Claim, GpuModel, MachineVerdict, ProofSettings
from compute.proof.session import Target, prove_batch
from compute.testing.clock import ManualClock
from compute.testing.proof import FakeMachine

# 20.5 million operations and 320 kB: 4.1 s of computing and 0.32 s a pass for the card of the table.
CARD = GpuModel("Card", tflops16=5e-6, vram_gb=1.0, bandwidth_gbs=1e-3)
BIG_CARD = GpuModel("Big Card", tflops16=50e-6, vram_gb=1.0, bandwidth_gbs=10e-3)
SETTINGS = ProofSettings(
    device="cpu",
    rows=2500,
    k=64,
    columns=64,
    tile_rows=512,
    min_passes=8,
    max_passes=8,
    # Long enough that a machine at an eighth of its claim learns so, rather than running into the deadline.
    phase_deadline_floor_seconds=60.0,
)

Prove = Callable[..., Awaitable[list[MachineVerdict]]]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List every cheat by name, with the reason that it was caught for and at what rate, where chance has a part."""
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        if report.when == "call"
    ]
    if not all(report.nodeid.startswith("tests/adversaries/") for report in reports):
        return
    terminalreporter.section("cheats")
    for report in sorted(reports, key=lambda report: str(report.nodeid)):
        file, name = report.nodeid.removeprefix("tests/adversaries/").split("::")
        rate = "".join(f": {value}" for key, value in report.user_properties if key == "rate")
        terminalreporter.write_line(f"{report.outcome}  {file}  {name}{rate}")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(scope="session")
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def build(clock: ManualClock) -> Callable[..., FakeMachine]:
    """A machine of the given class, as fast as the table's card unless told otherwise."""

    def make(kind: type[FakeMachine] = FakeMachine, **options: Any) -> FakeMachine:
        rates: dict[str, Any] = {"tflops16": CARD.tflops16, "bandwidth_gbs": CARD.bandwidth_gbs}
        return kind(clock, **{**rates, **options})

    return make


@pytest.fixture
def prove(clock: ManualClock, executor: Executor) -> Prove:
    """Prove machines in one batch; each claims as many cards as it has devices, unless ``claims`` says otherwise.

    ``then`` is called with each verdict when it is published.
    """

    async def run(
        *machines: FakeMachine,
        claims: Sequence[Claim] | None = None,
        then: Callable[[MachineVerdict], None] = lambda verdict: None,
    ) -> list[MachineVerdict]:
        published: dict[str, MachineVerdict] = {}

        def publish(target: Target, verdict: MachineVerdict) -> None:
            published[target.hotkey] = verdict
            then(verdict)

        listed = claims or [Claim(CARD.name, machine.count) for machine in machines]
        targets = [
            Target(f"miner-{number}", claim, machine.connect)
            for number, (machine, claim) in enumerate(zip(machines, listed, strict=True))
        ]
        verdicts = await prove_batch(
            targets,
            validator_hotkey="validator",
            models={CARD.name: CARD, BIG_CARD.name: BIG_CARD},
            tolerance_pairs=[],
            settings=SETTINGS,
            on_verdict=publish,
            executor=executor,
            clock=clock,
        )
        assert [published[target.hotkey] for target in targets] == verdicts
        assert all(machine.channel.closed for machine in machines)
        return verdicts

    return run
