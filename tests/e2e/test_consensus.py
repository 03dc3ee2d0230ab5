"""Three validators and eight miners through two epochs: who agrees is paid, who lies is clipped by the chain.

Two validators and all miners are the real programs. The third validator proves nobody: it gives all its weight to the
one miner that has nothing, through the same SDK.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compute.base.reasons import ProofReason
from compute.chain.subtensor import SubtensorChain
from compute.demo.cast import Actor, Kind
from compute.demo.stage import NETUID
from compute.incentive.weights import U16_MAX, WeightRules, matches, to_chain
from compute.localnet.newcomer import make_wallet, register
from compute.localnet.process import NodeProcess

from .subnet import ROOT, Subnet

pytestmark = [pytest.mark.e2e, pytest.mark.long]

STAKES = {"first": 10_000, "second": 10_000, "crooked": 5_000}
AGREEING = ("first", "second")
FAVOURITE = "hollow"
MINERS = [
    Actor("double", Kind.HONEST, 2),
    *(Actor(f"single-{number}", Kind.HONEST) for number in range(1, 7)),
    Actor(FAVOURITE, Kind.LIAR),
]


class Disagreeing(Subnet):
    """A subnet with more than one validator."""

    retries = 50

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, MINERS, block_seconds=0.5)
        self.node = NodeProcess(
            block_time_seconds=0.5, netuid=NETUID, state=folder / "chain.db", options=["--tempo", "30"]
        )

    def prepare(self) -> None:
        self.write_config()
        self.start_chain()
        for name in (*STAKES, *(actor.name for actor in MINERS)):
            self.wallets[name] = make_wallet(name, "default", str(self.folder / "wallets"))
            register(self.node.endpoint, NETUID, self.wallets[name], stake_alpha=STAKES.get(name, 0))

    def validate(self, name: str) -> None:
        options = [
            *self._shared_options(name),
            *("--config.file", str(self.config_path), "--axon.external_ip", "127.0.0.1"),
            *("--validator.specs.interval", "20", "--validator.proof.interval", "50000"),
        ]
        self._start(name, [sys.executable, str(ROOT / "neurons" / "validator.py"), *options])

    def chain(self) -> dict[str, Any]:
        """The subnet as the chain has it, its neurons by name."""
        subnet: dict[str, Any] = self.node.client.snapshot(NETUID)["subnets"][str(NETUID)]
        names = {self.hotkey(name): name for name in self.wallets}
        return {**subnet, "neurons": {names[neuron["hotkey"]]: neuron for neuron in subnet["neurons"]}}

    def proven_by(self, validator: str) -> int:
        """On how many miners this validator's verdict is as it should be."""
        rows = self.rows(validator)

        def is_right(actor: Actor) -> bool:
            row = rows.get(actor.name)
            devices = actor.devices if actor.kind is Kind.HONEST else 0
            return (
                row is not None
                and row.proven_at is not None
                and row.count == devices
                and (row.reason is ProofReason.OK) is (devices > 0)
            )

        return sum(map(is_right, MINERS))

    def holds_the_scores_of(self, validator: str) -> bool:
        """Whether every verdict of this validator is as it should be, and the chain holds its scores as weights."""
        if self.proven_by(validator) < len(MINERS):
            return False
        rows = self.rows(validator)
        neurons = self.chain()["neurons"]
        held = {int(uid): weight for uid, weight in neurons[validator]["weights"].items()}
        return matches(to_chain({row.uid: row.score for row in rows.values()}, WeightRules(), len(neurons)), held)


async def lie(subnet: Subnet, weights: dict[int, int]) -> None:
    """Set these weights as the third validator."""
    chain = SubtensorChain(subnet.node.endpoint, NETUID, subnet.wallets["crooked"])
    await chain.set_weights(weights)
    await chain.close()


@pytest.fixture
def subnet(tmp_path: Path) -> Iterator[Disagreeing]:
    subnet = Disagreeing(tmp_path)
    try:
        subnet.prepare()
        for actor in MINERS:
            subnet.start_miner(actor)
        yield subnet
    finally:
        subnet.close()


def test_those_who_agree_are_paid_and_a_liar_is_clipped(subnet: Disagreeing) -> None:
    subnet.until(
        lambda: all(subnet.chain()["neurons"][actor.name]["axon"]["port"] for actor in MINERS), "every axon is known"
    )
    for name in AGREEING:
        subnet.validate(name)
    for name in AGREEING:
        # Eight proofs one after the other, in any order, take longer than all else that a test waits for.
        while (proven := subnet.proven_by(name)) < len(MINERS):
            subnet.until(
                lambda name=name, proven=proven: subnet.proven_by(name) > proven,
                f"{name} has proven {proven + 1} miners",
            )
        subnet.until(lambda name=name: subnet.holds_the_scores_of(name), f"the chain has the weights of {name}")

    uid_of_favourite = subnet.chain()["neurons"][FAVOURITE]["uid"]
    asyncio.run(lie(subnet, {uid_of_favourite: U16_MAX}))

    # The first epoch to begin after the lie, and a second one, use the weights of all three.
    begun = int(subnet.chain()["epoch_index"])
    subnet.until(lambda: int(subnet.chain()["epoch_index"]) >= begun + 3, "the third epoch")
    subnet.until(lambda: all(map(subnet.holds_the_scores_of, AGREEING)), "the chain has the weights of both")
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
