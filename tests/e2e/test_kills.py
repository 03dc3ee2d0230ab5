"""SIGKILL to one process after the other: no other one ends, and the validator's next round shows the truth."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from compute.base.reasons import ProofReason
from compute.base.store import Database
from compute.demo.cast import Actor, Kind
from compute.demo.stage import VALIDATOR, Stage
from compute.localnet.settings import config_text
from compute.miner.leases.states import LeaseState
from compute.miner.leases.store import LeaseStore
from compute.proof.calibrate import calibrate_cpu
from compute.validator.show import MinerRow, miner_rows
from compute.validator.store import FactStore, WeightsState
from compute.wire.keys import SecretBox

from . import waiting

pytestmark = pytest.mark.e2e

_SECONDS = 180.0


class Subnet:
    """Two honest miners of one device each, a validator and a chain, seen through the validator's database."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def rows(self) -> dict[str, MinerRow]:
        database = Database(self.stage.database_path(VALIDATOR))
        try:
            by_hotkey = {row.hotkey: row for row in miner_rows(FactStore(database))}
        finally:
            database.close()
        names = {self.stage.hotkey(actor.name): actor.name for actor in self.stage.actors}
        return {names[hotkey]: row for hotkey, row in by_hotkey.items()}

    def confirmed_block(self) -> int:
        database = Database(self.stage.database_path(VALIDATOR))
        try:
            entry = FactStore(database).last_weights((WeightsState.CONFIRMED,))
        finally:
            database.close()
        return entry.block if entry is not None else -1

    def proven_at(self, name: str) -> float:
        """When the last verdict on it was found; 0 before the first."""
        row = self.rows().get(name)
        return row.proven_at or 0.0 if row is not None else 0.0

    def weights(self) -> dict[str, float]:
        return {name: row.weight for name, row in self.rows().items()}

    def reasons(self) -> dict[str, ProofReason]:
        return {name: row.reason for name, row in self.rows().items()}

    def is_leased(self, name: str) -> bool:
        database = Database(self.stage.database_path(name))
        try:
            # The key does not matter to who reads no secrets.
            holder = LeaseStore(database, SecretBox(bytes(32))).holder()
        finally:
            database.close()
        return holder is not None and holder.state is LeaseState.ACTIVE

    async def until(self, condition: Callable[[], bool]) -> None:
        await waiting.until(self.stage, condition, _SECONDS, self.rows)

    def kill(self, name: str) -> None:
        process = self.stage.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture
async def subnet(tmp_path: Path) -> AsyncIterator[Subnet]:
    actors = [Actor("one", Kind.HONEST), Actor("two", Kind.HONEST)]
    stage = Stage(tmp_path, actors, block_seconds=0.25)
    try:
        stage.config_path.write_text(config_text(await calibrate_cpu(runs=1), retries=8), encoding="utf-8")
        stage.start_chain()
        for name in (VALIDATOR, "one", "two"):
            stage.register(name)
        for actor in actors:
            stage.start_miner(actor)
        stage.start_validator()
        yield Subnet(stage)
    finally:
        stage.close()


async def test_any_process_may_be_killed(subnet: Subnet) -> None:
    stage = subnet.stage

    def both_are_paid() -> bool:
        return subnet.weights() == {"one": pytest.approx(0.5), "two": pytest.approx(0.5)}

    # The validator in the middle of a proof: the next one does not wait for the lost one's lease.
    await subnet.until(lambda: subnet.is_leased("one"))
    subnet.kill(VALIDATOR)
    stage.start_validator()

    # A miner in the middle of a proof, and back at once.
    await subnet.until(lambda: subnet.is_leased("two"))
    subnet.kill("two")
    killed_at = time.time()
    stage.start_miner(stage.actors[1])
    await subnet.until(lambda: subnet.proven_at("two") > killed_at and both_are_paid())

    # The validator at rest: a new one goes on where it was, and sets weights again.
    before = subnet.confirmed_block()
    subnet.kill(VALIDATOR)
    stage.start_validator()
    await subnet.until(lambda: subnet.confirmed_block() > before)
    assert both_are_paid()

    # The chain: nobody else ends; when it is back, it is the same chain, and gets weights again.
    before = subnet.confirmed_block()
    stage.node.kill()
    await subnet.until(lambda: "no chain at" in stage.log_tail(VALIDATOR))
    stage.node.start()
    await subnet.until(lambda: subnet.confirmed_block() > before)
    assert both_are_paid()

    # A miner: its weight falls to nothing, the other's does not; when it is back, it is paid again.
    subnet.kill("two")
    await subnet.until(
        lambda: (
            subnet.weights() == {"one": pytest.approx(1.0), "two": 0.0}
            and subnet.reasons() == {"one": ProofReason.OK, "two": ProofReason.UNREACHABLE}
        )
    )
    stage.start_miner(stage.actors[1])
    await subnet.until(both_are_paid)
