from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from compute.base.reasons import ProofReason
from compute.base.store import Database
from compute.proof.models import Claim, DeviceMeasurement, MachineVerdict
from compute.validator.rental_table import RentalEvent, RentalEventKind
from compute.validator.rentals import RentalRow, RentalSource
from compute.validator.store import FactStore, ScoreFact, SpecsFact, WeightsState

L4 = Claim("NVIDIA L4", 1)
OK = MachineVerdict(
    ProofReason.OK, L4, "NVIDIA L4", 1, (DeviceMeasurement(0, ProofReason.OK, tflops16=51.5, vram_bytes=1),)
)
FAILED = MachineVerdict(ProofReason.WRONG_ROW, L4, detail="row 3")


def store(path: Path | str = ":memory:") -> FactStore:
    return FactStore(Database(path))


def record(facts: FactStore, hotkey: str, *verdicts: MachineVerdict) -> None:
    for number, verdict in enumerate(verdicts):
        facts.record_verdict(hotkey, verdict, at=1000.0 + number, block=number, seconds=9.5)


def test_histories() -> None:
    facts = store()
    record(facts, "good", FAILED, OK)
    record(facts, "bad", FAILED, FAILED, FAILED)
    record(facts, "fallen", OK, FAILED, FAILED)
    histories = facts.histories()
    assert histories["good"].latest == histories["good"].last_ok
    assert histories["good"].failures == 0
    assert histories["good"].latest is not None
    assert histories["good"].latest.tflops16 == 51.5
    assert histories["bad"].last_ok is None
    assert histories["bad"].failures == 3
    assert histories["fallen"].failures == 2
    assert histories["fallen"].last_ok is not None
    assert histories["fallen"].last_ok.gpu == "NVIDIA L4"
    assert histories["fallen"].latest is not None
    assert histories["fallen"].latest.detail == "row 3"
    assert "unknown" not in histories


def test_the_last_ok_verdict_outlives_the_retention() -> None:
    facts = store()
    record(facts, "hk", OK, *[FAILED] * 230)
    assert len(facts.verdicts("hk")) == 201
    assert facts.histories()["hk"].last_ok is not None


def test_specs_are_the_last_ones_and_a_failure_keeps_their_text() -> None:
    facts = store()
    facts.record_specs([SpecsFact("hk", 1.0, 1, ProofReason.OK, "{}", "")])
    facts.record_specs([SpecsFact("hk", 2.0, 2, ProofReason.UNREACHABLE, None, "gone")])
    assert facts.specs() == {"hk": SpecsFact("hk", 2.0, 2, ProofReason.UNREACHABLE, "{}", "gone")}
    again = SpecsFact("hk", 3.0, 3, ProofReason.OK, '{"new": 1}', "")
    facts.record_specs([again])
    assert facts.specs() == {"hk": again}


def test_scores_are_replaced_as_a_whole() -> None:
    facts = store()
    facts.record_scores([ScoreFact("a", 1, 2.0, ProofReason.OK, {"base": 1.0})], at=1.0, block=1)
    now = [ScoreFact("b", 2, 0.0, ProofReason.TIMEOUT, {"base": 0.0})]
    facts.record_scores(now, at=2.0, block=2)
    assert facts.scores() == now


def test_the_journal_survives_a_restart(tmp_path: Path) -> None:
    facts = store(tmp_path / "database.db")
    first = facts.begin_weights({1: 65535}, at=1.0, block=10)
    facts.advance_weights(first, WeightsState.CONFIRMED)
    facts.begin_weights({2: 65535}, at=2.0, block=20)
    again = store(tmp_path / "database.db")
    newest = again.last_weights()
    assert newest is not None
    assert (newest.weights, newest.state, newest.block) == ({2: 65535}, WeightsState.INTENT, 20)
    confirmed = again.last_weights((WeightsState.CONFIRMED,))
    assert confirmed is not None
    assert confirmed.weights == {1: 65535}


def test_those_who_left_a_week_ago_are_forgotten() -> None:
    facts = store()
    record(facts, "here", OK)
    record(facts, "gone", OK)
    facts.record_specs([SpecsFact("gone", 1000.0, 1, ProofReason.OK, "{}", "")])
    facts.forget_absent({"here"}, now=1000.0 + 86_400)
    assert set(facts.histories()) == {"here", "gone"}
    facts.forget_absent({"here"}, now=1000.0 + 8 * 86_400)
    assert set(facts.histories()) == {"here"}
    assert facts.specs() == {}


def test_failures_that_say_nothing_of_the_machine_are_told_apart() -> None:
    facts = store()
    refused = MachineVerdict(ProofReason.REFUSED, L4)
    record(facts, "hk", FAILED, OK, refused, FAILED, refused, MachineVerdict(ProofReason.UNREACHABLE, L4))
    history = facts.histories()["hk"]
    assert (history.failures, history.proven_failures) == (4, 1)


def test_events_are_kept_in_order_and_not_for_ever() -> None:
    facts = store()
    for number in range(205):
        facts.rentals.write([], [RentalEvent("hk", float(number), number, RentalEventKind.RENTED, f"lease {number}")])
    facts.rentals.write([], [RentalEvent("another", 1.0, 1, RentalEventKind.FREE, "")])
    events = facts.rentals.events("hk")
    assert len(events) == 200
    assert [event.block for event in events] == list(range(5, 205))
    assert events[-1] == RentalEvent("hk", 204.0, 204, RentalEventKind.RENTED, "lease 204")


RENTAL = RentalRow("a", "SHA256:1", RentalSource.OWN, "us", 1.0, specs="{}")


def test_a_rental_survives_a_restart_with_all_its_fields(tmp_path: Path) -> None:
    facts = store(tmp_path / "database.db")
    facts.rentals.write([RENTAL])
    changed = replace(RENTAL, source=RentalSource.RECEIPT, until=9.0, last_alive=2.0, misses=3, ended=4.0)
    changed = replace(changed, differs_since=500, change="GPUs: 8, now 4", told_rented="through us", told_offline=True)
    facts.rentals.write([changed])
    assert store(tmp_path / "database.db").rentals.rows() == {RENTAL.key: changed}


def test_a_rental_that_nothing_asks_for_any_more_is_dropped() -> None:
    facts = store()
    facts.rentals.write([RENTAL, replace(RENTAL, hotkey="b", specs=None)])
    facts.rentals.write([row.over(2.0) for row in facts.rentals.rows().values()])
    assert facts.rentals.rows() == {RENTAL.key: RENTAL.over(2.0)}


def test_the_journal_is_kept_for_some_hundred_vectors() -> None:
    facts = store()
    for number in range(510):
        entry = facts.begin_weights({1: number + 1}, at=float(number), block=number)
    facts.advance_weights(entry, WeightsState.CONFIRMED)
    last = facts.last_weights()
    assert last is not None
    assert (last.block, last.state) == (509, WeightsState.CONFIRMED)
    oldest = facts.last_weights((WeightsState.INTENT,))
    assert oldest is not None
    assert len(facts._database.query("SELECT id FROM weights_journal")) == 500


def test_a_database_that_has_been_through_weeks_does_not_grow(tmp_path: Path) -> None:
    facts = store(tmp_path / "database.db")
    sizes = []
    for week in range(3):
        for number in range(250):
            for hotkey in ("a", "b"):
                facts.record_verdict(hotkey, FAILED, at=1000.0 * week + number, block=number, seconds=1.0)
            facts.begin_weights(dict.fromkeys(range(256), 65535), at=0.0, block=number)
            facts.begin_weights(dict.fromkeys(range(256), 65535), at=0.0, block=number)
        sizes.append(facts._database.query("PRAGMA page_count")[0][0])
    assert sizes[2] <= 1.02 * sizes[1]


def test_every_look_is_what_the_database_says() -> None:
    facts = store()
    writes: list[Callable[[], object]] = [
        lambda: record(facts, "a", OK, FAILED),
        lambda: facts.record_specs([SpecsFact(hotkey, 1.0, 1, ProofReason.OK, "{}", "") for hotkey in ("a", "b")]),
        lambda: facts.record_specs([SpecsFact("a", 2.0, 2, ProofReason.TIMEOUT, None, "slow")]),
        lambda: record(facts, "b", FAILED),
        lambda: record(facts, "a", OK),
        lambda: facts.rentals.write([RENTAL, replace(RENTAL, hotkey="b").over(2.0)]),
        lambda: facts.rentals.write([replace(RENTAL, change="GPUs: 8, now 4")]),
        lambda: facts.forget_absent({"a"}, now=1e9),
    ]
    for write in writes:
        write()
        fresh = FactStore(facts._database)
        for look in (FactStore.specs, FactStore.histories):
            assert look(facts) == look(fresh)
        assert facts.rentals.by_hotkey() == fresh.rentals.by_hotkey()
    assert set(facts.specs()) == set(facts.histories()) == set(facts.rentals.by_hotkey()) == {"a"}


def test_histories_and_forgetting_read_by_index() -> None:
    """Hundreds of verdicts of each of 256 hotkeys: whoever reads them all stops the event loop for 100 ms."""
    facts = store()
    record(facts, "a", OK, FAILED)
    steps: list[str] = []
    facts._database._connection.set_trace_callback(steps.append)
    facts.histories()
    facts.forget_absent(["a"], 1e9)
    facts._database._connection.set_trace_callback(None)
    for sql in steps:
        if "verdict" in sql and not sql.startswith("--"):
            plan = [row["detail"] for row in facts._database.query(f"EXPLAIN QUERY PLAN {sql}")]
            assert not [step for step in plan if step.startswith("SCAN verdict")], plan
