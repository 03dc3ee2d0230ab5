from typing import Any

import pytest

from compute.chain.subtensor import Metagraph
from compute.miner.access import AccessPolicy
from compute.miner.gate import MinerGate
from compute.testing.chain import FakeChain
from compute.testing.clock import ManualClock


def gate_of(chain: FakeChain, **policy: Any) -> MinerGate:
    gate = MinerGate(AccessPolicy(**policy), ManualClock())
    gate.update(Metagraph(27, 100, tuple(chain.neurons)))
    return gate


def test_before_the_first_snapshot_nobody_is_known() -> None:
    gate = MinerGate(AccessPolicy(), ManualClock())
    assert gate.refusal("anybody", "Specs") == "metagraph_unknown"


def test_a_validator_with_stake_and_permit_may_call() -> None:
    chain = FakeChain("miner")
    chain.add("validator", stake=2000.0, validator_permit=True)
    chain.add("poor", stake=1023.9, validator_permit=True)
    chain.add("unpermitted", stake=2000.0)
    gate = gate_of(chain)
    assert gate.refusal("validator", "Specs") is None
    assert gate.refusal("poor", "Specs") == "not_enough_stake"
    assert gate.refusal("unpermitted", "Specs") == "no_permit"
    assert gate.refusal("stranger", "Specs") == "not_registered"
    assert gate_of(chain, allow_not_enough_stake=True).refusal("poor", "Allocate") is None


def test_versions_of_validators_make_the_quorum() -> None:
    chain = FakeChain("miner")
    chain.add("old", stake=2000.0, validator_permit=True, version=100)
    for number in range(3):
        chain.add(f"new-{number}", stake=2000.0, validator_permit=True, version=200)
    for number in range(50):
        chain.add(f"miner-{number}", version=100)
    assert gate_of(chain).refusal("old", "Specs") == "old_version"
    assert gate_of(chain, updated_threshold_percent=80).refusal("old", "Specs") is None


def test_a_version_file_can_ask_for_more_and_is_asked_at_every_update() -> None:
    chain = FakeChain("miner")
    for number, version in enumerate((195, 200, 200)):
        chain.add(f"validator-{number}", stake=2000.0, validator_permit=True, version=version)
    minimals = (190,)
    gate = MinerGate(AccessPolicy(), ManualClock(), lambda: minimals)
    snapshot = Metagraph(27, 100, tuple(chain.neurons))
    gate.update(snapshot)
    assert gate.refusal("validator-0", "Specs") is None
    minimals = (190, 198)
    gate.update(snapshot)
    assert gate.refusal("validator-0", "Specs") == "old_version"
    minimals = (190, 999)
    gate.update(snapshot)
    assert gate.refusal("validator-0", "Specs") is None, "nobody has that version: it drops nobody"


def test_priority_is_stake_and_synapse() -> None:
    chain = FakeChain("miner")
    chain.add("validator", stake=2000.0, validator_permit=True)
    gate = gate_of(chain)
    assert gate.priority("validator", "Allocate") == 2003.0
    assert gate.priority("stranger", "Specs") == 1.0


def test_a_caller_has_a_burst_and_then_a_rate() -> None:
    gate = gate_of(FakeChain("miner"))
    answers = [gate.overuse("validator") for _ in range(100)]
    assert answers[:60] == [None] * 60
    assert answers[-1] == "rate_limited"
    assert gate.overuse("another") is None


def test_strangers_cannot_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    gate = gate_of(FakeChain("miner"))
    with caplog.at_level("INFO"):
        for _ in range(50):
            gate.refusal("one stranger", "Specs")
        assert len(caplog.records) == 1
        for number in range(5000):
            gate.refusal(f"stranger {number}", "Specs")
    assert len(caplog.records) <= 61
