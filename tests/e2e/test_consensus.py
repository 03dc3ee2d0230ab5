"""Three validators and eight miners through two epochs: who agrees is paid, who lies is clipped by the chain.

Two validators and all miners are the real programs. The third validator proves nobody: it gives all its weight to the
one miner that has nothing, through the same SDK.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compute.base.reasons import ProofReason
from compute.base.store import Database
from compute.chain.subtensor import SubtensorChain
from compute.demo.cast import Actor, Kind
from compute.demo.stage import NETUID, Stage
from compute.incentive.weights import U16_MAX, WeightRules, matches, to_chain
from compute.localnet.newcomer import make_wallet, register
from compute.localnet.process import NodeProcess
from compute.localnet.settings import config_text
from compute.proof.calibrate import Calibration, calibrate_cpu
from compute.validator.show import MinerRow, miner_rows
from compute.validator.store import FactStore

from . import waiting

pytestmark = pytest.mark.e2e

_SECONDS = 420.0
ROOT = Path(__file__).resolve().parents[2]
STAKES = {"first": 10_000, "second": 10_000, "crooked": 5_000}
AGREEING = ("first", "second")
FAVOURITE = "hollow"
MINERS = [
    Actor("double", Kind.HONEST, 2),
    *(Actor(f"single-{number}", Kind.HONEST) for number in range(1, 7)),
    Actor(FAVOURITE, Kind.LIAR),
]


class Subnet(Stage):
    """The stage with more than one validator."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, MINERS, block_seconds=0.5)
        self.node = NodeProcess(
            block_time_seconds=0.5, netuid=NETUID, state=folder / "chain.db", options=["--tempo", "30"]
        )

    def enrol(self, name: str, stake_alpha: int = 0) -> None:
        self.wallets[name] = make_wallet(name, "default", str(self.folder / "wallets"))
        register(self.node.endpoint, NETUID, self.wallets[name], stake_alpha=stake_alpha)

    def validate(self, name: str) -> None:
        options = [
            *self._shared_options(name),
            *("--config.file", str(self.config_path), "--axon.external_ip", "127.0.0.1"),
            *("--validator.specs.interval", "20", "--validator.proof.interval", "50000"),
        ]
        self._start(name, [sys.executable, str(ROOT / "neurons" / "validator.py"), *options])

    def rows(self, validator: str) -> dict[str, MinerRow]:
        database = Database(self.database_path(validator))
        try:
            by_hotkey = {row.hotkey: row for row in miner_rows(FactStore(database))}
        finally:
            database.close()
        return {
            actor.name: by_hotkey[self.hotkey(actor.name)] for actor in MINERS if self.hotkey(actor.name) in by_hotkey
        }

    def chain(self) -> dict[str, Any]:
        """The subnet as the chain has it, its neurons by name."""
        subnet: dict[str, Any] = self.node.client.snapshot(NETUID)["subnets"][str(NETUID)]
        names = {self.hotkey(name): name for name in self.wallets}
        return {**subnet, "neurons": {names[neuron["hotkey"]]: neuron for neuron in subnet["neurons"]}}

    def holds_the_scores_of(self, validator: str) -> bool:
        """Whether every verdict of this validator is as it should be, and the chain holds its scores as weights."""
        rows = self.rows(validator)
        if len(rows) < len(MINERS):
            return False
        for actor in MINERS:
            row = rows[actor.name]
            expected = actor.devices if actor.kind is Kind.HONEST else 0
            if row.proven_at is None or row.count != expected or (row.reason is ProofReason.OK) is not (expected > 0):
                return False
        neurons = self.chain()["neurons"]
        held = {int(uid): weight for uid, weight in neurons[validator]["weights"].items()}
        return matches(to_chain({row.uid: row.score for row in rows.values()}, WeightRules(), len(neurons)), held)

    async def until(self, condition: Callable[[], bool]) -> None:
        await waiting.until(self, condition, _SECONDS, lambda: {name: self.rows(name) for name in AGREEING})


def forgiving(calibration: Calibration) -> Calibration:
    """A device may be three times slower than alone on this machine: eight miners and two validators share it."""
    model = calibration.model
    assert model.bandwidth_gbs is not None
    slow = replace(model, tflops16=model.tflops16 / 3, bandwidth_gbs=model.bandwidth_gbs / 3)
    return replace(calibration, model=slow)


@pytest.fixture
async def subnet(tmp_path: Path) -> AsyncIterator[Subnet]:
    subnet = Subnet(tmp_path)
    try:
        calibration = forgiving(await calibrate_cpu(runs=1))
        subnet.config_path.write_text(config_text(calibration, retries=50), encoding="utf-8")
        subnet.start_chain()
        for name, stake in STAKES.items():
            subnet.enrol(name, stake)
        for actor in MINERS:
            subnet.enrol(actor.name)
            subnet.start_miner(actor)
        yield subnet
    finally:
        subnet.close()


async def test_those_who_agree_are_paid_and_a_liar_is_clipped(subnet: Subnet) -> None:
    await subnet.until(lambda: all(subnet.chain()["neurons"][actor.name]["axon"]["port"] for actor in MINERS))
    for name in AGREEING:
        subnet.validate(name)
    await subnet.until(lambda: all(map(subnet.holds_the_scores_of, AGREEING)))

    uid_of_favourite = subnet.chain()["neurons"][FAVOURITE]["uid"]
    crooked = SubtensorChain(subnet.node.endpoint, NETUID, subnet.wallets["crooked"])
    await crooked.set_weights({uid_of_favourite: U16_MAX})
    await crooked.close()

    # The first epoch to begin after the lie, and a second one, use the weights of all three.
    begun = int(subnet.chain()["epoch_index"])
    await subnet.until(lambda: int(subnet.chain()["epoch_index"]) >= begun + 3)
    await subnet.until(lambda: all(map(subnet.holds_the_scores_of, AGREEING)))
    chain = subnet.chain()
    neurons = chain["neurons"]
    assert neurons["crooked"]["weights"] == {str(uid_of_favourite): U16_MAX}

    incentives = {actor.name: neurons[actor.name]["incentive"] for actor in MINERS}
    scores = {name: row.score for name, row in subnet.rows("first").items()}
    for name, score in scores.items():
        share = incentives[name] / sum(incentives.values())
        assert share == pytest.approx(score / sum(scores.values()), abs=0.002), name
    assert incentives["double"] == pytest.approx(2 * incentives["single-1"], rel=0.01)
    assert incentives[FAVOURITE] == 0
    assert neurons[FAVOURITE]["consensus"] == 0

    assert neurons["crooked"]["validator_trust"] == 0
    assert neurons["crooked"]["dividends"] == 0
    assert neurons["crooked"]["validator_permit"], "it was heard, and not believed"
    for name in AGREEING:
        assert neurons[name]["validator_trust"] == pytest.approx(U16_MAX, rel=0.01)
        assert neurons[name]["dividends"] == pytest.approx(U16_MAX / 2, rel=0.02)
