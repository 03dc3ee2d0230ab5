"""SIGKILL to the validator once the chain has its weights, and nobody has written it down: they are not set twice.

The processes are real; what they know of the miners is written into their database, so that nobody need be proven. All
other steps are in ``tests/unit/validator/test_weight_crash.py``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from compute.base.reasons import ProofReason
from compute.base.store import Database
from compute.incentive.weights import WeightRules, to_chain
from compute.localnet.newcomer import make_wallet
from compute.localnet.pallet.state import Hyperparameters
from compute.localnet.process import NodeProcess
from compute.proof.models import Claim, MachineVerdict
from compute.testing.crowd import neuron_of, wallet_of
from compute.testing.filled import fill_chain
from compute.validator.store import FactStore, WeightsState
from tests.waiting import DEADLINE_SECONDS, until

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
NETUID, RAO, UIDS = 27, 10**9, 4
ROUND = 1000
# https://api.drand.sh/52db9ba70e0cc0f6eaf7803dd07447a1f5477735fd3f661792ba94600c84e971/public/1000
SIGNATURE = "b44679b9a59af2ec876b1a6b1ad52ea9b1615fc3982b19576350f93447cb1125e342b73a8dd2bacbe47e4b6b63ed5e39"
MACHINES = {1: ("NVIDIA H200", 8), 2: ("NVIDIA RTX 4090", 2), 3: ("NVIDIA L4", 1)}


class World:
    """A chain with a validator and three miners, and the validator's database, in which all three are proven."""

    def __init__(self, folder: Path, *, commit_reveal: bool) -> None:
        self.folder = folder
        wallet = make_wallet("validator", "default", str(folder / "wallets"))
        neurons = [neuron_of(uid, wallet_of(uid) if uid else wallet, 8091 if uid else 0) for uid in range(UIDS)]
        # Epochs of 100 s: a commit waits for its reveal until the test has seen what it wants to see.
        settings = Hyperparameters(weights_rate_limit=8, tempo=400, commit_reveal_weights_enabled=commit_reveal)
        fill_chain(folder / "chain.db", NETUID, neurons, {neurons[0].hotkey: 10_000 * RAO}, settings)
        self.node = NodeProcess(block_time_seconds=0.25, netuid=NETUID, state=folder / "chain.db")
        self.node.start()
        self.node.client.advance(10)
        database, facts = self.open()
        for uid, (gpu, count) in MACHINES.items():
            verdict = MachineVerdict(ProofReason.OK, Claim(gpu, count), gpu, count)
            facts.record_verdict(neurons[uid].hotkey, verdict, at=time.time(), block=5, seconds=10.0)
        database.close()

    def open(self) -> tuple[Database, FactStore]:
        database = Database(self.folder / "validator.db")
        return database, FactStore(database)

    def start(self, step: str) -> subprocess.Popen[bytes]:
        """Begin a validator that dies at ``step``, or ends when the chain holds its weights."""
        with open(self.folder / "validator.log", "ab") as log:
            return subprocess.Popen(
                [
                    *(sys.executable, str(ROOT / "tests" / "e2e" / "dying_validator.py"), step),
                    *("--netuid", str(NETUID), "--subtensor.chain_endpoint", self.node.endpoint, "--no-auto_update"),
                    *("--wallet.path", str(self.folder / "wallets"), "--wallet.name", "validator"),
                    *("--database", str(self.folder / "validator.db"), "--axon.external_ip", "127.0.0.1"),
                    *("--validator.perform.hardware.query", "false", "--validator.rounds", "1"),
                ],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def validate(self, step: str, meanwhile: Callable[[], None] = lambda: None) -> int:
        """Run a validator to its end; returns its exit code."""
        process = self.start(step)
        try:
            meanwhile()
            return process.wait(DEADLINE_SECONDS)
        finally:
            process.kill()
            process.wait()

    @property
    def log(self) -> str:
        """What the validators have logged."""
        return (self.folder / "validator.log").read_text()

    def reveal(self) -> None:
        """Open what is committed: hand the node the signature, and let the epoch come in which it is due."""
        self.node.client.sign_round(ROUND, SIGNATURE)
        while self.on_chain()[2]:
            self.node.client.advance(50)

    def state(self) -> WeightsState | None:
        """What the journal says of its newest entry."""
        database, facts = self.open()
        try:
            entry = facts.last_weights()
        finally:
            database.close()
        return entry.state if entry is not None else None

    def wanted(self) -> dict[int, int]:
        """What the chain shall hold for the scores."""
        database, facts = self.open()
        try:
            return to_chain({fact.uid: fact.total for fact in facts.scores()}, WeightRules(), UIDS)
        finally:
            database.close()

    def on_chain(self) -> tuple[dict[int, int], int, int]:
        """The weights that the chain holds, the block of the last submission, and how many commits are open."""
        subnet = self.node.client.snapshot(NETUID)["subnets"][str(NETUID)]
        own = subnet["neurons"][0]
        return {int(uid): value for uid, value in own["weights"].items()}, own["last_update"], len(subnet["commits"])


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    world = World(tmp_path, commit_reveal=getattr(request, "param", False))
    yield world
    world.node.close()


def test_weights_that_the_chain_took_are_not_submitted_again(world: World) -> None:
    assert world.validate("submission") == -signal.SIGKILL, world.log
    assert world.state() is WeightsState.INTENT
    held, submitted_at, _ = world.on_chain()
    assert held == world.wanted()

    assert world.validate("none") == 0, world.log
    assert world.on_chain() == (held, submitted_at, 0)
    assert set(held) == set(MACHINES)
    assert world.state() is WeightsState.CONFIRMED


@pytest.mark.parametrize("world", [True], indirect=True, ids=["commit-reveal"])
def test_a_commit_that_the_chain_took_is_waited_for(world: World) -> None:
    assert world.validate("submission") == -signal.SIGKILL, world.log
    assert world.state() is WeightsState.INTENT
    _, committed_at, open_commits = world.on_chain()
    assert open_commits == 1

    def wait_and_reveal() -> None:
        until(lambda: "outcome=pending" in world.log, "the validator sees its commit", dump=lambda: world.log)
        assert world.on_chain()[1:] == (committed_at, 1), "nothing is committed twice"
        world.reveal()

    assert world.validate("none", wait_and_reveal) == 0, world.log
    held, _, _ = world.on_chain()
    assert held == world.wanted()
    assert set(held) == set(MACHINES)
    assert world.state() is WeightsState.CONFIRMED
