from dataclasses import replace

import pytest

from compute.base.errors import ChainUnreachable, ExtrinsicRefused, NotRegistered
from compute.base.store import Database
from compute.chain.subtensor import ChainRules
from compute.testing.chain import FREE_RULES, FakeChain
from compute.testing.clock import ManualClock
from compute.validator.store import FactStore, WeightsState
from compute.validator.weight_setter import _ADVICE, _TOO_FAST, REFUSAL_BLOCKS, Outcome, SetResult, WeightSetter

SCORES = {1: 1.0, 2: 2.0}
WEIGHTS = {1: 32768, 2: 65535}
HIDDEN = replace(FREE_RULES, commit_reveal=True)


class Bench:
    """A validator at uid 0 with two miners, and its journal."""

    def __init__(self, chain: type[FakeChain] = FakeChain, rules: ChainRules = FREE_RULES) -> None:
        self.chain = chain("validator", rules=rules)
        for hotkey in ("validator", "one", "two"):
            self.chain.add(hotkey)
        self.facts = FactStore(Database(":memory:"))

    async def set(self, scores: dict[int, float] | None = None) -> SetResult:
        # A new setter each time: nothing may depend on the memory of a process.
        setter = WeightSetter(self.chain, self.facts, ManualClock())
        self.chain.height += 1
        own = self.chain.neurons[0]
        return await setter.set(SCORES if scores is None else scores, own, uids=3, block=self.chain.height)

    async def set_and_lose_the_chain(self, at: str) -> None:
        """``at`` is the call in which it goes away."""
        self.chain.fail_next(at, ChainUnreachable("gone"))
        with pytest.raises(ChainUnreachable):
            await self.set()

    def state(self) -> WeightsState:
        entry = self.facts.last_weights()
        assert entry is not None
        return entry.state


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_set_and_read_back(bench: Bench) -> None:
    assert await bench.set() == SetResult(Outcome.CONFIRMED, WEIGHTS)
    assert bench.chain.weights == {0: WEIGHTS}
    assert bench.state() is WeightsState.CONFIRMED


async def test_the_cadence_is_the_chains(bench: Bench) -> None:
    bench.chain.current_rules = replace(FREE_RULES, weights_rate_limit=5)
    assert (await bench.set()).outcome is Outcome.CONFIRMED
    for _ in range(5):
        assert (await bench.set()).outcome is Outcome.TOO_EARLY
    assert (await bench.set()).outcome is Outcome.CONFIRMED
    assert bench.chain.submissions == 2


async def test_nobody_scores(bench: Bench) -> None:
    assert (await bench.set({1: 0.0})).outcome is Outcome.NOTHING_TO_SET
    assert bench.chain.submissions == 0


@pytest.mark.parametrize("name", sorted(_ADVICE))
async def test_a_refusal_is_journaled_with_what_to_do_and_asked_again_later(bench: Bench, name: str) -> None:
    bench.chain.fail_next("set_weights", ExtrinsicRefused(name, f"the chain returned `{name}`."))
    result = await bench.set()
    assert result.outcome is Outcome.REFUSED
    assert result.detail == f"{name}: the chain returned `{name}`. {_ADVICE[name]}"
    assert bench.state() is WeightsState.REFUSED
    for _ in range(REFUSAL_BLOCKS - 1):
        assert (await bench.set()).outcome is Outcome.TOO_EARLY
    assert (await bench.set()).outcome is Outcome.CONFIRMED
    assert bench.chain.submissions == 1


@pytest.mark.parametrize("name", _TOO_FAST)
async def test_too_fast_is_no_fault_of_anybody(bench: Bench, name: str) -> None:
    bench.chain.fail_next("set_weights", ExtrinsicRefused(name, "too fast"))
    assert (await bench.set()).outcome is Outcome.TOO_EARLY
    assert bench.state() is WeightsState.REFUSED


async def test_a_hotkey_that_has_lost_its_uid_is_told_so(bench: Bench) -> None:
    bench.chain.fail_next("set_weights", NotRegistered("gone"))
    with pytest.raises(NotRegistered):
        await bench.set()
    assert bench.state() is WeightsState.INTENT


async def test_a_chain_that_dies_after_taking_the_weights_is_asked_again(bench: Bench) -> None:
    await bench.set_and_lose_the_chain("after_set_weights")
    assert bench.state() is WeightsState.INTENT
    assert (await bench.set()).outcome is Outcome.CONFIRMED
    assert bench.chain.submissions == 1


async def test_a_chain_that_dies_before_taking_the_weights_gets_them_again(bench: Bench) -> None:
    await bench.set_and_lose_the_chain("set_weights")
    assert bench.chain.weights == {}
    assert (await bench.set()).outcome is Outcome.CONFIRMED
    assert bench.chain.weights == {0: WEIGHTS}


async def test_a_crash_before_the_read_back(bench: Bench) -> None:
    await bench.set_and_lose_the_chain("held_weights")
    assert bench.state() is WeightsState.SUBMITTED
    assert (await bench.set()).outcome is Outcome.CONFIRMED
    assert bench.chain.submissions == 1


async def test_what_the_chain_does_not_hold_is_not_called_success(bench: Bench) -> None:
    bench.chain.keeps = False
    assert (await bench.set()).outcome is Outcome.REFUSED
    assert bench.state() is WeightsState.FAILED
    bench.chain.keeps = True
    assert (await bench.set()).outcome is Outcome.CONFIRMED


def reveal(bench: Bench, weights: dict[int, int]) -> None:
    bench.chain.commits.clear()
    bench.chain.weights[0] = weights


async def test_commit_reveal_waits_as_long_as_the_chain_has_the_commit(bench: Bench) -> None:
    bench.chain.current_rules = HIDDEN
    for _ in range(50):
        assert (await bench.set()).outcome is Outcome.PENDING
    assert bench.chain.submissions == 1
    reveal(bench, dict(WEIGHTS))
    assert (await bench.set()).outcome is Outcome.CONFIRMED
    assert bench.state() is WeightsState.CONFIRMED


async def test_a_commit_that_the_chain_has_dropped_is_made_again(bench: Bench) -> None:
    bench.chain.current_rules = HIDDEN
    assert (await bench.set()).outcome is Outcome.PENDING
    bench.chain.commits.clear()
    assert (await bench.set()).outcome is Outcome.PENDING
    assert bench.chain.submissions == 2


async def test_a_crash_after_the_commit_commits_nothing_twice(bench: Bench) -> None:
    bench.chain.current_rules = HIDDEN
    await bench.set_and_lose_the_chain("after_set_weights")
    assert bench.state() is WeightsState.INTENT
    assert (await bench.set()).outcome is Outcome.PENDING
    assert bench.state() is WeightsState.SUBMITTED
    reveal(bench, dict(WEIGHTS))
    assert (await bench.set()).outcome is Outcome.CONFIRMED
    assert bench.chain.submissions == 1


async def test_an_old_commit_is_not_taken_for_the_new_one(bench: Bench) -> None:
    bench.chain.current_rules = HIDDEN
    bench.chain.commits.append(bench.chain.height)
    await bench.set_and_lose_the_chain("set_weights")
    assert (await bench.set()).outcome is Outcome.PENDING
    assert bench.chain.submissions == 1


async def test_a_commit_of_the_block_that_the_entry_was_begun_at_is_an_earlier_one(bench: Bench) -> None:
    """What is submitted after block N was read is in block N + 1 at the earliest."""
    bench.chain.current_rules = HIDDEN
    await bench.set_and_lose_the_chain("set_weights")
    bench.chain.commits.append(bench.chain.height)
    assert (await bench.set()).outcome is Outcome.PENDING
    assert bench.chain.submissions == 1, "the earlier commit is not this one, which never arrived"


async def test_a_commit_of_the_next_block_is_the_entrys_own(bench: Bench) -> None:
    bench.chain.current_rules = HIDDEN
    await bench.set_and_lose_the_chain("set_weights")
    bench.chain.commits.append(bench.chain.height + 1)
    assert (await bench.set()).outcome is Outcome.PENDING
    assert bench.chain.submissions == 0


class RevealingChain(FakeChain):
    """Reveals what is committed between the two questions that a setter asks, whichever comes first."""

    async def held_weights(self, uid: int) -> dict[int, int]:
        held = await super().held_weights(uid)
        self._reveal()
        return held

    async def open_commits(self) -> tuple[int, ...]:
        commits = await super().open_commits()
        self._reveal()
        return commits

    def _reveal(self) -> None:
        if self.commits:
            self.commits.clear()
            self.weights[0] = dict(WEIGHTS)


async def test_what_is_revealed_between_the_two_questions_is_not_committed_again() -> None:
    bench = Bench(RevealingChain, HIDDEN)
    assert (await bench.set()).outcome is Outcome.CONFIRMED
    assert bench.state() is WeightsState.CONFIRMED
    assert bench.chain.submissions == 1
