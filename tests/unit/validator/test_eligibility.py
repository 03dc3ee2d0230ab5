from dataclasses import replace
from typing import Any

import pytest

from compute.base.reasons import ProofReason
from compute.chain.access_lists import AccessLists
from compute.chain.subtensor import Metagraph, Neuron
from compute.incentive.config import RoundSettings, load_config
from compute.proof.models import Claim
from compute.testing.chain import FakeChain
from compute.validator.eligibility import (
    Due,
    Eligibility,
    QueryPolicy,
    due,
    eligibility,
    eligibility_while_rented,
    ineligible,
)
from compute.validator.store import VerdictFact, VerdictHistory
from compute.wire.specs import Gpu, MachineSpecs, claim_of

ROUNDS = RoundSettings(retry_limit=3, retry_interval_seconds=60.0, max_workers=4, max_random_delay_seconds=0.0)
H200 = Claim("NVIDIA H200", 8)
OK = VerdictFact(1, "hk", 1000.0, 100, 9.0, ProofReason.OK, "NVIDIA H200", 8, "NVIDIA H200", 8, 4800.0, "")
FAILED = replace(OK, id=2, at=2000.0, block=200, reason=ProofReason.TIMEOUT, gpu=None, count=0)
MACHINE = MachineSpecs(8, 3000.0, 64, 64, 0, 64, 100, 0, 100)


def paid(history: VerdictHistory, now: float = 2000.0, registered_at: int = 0) -> Eligibility:
    return eligibility(history, registered_at=registered_at, now=now, rounds=ROUNDS)


def test_never_proven() -> None:
    assert paid(VerdictHistory()) == Eligibility(ProofReason.NOT_PROVEN_YET)


def test_an_ok_verdict_counts() -> None:
    assert paid(VerdictHistory(OK, OK)) == Eligibility(ProofReason.OK, "NVIDIA H200", 8)


def test_a_failure_keeps_the_last_verdict_for_the_retries() -> None:
    for failures in (1, 2, 3):
        kept = paid(VerdictHistory(FAILED, OK, failures))
        assert kept == Eligibility(ProofReason.TIMEOUT, "NVIDIA H200", 8, kept=True)
        assert kept.is_paid
    fallen = paid(VerdictHistory(FAILED, OK, 4))
    assert fallen == Eligibility(ProofReason.TIMEOUT)
    assert (fallen.is_paid, fallen.gpu, fallen.count) == (False, None, 0)


def test_the_retry_window_ends_by_time_too() -> None:
    assert paid(VerdictHistory(FAILED, OK, 1), now=2000.0 + 2 * 3 * 60).kept
    assert not paid(VerdictHistory(FAILED, OK, 1), now=2001.0 + 2 * 3 * 60).is_paid


def test_retries_without_a_pause_have_a_window_of_seconds() -> None:
    hasty = replace(ROUNDS, retry_interval_seconds=0.0)
    for now, kept in ((2006.0, True), (2006.1, False)):
        found = eligibility(VerdictHistory(FAILED, OK, 1), registered_at=0, now=now, rounds=hasty)
        assert found.kept is kept


def test_a_liar_that_never_passed_has_nothing_to_keep() -> None:
    assert paid(VerdictHistory(FAILED, None, 1)) == Eligibility(ProofReason.TIMEOUT)


def test_a_hotkey_that_registers_again_starts_anew() -> None:
    assert paid(VerdictHistory(OK, OK), registered_at=150) == Eligibility(ProofReason.NOT_PROVEN_YET)
    assert not paid(VerdictHistory(FAILED, OK, 1), registered_at=150).kept
    assert paid(VerdictHistory(OK, OK), registered_at=100).is_paid
    assert paid(VerdictHistory(FAILED, OK, 1), registered_at=100).kept


@pytest.mark.parametrize(
    ("history", "claim", "block", "now", "why"),
    [
        (VerdictHistory(), H200, 0, 0.0, Due.FIRST),
        (VerdictHistory(OK, OK), H200, 101, 1001.0, None),
        (VerdictHistory(OK, OK), H200, 459, 1001.0, None),
        (VerdictHistory(OK, OK), H200, 460, 1001.0, Due.ROUTINE),
        (VerdictHistory(OK, OK), Claim("NVIDIA H200", 4), 101, 1030.0, None),
        (VerdictHistory(OK, OK), Claim("NVIDIA H200", 4), 101, 1061.0, Due.CHANGED),
        (VerdictHistory(OK, OK), Claim("NVIDIA H200", 4), 460, 1061.0, Due.CHANGED),
        (VerdictHistory(OK, OK), None, 101, 1061.0, Due.CHANGED),
        (VerdictHistory(FAILED, OK, 1), H200, 201, 2030.0, None),
        (VerdictHistory(FAILED, OK, 1), H200, 201, 2060.0, Due.RETRY),
        (VerdictHistory(FAILED, OK, 3), H200, 201, 2060.0, Due.RETRY),
        (VerdictHistory(FAILED, OK, 4), H200, 201, 2060.0, None),
        (VerdictHistory(FAILED, OK, 4), H200, 560, 2060.0, Due.RETRY),
    ],
)
def test_due(history: VerdictHistory, claim: Claim | None, block: int, now: float, why: Due | None) -> None:
    answer = due(history, claim, now, registered_at=0, block=block, now=now, interval_blocks=360, rounds=ROUNDS)
    assert answer is why


@pytest.mark.parametrize(("registered_at", "why"), [(100, None), (101, Due.FIRST)])
def test_a_proof_from_before_a_registration_is_none(registered_at: int, why: Due | None) -> None:
    history = VerdictHistory(OK, OK)
    rest = {"block": 150, "now": 1001.0, "interval_blocks": 360, "rounds": ROUNDS}
    assert due(history, H200, 1001.0, registered_at=registered_at, **rest) is why


def test_hardware_that_changed_during_a_lease_is_proven_when_it_is_free() -> None:
    def why(changed_at_block: int) -> Due | None:
        return due(
            VerdictHistory(OK, OK),
            H200,
            1500.0,
            registered_at=0,
            block=150,
            now=1500.0,
            interval_blocks=360,
            rounds=ROUNDS,
            changed_at_block=changed_at_block,
        )

    assert why(101) is Due.CHANGED
    assert why(100) is None


def test_a_rented_machine_keeps_the_verdict_that_stood() -> None:
    def worth(history: VerdictHistory, registered_at: int = 0) -> Eligibility:
        return eligibility_while_rented(history, registered_at=registered_at, rounds=ROUNDS)

    refused = replace(FAILED, reason=ProofReason.REFUSED)
    kept = Eligibility(ProofReason.RENTED, "NVIDIA H200", 8, kept=True)
    assert worth(VerdictHistory(OK, OK)) == kept
    # It was rented through somebody that nobody could see: that it refused proofs says nothing.
    assert worth(VerdictHistory(refused, OK, failures=50, proven_failures=0)) == kept
    assert worth(VerdictHistory(FAILED, OK, failures=3, proven_failures=3)) == kept
    # A liar that was found out does not become honest by being rented.
    assert worth(VerdictHistory(refused, OK, failures=5, proven_failures=4)) == Eligibility(ProofReason.REFUSED)
    assert not worth(VerdictHistory()).is_paid
    assert worth(VerdictHistory()) == Eligibility(ProofReason.RENTED)
    assert worth(VerdictHistory(refused, None, 1)) == Eligibility(ProofReason.RENTED)
    assert worth(VerdictHistory(FAILED, None, 1, 1)) == Eligibility(ProofReason.TIMEOUT)
    assert worth(VerdictHistory(OK, OK), registered_at=101) == Eligibility(ProofReason.RENTED)
    assert worth(VerdictHistory(OK, OK), registered_at=100) == kept
    assert worth(VerdictHistory(FAILED, None, 1, 1), registered_at=200) == Eligibility(ProofReason.TIMEOUT)
    assert worth(VerdictHistory(FAILED, None, 1, 1), registered_at=201) == Eligibility(ProofReason.RENTED)


def test_a_machine_that_is_back_is_proven_although_its_retries_are_used_up() -> None:
    gone = VerdictHistory(replace(FAILED, reason=ProofReason.UNREACHABLE), OK, 9)

    def why(claim: Claim | None, claimed_at: float) -> Due | None:
        return due(gone, claim, claimed_at, registered_at=0, block=201, now=2100.0, interval_blocks=360, rounds=ROUNDS)

    assert why(H200, claimed_at=2050.0) is Due.RETRY
    assert why(H200, claimed_at=2000.0) is None
    assert why(None, claimed_at=2050.0) is None


def test_a_claim_is_one_model() -> None:
    h200, l4 = Gpu("NVIDIA H200", 143_771), Gpu("NVIDIA L4", 23_034)
    assert claim_of(MACHINE, {}) is None
    assert claim_of(MACHINE.with_gpus((h200, h200)), {}) == Claim("NVIDIA H200", 2)
    assert claim_of(MACHINE.with_gpus((h200, l4, l4)), {}) == Claim("NVIDIA H200", 1)


def test_a_drivers_name_is_the_tables() -> None:
    aliases = load_config().aliases
    card = Gpu("NVIDIA GeForce RTX 4090", 24_564)
    assert claim_of(MACHINE.with_gpus((card, card)), aliases) == Claim("NVIDIA RTX 4090", 2)


def subnet(*neurons: Neuron) -> Metagraph:
    return Metagraph(27, 500, neurons)


@pytest.fixture
def miners() -> list[Neuron]:
    chain = FakeChain("validator")
    return [chain.add(hotkey, registered_at=10 * uid) for uid, hotkey in enumerate(("validator", "a", "b", "c"))]


def reasons(neurons: list[Neuron], **policy: Any) -> dict[str, ProofReason]:
    settings = replace(QueryPolicy(AccessLists()), **policy)
    return ineligible(subnet(*neurons), "validator", settings)


def test_our_own_hotkey_is_not_asked(miners: list[Neuron]) -> None:
    assert reasons(miners) == {"validator": ProofReason.NOT_SERVING}


def test_no_axon_no_question(miners: list[Neuron]) -> None:
    miners[2] = replace(miners[2], ip="0.0.0.0")
    assert reasons(miners)["b"] is ProofReason.NOT_SERVING


def test_one_ip_one_uid_and_the_earliest_keeps_it(miners: list[Neuron]) -> None:
    miners[1] = replace(miners[1], ip="127.0.0.9", registered_at=50)
    miners[3] = replace(miners[3], ip="127.0.0.9", registered_at=40)
    assert reasons(miners) == {"validator": ProofReason.NOT_SERVING, "a": ProofReason.DUPLICATE_IP}


def test_an_address_is_his_who_answers_there(miners: list[Neuron]) -> None:
    """An older uid that only says it is at another's address takes nothing from him."""
    squatter = replace(miners[1], ip=miners[3].ip, registered_at=0)
    miners[1] = squatter
    found = ineligible(subnet(*miners), "validator", QueryPolicy(AccessLists()), answering={"c"})
    assert found == {"validator": ProofReason.NOT_SERVING, "a": ProofReason.DUPLICATE_IP}
    both = ineligible(subnet(*miners), "validator", QueryPolicy(AccessLists()), answering={"a", "c"})
    assert both == {"validator": ProofReason.NOT_SERVING, "c": ProofReason.DUPLICATE_IP}


def test_who_does_not_serve_and_we_ourselves_keep_no_address(miners: list[Neuron]) -> None:
    miners[1] = replace(miners[1], ip=miners[0].ip)
    miners[2] = replace(miners[2], ip=miners[3].ip, port=0)
    assert reasons(miners) == {"validator": ProofReason.NOT_SERVING, "b": ProofReason.NOT_SERVING}


def test_black_lists(miners: list[Neuron]) -> None:
    lists = AccessLists(blacklist_hotkeys=frozenset({"a"}), blacklist_coldkeys=frozenset({"cold-b"}))
    found = reasons(miners, lists=lists)
    assert found["a"] is found["b"] is ProofReason.BLACKLISTED
    assert "c" not in found


def test_old_versions_wait_for_the_quorum(miners: list[Neuron]) -> None:
    miners[1] = replace(miners[1], version=180)
    miners[2] = replace(miners[2], version=0)
    assert reasons(miners) == {"validator": ProofReason.NOT_SERVING}
    found = reasons(miners, updated_threshold_percent=30)
    assert found["a"] is found["b"] is ProofReason.OLD_VERSION
    found = reasons(miners, updated_threshold_percent=30, allow_unrecognized=True)
    assert found == {"validator": ProofReason.NOT_SERVING, "a": ProofReason.OLD_VERSION}
    white = AccessLists(whitelist_hotkeys=frozenset({"a"}))
    assert "a" not in reasons(miners, updated_threshold_percent=30, lists=white)


def test_a_version_file_can_ask_for_more_and_drops_nobody_without_a_quorum(miners: list[Neuron]) -> None:
    miners[1] = replace(miners[1], version=195)
    assert reasons(miners, minimal_versions=lambda: (190, 198))["a"] is ProofReason.OLD_VERSION
    assert "a" not in reasons(miners, minimal_versions=lambda: (190, 999))
    assert "a" not in reasons(miners, minimal_versions=lambda: (190, 999), updated_threshold_percent=0)
