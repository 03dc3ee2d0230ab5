from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from compute.base.console import Output
from compute.base.errors import NotFound
from compute.base.reasons import ProofReason
from compute.base.store import Database
from compute.chain.access_lists import AccessLists
from compute.chain.subtensor import Metagraph
from compute.incentive.config import load_config
from compute.proof.models import Claim, DeviceMeasurement, MachineVerdict
from compute.rental.evidence import Rental, RentalEvidence
from compute.rental.records import Penalty
from compute.testing.chain import FakeChain
from compute.validator import show
from compute.validator.eligibility import QueryPolicy, ineligible
from compute.validator.explain import Event, Explanation, explain
from compute.validator.options import parse_validator
from compute.validator.scores import ScoreInputs, score_all
from compute.validator.store import FactStore, SpecsFact, WeightsState
from compute.wire.specs import Gpu, MachineSpecs
from tests.waiting import DEADLINE_SECONDS

CONFIG = load_config()
NOW = 1_700_000_000.0
L4 = MachineSpecs(8, 3000.0, 64 << 30, 64, 0, 64, 100, 0, 100, (Gpu("NVIDIA L4", 23_034), Gpu("NVIDIA L4", 23_034)))
RENTAL = Rental("bob", "127.0.1.3", 4444, "SHA256:abc", is_paused=False, since=NOW - 50, until=NOW + 86_400)


def device(index: int, reason: ProofReason, tflops: float, gbs: float | None) -> DeviceMeasurement:
    return DeviceMeasurement(index, reason, tflops, 20 * 10**9, gbs, 8.0, 2.0, nearest="NVIDIA L4", uuid=f"GPU-{index}")


class Bench:
    """A validator's database and the subnet around it: alice, bob, and carol at bob's address."""

    def __init__(self, path: str | Path = ":memory:") -> None:
        self.database = Database(path)
        self.facts = FactStore(self.database)
        RentalEvidence(self.database)
        chain = FakeChain("validator")
        chain.add("validator", ip="0.0.0.0", validator_permit=True)
        chain.add("alice", registered_at=10, version=200)
        chain.add("bob", registered_at=20, version=200)
        chain.add("carol", registered_at=30, ip="127.0.1.3", version=0)
        self.metagraph = Metagraph(27, 500, tuple(chain.neurons))

    def specs(self, hotkey: str, reason: ProofReason = ProofReason.OK, *, at: float = NOW - 1000) -> None:
        text = L4.to_json() if reason is ProofReason.OK else None
        self.facts.record_specs([SpecsFact(hotkey, at, 100, reason, text, "" if text else "it hung up")])

    def verdict(
        self, hotkey: str, reason: ProofReason = ProofReason.OK, *, at: float = NOW - 900, uuid_offset: int = 0
    ) -> None:
        ok = reason is ProofReason.OK
        devices = tuple(device(n + uuid_offset, reason, 51.0 - n, 190.0 if ok else None) for n in range(2))
        verdict = MachineVerdict(reason, Claim("NVIDIA L4", 2), "NVIDIA L4" if ok else None, 2 if ok else 0, devices)
        self.facts.record_verdict(hotkey, verdict, at=at, block=110, seconds=24.2)

    def score(self, *, allocated: Any = (), penalized: Any = ()) -> None:
        scores = score_all(
            ScoreInputs(
                metagraph=self.metagraph,
                own_hotkey="validator",
                ineligible=ineligible(self.metagraph, "validator", QueryPolicy(AccessLists())),
                specs=self.facts.specs(),
                histories=self.facts.histories(),
                allocated=dict.fromkeys(allocated, "validator"),
                penalized=penalized,
            ),
            CONFIG,
            NOW,
        )
        self.facts.record_scores(scores, at=NOW, block=500)

    def explain(self, name: str, **renter: Any) -> Explanation:
        return explain(name, self.facts, CONFIG, **renter)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def kinds(explanation: Explanation) -> list[str]:
    return [event.what for event in explanation.events]


def event(explanation: Explanation, what: str) -> Event:
    (found,) = (event for event in explanation.events if event.what == what)
    return found


def test_a_paid_miner_from_registration_to_the_chains_weight(bench: Bench) -> None:
    bench.specs("bob")
    bench.verdict("bob")
    bench.score(allocated={"bob"})
    entry = bench.facts.begin_weights({1: 100, 2: 300}, at=NOW + 1, block=501)
    bench.facts.advance_weights(entry, WeightsState.CONFIRMED)
    bench.facts.begin_weights({2: 65535}, at=NOW + 2, block=502)
    explained = bench.explain("2", rentals=[RENTAL])
    assert kinds(explained) == ["registered", "specs", "proof", "leased", "scored", "weight", "weight"]
    times = [event.at for event in explained.events if event.at is not None]
    assert times == sorted(times)
    assert (explained.uid, explained.hotkey) == (2, "bob")
    assert explained.score == pytest.approx(0.43 * 2 * 1.5625 * 2)
    assert explained.formula == "0.43 (NVIDIA L4) × 2 GPUs × factor 1.5625 × 2 (rented) = 2.6875"
    assert event(explained, "registered").text == "uid 2 at 127.0.1.3:8091, version 200"
    assert event(explained, "specs").text == "2 × NVIDIA L4 (23034 MiB), 8 CPUs, 64 GiB RAM"
    proof = event(explained, "proof")
    assert proof.text == (
        "ok: claims 2 × NVIDIA L4; measured 50 TFLOPS, 20 GB held, 190 GB/s (the least of all); "
        "the table asks for 38.2 TFLOPS, 18.5 GB held, 135 GB/s; took 24 s"
    )
    assert proof.data["asked"]["tflops16"] == pytest.approx(0.75 * 51)
    assert [measured["uuid"] for measured in proof.data["devices"]] == ["GPU-0", "GPU-1"]
    assert "answers as SHA256:abc" in event(explained, "leased").text
    assert [item.text for item in explained.events[-2:]] == ["75.0% on the chain", "100.0% intended, intent"]
    assert json.loads(json.dumps(explained.to_json()))["events"][0]["block"] == 20


def test_a_failure_that_keeps_the_verdict_says_so_and_what_was_asked(bench: Bench) -> None:
    bench.verdict("alice")
    bench.verdict("alice", ProofReason.SLOWER_THAN_CLAIMED, at=NOW - 10)
    bench.score()
    explained = bench.explain("alice")
    assert explained.reason is ProofReason.SLOWER_THAN_CLAIMED
    assert explained.formula.endswith("= 1.34375")
    assert explained.retries == "1 of 22, 60 s apart; the ok verdict before is still paid"
    assert "the table asks for 38.2 TFLOPS" in explained.events[-2].text


def test_retries_that_are_used_up(bench: Bench) -> None:
    bench.verdict("alice", ProofReason.TIMEOUT)
    bench.score()
    assert bench.explain("alice").retries == "1 of 22, 60 s apart; the ok verdict before no longer counts, or never was"
    for _ in range(22):
        bench.verdict("alice", ProofReason.TIMEOUT)
    assert bench.explain("alice").retries == "all 22 used up; the next proof comes at its interval"


def test_an_unpaid_miner_says_for_what(bench: Bench) -> None:
    bench.specs("alice", ProofReason.UNREACHABLE)
    bench.score()
    explained = bench.explain("ali")
    assert explained.formula == "0: nothing is paid for unreachable"
    assert explained.retries == "no proof yet"
    assert event(explained, "specs").text == "unreachable: it hung up"


def test_who_keeps_the_address(bench: Bench) -> None:
    bench.verdict("carol")
    bench.score()
    explained = bench.explain("carol")
    duplicate = event(explained, "duplicate")
    assert duplicate.text == "its address is kept by uid 2 (bob), registered at block 20"
    assert duplicate.data["kept_by"] == {"uid": 2, "hotkey": "bob", "registered_at": 20}
    assert "no version published" in event(explained, "registered").text


def test_who_keeps_the_device(bench: Bench) -> None:
    bench.verdict("alice")
    bench.verdict("bob")
    bench.score()
    assert event(bench.explain("bob"), "duplicate").text == "GPU GPU-0 is kept by uid 1 (alice), registered at block 10"
    assert "duplicate" not in kinds(bench.explain("alice"))


def test_a_penalty_comes_with_its_note(bench: Bench) -> None:
    bench.verdict("alice")
    bench.score(penalized={"alice"})
    explained = bench.explain("alice", penalties=[Penalty("alice", "sold twice", NOW - 5)])
    assert explained.formula == "0.43 (NVIDIA L4) × 2 GPUs × factor 1.5625 × 0 (penalized) = 0"
    assert "sold twice" in event(explained, "penalized").text


def test_a_hotkey_that_left_is_explained_by_what_is_kept(bench: Bench) -> None:
    bench.verdict("gone")
    bench.score()
    explained = bench.explain("gone")
    assert (explained.uid, kinds(explained)) == (None, ["proof"])
    assert "no longer on the subnet" in explained.formula


@pytest.mark.parametrize("name", ["0", "77", "5Nobody", ""])
def test_whom_nobody_knows(bench: Bench, name: str) -> None:
    bench.score()
    with pytest.raises(NotFound):
        bench.explain(name)


def test_scores_of_an_older_release_are_explained_too(bench: Bench) -> None:
    bench.verdict("alice")
    bench.score()
    (alice, *_) = bench.facts.scores()
    bare = {
        key: value for key, value in alice.breakdown.items() if key not in ("neuron", "ip_kept_by", "device_kept_by")
    }
    bench.facts.record_scores([type(alice)(**{**vars(alice), "breakdown": bare})], at=NOW, block=500)
    assert kinds(bench.explain("alice")) == ["proof", "scored"]


def shown(argv: list[str], width: int = 80) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    options = parse_validator(argv, {})
    output = Output(out, err, as_json=options.json, width=width)
    code = show.explain_miner(options, options.explain, output) if options.explain else show.status(options, output)
    return code, out.getvalue(), err.getvalue()


def test_it_is_made_for_80_columns(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "d.db")
    bench.specs("bob")
    bench.verdict("bob")
    bench.score(allocated={"bob"})
    bench.database.close()
    code, out, err = shown(["explain", "bob", "--database", str(tmp_path / "d.db")])
    assert (code, err) == (0, "")
    table = out.split("\n\n")[1]
    assert max(map(len, table.splitlines())) <= 80
    assert "38.2" in table
    code, out, err = shown(["--status", "--database", str(tmp_path / "d.db")])
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "duplicate_ip" in out
    code, out, _ = shown(["explain", "2", "--json", "--database", str(tmp_path / "d.db")])
    assert json.loads(out)["breakdown"]["gpu"] == "NVIDIA L4"


def test_questions_make_no_file_and_say_what_to_do(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.db")
    code, out, err = shown(["explain", "1", "--database", missing])
    assert (code, out) == (2, "")
    assert "--database" in err
    assert shown(["--status", "--database", missing])[0] == 0
    (tmp_path / "junk.db").write_bytes(b"junk" * 1000)
    assert shown(["--status", "--database", str(tmp_path / "junk.db")])[0] == 2
    other = Database(tmp_path / "other.db")
    # As at the very start of a validator.
    assert shown(["--status", "--database", str(tmp_path / "other.db")])[0] == 0
    other.migrate("something else", ["CREATE TABLE other (x)"])
    other.close()
    code, _, err = shown(["--status", "--database", str(tmp_path / "other.db")])
    assert code == 2
    assert "start the neuron with this code" in err
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".db") == ["junk.db", "other.db"]


def test_the_score_keeps_what_the_chain_said(bench: Bench) -> None:
    bench.score()
    alice = bench.metagraph.by_hotkey["alice"]
    (fact,) = (fact for fact in bench.facts.scores() if fact.hotkey == "alice")
    assert fact.breakdown["neuron"].items() <= asdict(alice).items()


def test_the_status_does_without_the_sdk(tmp_path: Path) -> None:
    code = "import sys; from neurons.validator import main; main(['--status']); print(sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=True, cwd=tmp_path
    )
    assert "'bittensor'" not in done.stdout
    assert "'compute.validator.show'" in done.stdout
