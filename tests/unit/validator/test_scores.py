from dataclasses import replace
from typing import Any

from compute.base.reasons import ProofReason
from compute.chain.subtensor import Metagraph
from compute.incentive.config import load_config
from compute.testing.chain import FakeChain
from compute.validator.scores import ScoreInputs, score_all
from compute.validator.store import SpecsFact, VerdictFact, VerdictHistory

CONFIG = load_config()


def ok(gpu: str, count: int) -> VerdictHistory:
    fact = VerdictFact(1, "", 1000.0, 100, 9.0, ProofReason.OK, gpu, count, gpu, count, 1.0, "")
    return VerdictHistory(fact, fact)


def failed(history: VerdictHistory, reason: ProofReason) -> VerdictHistory:
    assert history.latest is not None
    latest = replace(history.latest, reason=reason, at=1001.0, gpu=None, count=0)
    return VerdictHistory(latest, history.last_ok, 1)


def inputs(**changes: Any) -> ScoreInputs:
    chain = FakeChain("validator")
    for hotkey in ("validator", "a", "b", "c"):
        chain.add(hotkey)
    base = ScoreInputs(
        metagraph=Metagraph(27, 500, tuple(chain.neurons)),
        own_hotkey="validator",
        ineligible={"validator": ProofReason.NOT_SERVING},
        specs={},
        histories={"a": ok("NVIDIA H200", 8), "b": ok("NVIDIA RTX 4090", 2)},
        allocated={"b": "validator"},
        penalized=(),
    )
    return replace(base, **changes)


def totals(facts: ScoreInputs) -> dict[str, tuple[float, ProofReason]]:
    return {fact.hotkey: (fact.total, fact.reason) for fact in score_all(facts, CONFIG, 1002.0)}


def test_the_documented_examples() -> None:
    assert totals(inputs()) == {
        "a": (50.0, ProofReason.OK),
        "b": (4.25, ProofReason.RENTED),
        "c": (0.0, ProofReason.NOT_PROVEN_YET),
    }


def test_a_kept_verdict_is_paid_and_says_what_is_wrong() -> None:
    histories = {"a": failed(ok("NVIDIA H200", 8), ProofReason.UNREACHABLE)}
    assert totals(inputs(histories=histories))["a"] == (50.0, ProofReason.UNREACHABLE)


def test_a_failure_without_an_ok_before_is_worth_nothing() -> None:
    history = replace(failed(ok("NVIDIA H200", 8), ProofReason.SLOWER_THAN_CLAIMED), last_ok=None)
    assert totals(inputs(histories={"a": history}))["a"] == (0.0, ProofReason.SLOWER_THAN_CLAIMED)


def test_who_is_not_asked_scores_nothing() -> None:
    ineligible = {"validator": ProofReason.NOT_SERVING, "a": ProofReason.DUPLICATE_IP}
    assert totals(inputs(ineligible=ineligible))["a"] == (0.0, ProofReason.DUPLICATE_IP)


def test_a_model_without_a_score_earns_nothing() -> None:
    histories = {"a": ok("NVIDIA A100-SXM4-40GB", 8)}
    assert totals(inputs(histories=histories))["a"] == (0.0, ProofReason.UNKNOWN_MODEL)


def test_the_penalized_earn_nothing() -> None:
    assert totals(inputs(penalized={"a"}))["a"][0] == 0.0


def test_before_the_first_proof_the_specs_say_why() -> None:
    specs = {"c": SpecsFact("c", 1.0, 1, ProofReason.UNREACHABLE, None, "")}
    assert totals(inputs(specs=specs))["c"] == (0.0, ProofReason.UNREACHABLE)


def test_one_card_under_two_hotkeys_pays_the_first() -> None:
    def with_card(history: VerdictHistory) -> VerdictHistory:
        assert history.latest is not None
        fact = replace(history.latest, uuids=("GPU-1",))
        return VerdictHistory(fact, fact)

    first, second = with_card(ok("NVIDIA H200", 8)), with_card(ok("NVIDIA H200", 8))
    found = totals(inputs(histories={"a": first, "b": second}))
    assert found["a"] == (50.0, ProofReason.OK)
    assert found["b"] == (0.0, ProofReason.SHARED_DEVICE)


def test_a_card_that_was_only_claimed_takes_nothing_from_who_proved_it() -> None:
    proven = ok("NVIDIA H200", 8).latest
    assert proven is not None
    fact = replace(proven, uuids=("GPU-1",))
    liar = VerdictHistory(replace(fact, reason=ProofReason.SLOWER_THAN_CLAIMED), None, 1)
    found = totals(inputs(histories={"a": liar, "b": VerdictHistory(fact, fact)}))
    assert found["b"][0] == 100.0


def test_a_card_of_a_machine_that_is_no_longer_paid_is_free_for_another() -> None:
    proven = ok("NVIDIA H200", 8).latest
    assert proven is not None
    fact = replace(proven, uuids=("GPU-1",))
    gone = replace(failed(VerdictHistory(fact, fact), ProofReason.UNREACHABLE), failures=99)
    found = totals(inputs(histories={"a": gone, "b": VerdictHistory(fact, fact)}))
    assert found["a"] == (0.0, ProofReason.UNREACHABLE)
    assert found["b"] == (100.0, ProofReason.RENTED)


def test_a_rented_newcomer_that_was_never_proven_earns_nothing() -> None:
    facts = {fact.hotkey: fact for fact in score_all(inputs(allocated={"c": "other"}), CONFIG, 1002.0)}
    assert (facts["c"].total, facts["c"].reason) == (0.0, ProofReason.RENTED)
    assert facts["c"].breakdown["rented_through"] == "other"
