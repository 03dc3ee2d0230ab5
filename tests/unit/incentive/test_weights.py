import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.incentive.weights import U16_MAX, WeightRules, matches, normalise, to_chain

ANY = WeightRules()
SCORES = st.dictionaries(st.integers(0, 40), st.floats(0, 100, allow_nan=False), max_size=30)


def test_one_to_two() -> None:
    assert normalise({3: 1.5625, 4: 3.125, 5: 0.0}) == {3: pytest.approx(1 / 3), 4: pytest.approx(2 / 3)}
    assert to_chain({3: 1.5625, 4: 3.125, 5: 0.0}, ANY, 6) == {3: 32768, 4: 65535}


def test_nobody_scores_nothing_is_set() -> None:
    assert normalise({1: 0.0}) == {}
    assert to_chain({1: 0.0}, ANY, 4) == {}
    assert to_chain({}, ANY, 4) == {}


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_a_score_that_is_none(bad: float) -> None:
    with pytest.raises(ValueError, match="uid 2"):
        normalise({2: bad})


def test_a_share_that_rounds_to_nothing_is_none() -> None:
    assert to_chain({0: 2.0, 1: 5e-324}, WeightRules(max_weight_share=0.75), 2) == {0: U16_MAX}


def test_a_pruned_uid_is_dropped() -> None:
    assert to_chain({1: 1.0, 9: 50.0}, ANY, 4) == {1: U16_MAX}


def test_too_few_are_filled_with_the_least() -> None:
    chain = to_chain({2: 5.0}, WeightRules(min_allowed_weights=4), 10)
    assert chain == {0: 1, 1: 1, 2: U16_MAX, 3: 1}


def test_the_largest_share_is_cut() -> None:
    chain = to_chain({0: 90.0, 1: 5.0, 2: 5.0}, WeightRules(max_weight_share=0.5), 3)
    total = sum(chain.values())
    assert chain[0] / total == pytest.approx(0.5, abs=1e-4)
    assert chain[1] == chain[2]


def test_fewer_entries_than_the_limit_allows_are_equal() -> None:
    for limit in (0.3, 0.0):
        assert to_chain({0: 9.0, 1: 1.0}, WeightRules(max_weight_share=limit), 3) == {0: U16_MAX, 1: U16_MAX}


def test_read_back() -> None:
    assert matches({1: 65535, 2: 32768}, {1: 65535, 2: 32767, 3: 0})
    assert not matches({1: 65535, 2: 32768}, {1: 65535})
    assert not matches({1: 65535}, {1: 65535, 2: 1})
    for held, is_match in ((32767, True), (32769, True), (32766, False), (32770, False)):
        assert matches({1: 65535, 2: 32768}, {1: 65535, 2: held}) is is_match


@settings(max_examples=200)
@given(SCORES, st.integers(1, 41), st.integers(1, 20), st.floats(0.02, 1.0))
def test_whatever_the_scores_the_chain_takes_the_vector(
    scores: dict[int, float], uids: int, least: int, limit: float
) -> None:
    chain = to_chain(scores, WeightRules(min_allowed_weights=least, max_weight_share=limit), uids)
    if not chain:
        assert not any(score > 0 for uid, score in scores.items() if uid < uids)
        return
    assert max(chain.values()) == U16_MAX
    assert all(0 <= uid < uids and 1 <= weight <= U16_MAX for uid, weight in chain.items())
    assert len(chain) >= min(least, uids)
    ranked = sorted((uid for uid in chain if scores.get(uid, 0) > 0), key=lambda uid: scores[uid])
    assert all(chain[a] <= chain[b] for a, b in itertools.pairwise(ranked))
