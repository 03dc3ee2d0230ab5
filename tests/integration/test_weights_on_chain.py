"""Scores to weights on a real node through the real SDK: set, read back, journaled; and every way to be refused."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from compute.base.clock import SystemClock
from compute.base.errors import ChainUnreachable, NotRegistered
from compute.base.store import Database
from compute.chain.subtensor import ChainRules, SubtensorChain
from compute.localnet.newcomer import make_wallet
from compute.localnet.pallet.state import Hyperparameters
from compute.localnet.process import NodeProcess
from compute.testing.crowd import neuron_of, wallet_of
from compute.testing.filled import fill_chain
from compute.validator.store import FactStore, WeightsEntry, WeightsState
from compute.validator.weight_setter import Outcome, SetResult, WeightSetter

NETUID, RAO = 27, 10**9
SCORES = {1: 1.0, 2: 2.0, 3: 5.0}
WEIGHTS = {1: 13107, 2: 26214, 3: 65535}
RATE_LIMIT = 100
"""In blocks, of which so many do not come by themselves while a test asks a question."""


class LateRules(SubtensorChain):
    """Whose rules are those that it read first: the subnet changes its own in between."""

    first: ChainRules | None = None

    async def rules(self) -> ChainRules:
        if self.first is None:
            self.first = await super().rules()
        return self.first


@dataclass
class Validator:
    """Uid 0 of five, with a permit, and its journal."""

    node: NodeProcess
    chain: LateRules
    facts: FactStore

    async def set(self, scores: dict[int, float] | None = None, *, uids: int | None = None) -> SetResult:
        metagraph = await self.chain.metagraph()
        own = metagraph.by_hotkey[self.chain.hotkey]
        # A new setter each time: nothing may depend on the memory of a process.
        setter = WeightSetter(self.chain, self.facts, SystemClock())
        return await setter.set(
            SCORES if scores is None else scores, own, uids=uids or len(metagraph.neurons), block=metagraph.block
        )

    def change(self, name: str, value: int | bool) -> None:
        self.node.client.set_hyperparameter(NETUID, name, value)

    def wait_for_the_rate_limit(self) -> None:
        self.node.client.advance(RATE_LIMIT + 2)

    def entry(self) -> WeightsEntry:
        entry = self.facts.last_weights()
        assert entry is not None
        return entry


Start = Callable[..., Awaitable[Validator]]


@pytest.fixture
async def start(tmp_path: Path, hold_port: Callable[..., int]) -> AsyncIterator[Start]:
    running: list[Validator] = []

    async def begin(own: Any = None, stakes: dict[int, int] | None = None, **settings: Any) -> Validator:
        wallet = make_wallet("validator", "default", str(tmp_path))
        neurons = [neuron_of(uid, wallet_of(uid) if uid else own or wallet, 8091 if uid else 0) for uid in range(5)]
        given = {neurons[uid].hotkey: alpha * RAO for uid, alpha in (stakes or {0: 10_000}).items()}
        rules = Hyperparameters(weights_rate_limit=RATE_LIMIT, **settings)
        fill_chain(tmp_path / "chain.db", NETUID, neurons, given, rules)
        node = NodeProcess(block_time_seconds=0.25, netuid=NETUID, state=tmp_path / "chain.db", port=hold_port())
        node.start()
        database = Database(tmp_path / "validator.db")
        validator = Validator(node, LateRules(node.endpoint, NETUID, wallet), FactStore(database))
        running.append(validator)
        validator.wait_for_the_rate_limit()
        return validator

    yield begin
    for validator in running:
        await validator.chain.close()
        validator.node.close()


async def test_weights_are_set_read_back_and_journaled(start: Start) -> None:
    validator = await start()
    assert await validator.set() == SetResult(Outcome.CONFIRMED, WEIGHTS)
    assert await validator.chain.held_weights(0) == WEIGHTS
    assert (validator.entry().state, validator.entry().weights) == (WeightsState.CONFIRMED, WEIGHTS)
    first = validator.entry().id
    assert (await validator.set()).outcome is Outcome.TOO_EARLY
    assert validator.entry().id == first, "the chain is not even asked"
    validator.wait_for_the_rate_limit()
    assert (await validator.set({4: 1.0})).outcome is Outcome.CONFIRMED
    assert await validator.chain.held_weights(0) == {4: 65535}
    assert await validator.chain.held_weights(3) == {}


async def test_a_vector_as_the_rules_ask_for_is_taken(start: Start) -> None:
    validator = await start(min_allowed_weights=4, max_weights_limit=30_000)
    assert (await validator.set()).outcome is Outcome.CONFIRMED
    held = await validator.chain.held_weights(0)
    assert len(held) == 4
    assert max(held.values()) / sum(held.values()) <= 30_000 / 65_535


@pytest.mark.parametrize(
    ("setting", "value", "name", "advice"),
    [
        ("weights_version", 10_000_000, "IncorrectWeightVersionKey", "update"),
        ("stake_threshold", 20_000 * RAO, "NotEnoughStakeToSetWeights", "Stake more"),
        ("min_allowed_weights", 5, "WeightVecLengthIsLow", "read anew"),
        ("max_weights_limit", 30_000, "MaxWeightExceeded", "read anew"),
    ],
)
async def test_a_rule_that_is_broken_is_named_and_waited_for(
    start: Start, monkeypatch: pytest.MonkeyPatch, setting: str, value: int, name: str, advice: str
) -> None:
    monkeypatch.setattr("compute.validator.weight_setter.REFUSAL_BLOCKS", RATE_LIMIT)
    validator = await start()
    await validator.chain.rules()
    validator.change(setting, value)
    result = await validator.set()
    assert result.outcome is Outcome.REFUSED
    assert result.detail.startswith(f"{name}: ")
    assert advice in result.detail
    assert validator.entry().state is WeightsState.REFUSED
    assert await validator.chain.held_weights(0) == {}
    before = validator.entry().id
    assert (await validator.set()).outcome is Outcome.TOO_EARLY
    assert validator.entry().id == before, "it does not ask again at once"
    validator.change(setting, getattr(Hyperparameters(), setting))
    validator.wait_for_the_rate_limit()
    assert (await validator.set()).outcome is Outcome.CONFIRMED


async def test_without_a_permit_it_is_told_so(start: Start) -> None:
    validator = await start(stakes={0: 2000, 1: 5000}, max_validators=1)
    result = await validator.set()
    assert result.outcome is Outcome.REFUSED
    assert "NeuronNoValidatorPermit" in result.detail
    assert "stake more" in result.detail


async def test_a_uid_that_is_none(start: Start) -> None:
    validator = await start()
    result = await validator.set({9: 1.0}, uids=10)
    assert result.outcome is Outcome.REFUSED
    assert "UidVecContainInvalidOne" in result.detail


async def test_faster_than_the_chain_allows(start: Start) -> None:
    validator = await start()
    validator.chain.first = replace(await validator.chain.rules(), weights_rate_limit=0)
    assert (await validator.set()).outcome is Outcome.CONFIRMED
    validator.change("weights_rate_limit", 1000)
    validator.node.client.advance(1)  # so that by the rules which it knows it may
    result = await validator.set()
    assert result.outcome is Outcome.TOO_EARLY
    assert "SettingWeightsTooFast" in result.detail
    assert await validator.chain.held_weights(0) == WEIGHTS


async def test_a_hotkey_that_the_chain_does_not_know(start: Start) -> None:
    validator = await start(own=wallet_of(0))
    with pytest.raises(NotRegistered):
        await validator.chain.set_weights(WEIGHTS)


async def test_a_chain_that_goes_away_leaves_the_question_open(start: Start) -> None:
    validator = await start()
    validator.chain.first = await validator.chain.rules()
    own = (await validator.chain.metagraph()).neurons[0]
    setter = WeightSetter(validator.chain, validator.facts, SystemClock())
    block = await validator.chain.block()
    validator.node.kill()
    with pytest.raises(ChainUnreachable):
        await setter.set(SCORES, own, uids=5, block=block)
    assert validator.entry().state is WeightsState.INTENT
    validator.node.start()
    assert (await validator.set()).outcome is Outcome.CONFIRMED


async def test_commits_wait_for_their_reveal_and_are_made_again_when_they_are_lost(start: Start) -> None:
    tempo = 10 * RATE_LIMIT
    validator = await start(commit_reveal_weights_enabled=True, tempo=tempo)
    assert (await validator.set()).outcome is Outcome.PENDING
    assert validator.entry().state is WeightsState.SUBMITTED
    (committed_at,) = await validator.chain.open_commits()
    assert committed_at > validator.entry().block
    validator.wait_for_the_rate_limit()
    assert (await validator.set()).outcome is Outcome.PENDING
    assert len(await validator.chain.open_commits()) == 1, "not twice"
    # Nobody can open it here, without a network: after its epoch the chain gives it up.
    validator.node.client.advance(2 * tempo)
    assert await validator.chain.open_commits() == ()
    first = validator.entry().id
    assert (await validator.set()).outcome is Outcome.PENDING
    assert validator.entry().id > first
    assert len(await validator.chain.open_commits()) == 1
