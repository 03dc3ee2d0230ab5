"""The validator's duties, with a chain in memory and miners that answer without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compute.base.errors import CallError, CallUnreachable, ChainUnreachable, NotRegistered, SshError, SshUnreachable
from compute.base.reasons import ProofReason
from compute.base.store import Database
from compute.chain.access_lists import AccessLists
from compute.incentive.config import Config, load_config
from compute.proof.models import Claim, MachineVerdict
from compute.protocol import Allocate, Specs
from compute.rental.evidence import Rental
from compute.testing.chain import FakeChain
from compute.testing.clock import ManualClock
from compute.validator.eligibility import QueryPolicy
from compute.validator.rented import OwnRentals
from compute.validator.service import SYNC_BLOCKS, ValidatorService, ValidatorSettings
from compute.validator.show import miner_rows
from compute.validator.store import FactStore, SpecsFact, WeightsState
from compute.wire.keys import SessionKey
from compute.wire.lease_client import AllocationClient
from compute.wire.peer import Peer, S
from compute.wire.signing import verify_signature
from compute.wire.specs import Gpu, MachineSpecs
from tests.waiting import DEADLINE_SECONDS

L4 = MachineSpecs(8, 3000.0, 64, 64, 0, 64, 100, 0, 100, (Gpu("NVIDIA L4", 23_034),))
CONFIG = load_config()
QUICK: Config = replace(
    CONFIG,
    # No machine comes to its proof here, but the arithmetic of a batch is begun beside the requests for its leases.
    proof=replace(CONFIG.proof, rows=1024, k=64, columns=64),
    rounds=replace(CONFIG.rounds, retry_limit=2, retry_interval_seconds=10.0, max_random_delay_seconds=0.0),
)


class Miners:
    """A ``Caller`` in front of many miners; ``specs`` by hotkey, an exception is raised. None of them can be leased."""

    def __init__(self) -> None:
        self.specs: dict[str, str | CallError] = {}
        self.asked: list[str] = []

    async def call(self, peer: Peer, synapse: S, *, timeout_seconds: float) -> S:
        if isinstance(synapse, Specs):
            self.asked.append(peer.hotkey)
            answer = self.specs[peer.hotkey]
            if isinstance(answer, CallError):
                raise answer
            synapse.specs_output = answer
        elif isinstance(synapse, Allocate):
            synapse.output = {"status": False, "port": 4444, "reason": "busy", "message": "taken"}
        return synapse


HOST_KEY = SessionKey.generate()


class KnownHosts:
    """Answers with ``HOST_KEY``, or with what it is told to."""

    def __init__(self) -> None:
        self.answer: str | SshError = HOST_KEY.public_line

    async def host_key_line(self, host: str, port: int, *, timeout_seconds: float) -> str:
        if isinstance(self.answer, SshError):
            raise self.answer
        return self.answer


class Bench:
    def __init__(self, database: Database | None = None) -> None:
        self.chain = FakeChain("validator")
        self.chain.add("validator", ip="0.0.0.0", stake=5000.0, validator_permit=True)
        for hotkey in ("a", "b", "c"):
            self.chain.add(hotkey)
        self.miners = Miners()
        self.miners.specs = {hotkey: L4.to_json() for hotkey in ("a", "b", "c")}
        self.clock = ManualClock()
        self.facts = FactStore(database or Database(":memory:"))
        self.rentals: list[Rental] = []
        self.host_keys = KnownHosts()

    def service(self, **settings: Any) -> ValidatorService:
        base = ValidatorSettings(policy=QueryPolicy(AccessLists()), poll_seconds=1.0)
        return ValidatorService(
            own_hotkey="validator",
            chain=self.chain,
            caller=self.miners,
            client=AllocationClient(self.miners, self.clock),
            facts=self.facts,
            own_rentals=OwnRentals(
                rentals=lambda: self.rentals, penalized=set, host_keys=self.host_keys, verify=verify_signature
            ),
            config=QUICK,
            settings=replace(base, **settings),
            clock=self.clock,
        )

    def prove(self, hotkey: str, reason: ProofReason = ProofReason.OK) -> None:
        count = 1 if reason is ProofReason.OK else 0
        gpu = "NVIDIA L4" if count else None
        verdict = MachineVerdict(reason, Claim("NVIDIA L4", 1), gpu, count)
        self.facts.record_verdict(hotkey, verdict, at=self.clock.now(), block=self.chain.height, seconds=1.0)

    def reasons(self) -> dict[str, str]:
        return {row.hotkey: row.reason.value for row in miner_rows(self.facts)}


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_specs_are_asked_when_due_and_not_before(bench: Bench) -> None:
    service = bench.service(specs_batch_size=2)
    await service.sync()
    await service.query_due_specs()
    await service.query_due_specs()
    assert sorted(bench.miners.asked) == ["a", "b", "c"]
    bench.chain.height += 150
    await service.query_due_specs()
    assert len(bench.miners.asked) == 6


async def test_both_intervals_are_those_of_the_options(bench: Bench) -> None:
    for hotkey in ("a", "b", "c"):
        bench.prove(hotkey)
    service = bench.service(specs_interval_blocks=5, proof_interval_blocks=10)
    seen = []
    for blocks in (0, 4, 1, 4, 1):
        bench.chain.height += blocks
        await service.sync()
        await service.query_due_specs()
        await service.prove_due()
        seen.append((len(bench.miners.asked), len(bench.facts.verdicts("a"))))
    # Whoever refuses a probe may have been rented meanwhile, and may be asked for its specs again at once.
    assert [verdicts for _, verdicts in seen] == [1, 1, 1, 1, 2]
    assert [asked for asked, _ in seen[:4]] == [3, 3, 6, 6]


@pytest.mark.parametrize("at_once", [1, 3])
async def test_no_more_miners_are_asked_at_once_than_the_option_says(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    now, most, answer = [0], [0], bench.miners.call

    async def call(peer: Peer, synapse: Any, *, timeout_seconds: float) -> Any:
        now[0] += 1
        most[0] = max(most[0], now[0])
        for _ in range(10):
            await asyncio.sleep(0)
        now[0] -= 1
        return await answer(peer, synapse, timeout_seconds=timeout_seconds)

    monkeypatch.setattr(bench.miners, "call", call)
    service = bench.service(specs_batch_size=at_once)
    await service.sync()
    await service.query_due_specs()
    assert most == [at_once]


async def test_a_restart_asks_nothing_twice(bench: Bench) -> None:
    for _ in range(2):
        service = bench.service()
        await service.sync()
        await service.query_due_specs()
    assert sorted(bench.miners.asked) == ["a", "b", "c"]


async def test_whatever_a_miner_answers_is_a_reason(bench: Bench) -> None:
    bench.miners.specs = {
        "a": CallUnreachable("no connection"),
        "b": '{"cpu": NaN}',
        "c": L4.with_gpus(()).to_json(),
    }
    service = bench.service()
    await service.sync()
    await service.query_due_specs()
    await service.prove_due()
    await service.set_weights()
    assert bench.reasons() == {"a": "unreachable", "b": "bad_specs", "c": "no_gpu"}
    assert bench.chain.weights == {}


async def test_a_machine_that_cannot_be_leased_has_a_verdict_too(bench: Bench) -> None:
    service = bench.service()
    await service.sync()
    await service.query_due_specs()
    await service.prove_due()
    assert {history.latest.reason for history in bench.facts.histories().values() if history.latest} == {
        ProofReason.REFUSED
    }


async def test_between_proofs_is_a_moment_that_can_be_held(bench: Bench) -> None:
    service = bench.service()
    await service.sync()
    await service.query_due_specs()
    await service.between_proofs.acquire()
    proving = asyncio.create_task(service.prove_due())
    for _ in range(200):
        await asyncio.sleep(0)
    assert not proving.done()
    assert not any(history.latest for history in bench.facts.histories().values())
    service.between_proofs.release()
    await asyncio.wait_for(proving, DEADLINE_SECONDS)
    assert all(history.latest for history in bench.facts.histories().values())
    assert not service.between_proofs.locked()


async def test_our_own_leases_are_not_disturbed_and_count_double(bench: Bench) -> None:
    bench.rentals = [Rental("a", "127.0.1.2", 4444, HOST_KEY.fingerprint, is_paused=False)]
    service = bench.service()
    await service.sync()
    await service.watch()
    await service.query_due_specs()
    bench.prove("a")
    bench.prove("b")
    bench.clock.advance(1000)
    bench.chain.height += 1000
    await service.prove_due()
    assert [fact.reason for fact in bench.facts.verdicts("a")] == [ProofReason.OK]
    assert len(bench.facts.verdicts("b")) == 2
    await service.set_weights()
    scores = {fact.hotkey: fact.total for fact in bench.facts.scores()}
    assert scores["a"] == pytest.approx(2 * scores["b"])


@pytest.mark.parametrize("answer", [SshUnreachable("gone"), SessionKey.generate().public_line], ids=["gone", "another"])
async def test_a_rented_machine_that_is_gone_or_another_is_no_evidence(bench: Bench, answer: str | SshError) -> None:
    bench.rentals = [Rental("a", "127.0.1.2", 4444, HOST_KEY.fingerprint, is_paused=False)]
    bench.host_keys.answer = answer
    service = bench.service()
    await service.sync()
    await service.query_due_specs()
    bench.prove("a")
    bench.chain.height += 1000
    await service.watch()
    await service.prove_due()
    assert bench.facts.verdicts("a")[-1].reason is ProofReason.REFUSED
    await service.set_weights()
    assert not any(row.allocated for row in miner_rows(bench.facts))


async def test_a_rented_machine_keeps_its_last_good_verdict_whatever_came_after(bench: Bench) -> None:
    bench.prove("a")
    for _ in range(9):
        bench.prove("a", ProofReason.REFUSED)
    bench.rentals = [Rental("a", "127.0.1.2", 4444, "SHA256:paused", is_paused=True)]
    service = bench.service()
    await service.sync()
    await service.watch()
    await service.set_weights()
    (row,) = (row for row in miner_rows(bench.facts) if row.hotkey == "a")
    assert (row.reason, row.allocated, row.weight) == (ProofReason.RENTED, True, 1.0)


async def test_who_left_is_forgotten_while_the_weights_keep_the_subnet_fresh(bench: Bench) -> None:
    service = bench.service()
    await service.sync()
    await service.query_due_specs()
    bench.facts.record_specs([SpecsFact("left", bench.clock.now(), 1, ProofReason.OK, L4.to_json(), "")])
    bench.clock.advance(8 * 86_400)
    for _ in range(SYNC_BLOCKS):
        assert "left" in bench.facts.specs()
        bench.chain.height += 1
        await service.set_weights()
        await service.sync_if_due()
    assert bench.facts.specs().keys() == {"a", "b", "c"}


async def test_weights_follow_scores_and_are_read_back(bench: Bench) -> None:
    service = bench.service()
    await service.sync()
    bench.prove("a")
    await service.set_weights()
    assert bench.chain.weights == {0: {1: 65535}}
    entry = bench.facts.last_weights()
    assert entry is not None
    assert entry.state is WeightsState.CONFIRMED
    assert [row.weight for row in miner_rows(bench.facts)] == [1.0, 0.0, 0.0]


async def test_a_new_owner_of_a_uid_inherits_nothing(bench: Bench) -> None:
    bench.prove("a")
    bench.chain.neurons[1] = replace(bench.chain.neurons[1], hotkey="new")
    bench.prove("b")
    service = bench.service()
    await service.sync()
    await service.set_weights()
    assert bench.chain.weights == {0: {2: 65535}}


async def test_a_hotkey_that_registered_again_is_proven_again(bench: Bench) -> None:
    bench.prove("a")
    bench.chain.neurons[1] = replace(bench.chain.neurons[1], registered_at=bench.chain.height + 1)
    service = bench.service()
    await service.sync()
    await service.set_weights()
    assert bench.reasons()["a"] == "not_proven_yet"
    assert bench.chain.weights == {}


async def test_an_unregistered_validator_says_how_to_register(bench: Bench) -> None:
    bench.chain.neurons[0] = replace(bench.chain.neurons[0], hotkey="somebody")
    with pytest.raises(NotRegistered, match="btcli subnets register --netuid 27"):
        await bench.service().run()


async def run(service: ValidatorService, bench: Bench, until: Callable[[], bool]) -> asyncio.Task[None]:
    task = asyncio.create_task(service.run())
    for _ in range(2000):
        if until() or task.done():
            break
        await asyncio.sleep(0)
        bench.clock.advance(1.0)
    assert until()
    return task


async def test_rounds_end_the_run(bench: Bench) -> None:
    for hotkey in ("a", "b", "c"):
        bench.prove(hotkey)
    service = bench.service(rounds=2, proof_interval_blocks=10_000)
    task = await run(service, bench, lambda: bench.chain.submissions >= 1)
    bench.chain.height += 1
    for _ in range(200):
        await asyncio.sleep(0)
        bench.clock.advance(1.0)
    assert task.done()
    states = [row["state"] for row in bench.facts._database.query("SELECT state FROM weights_journal")]
    assert states == [WeightsState.CONFIRMED.value] * 2


async def test_one_failing_duty_stops_no_other(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.prove("a")
    bench.chain.fail_next("rules", ChainUnreachable("gone for a moment"))
    service = bench.service(proof_interval_blocks=10_000)
    task = await run(service, bench, lambda: bool(bench.chain.weights) and len(bench.miners.asked) == 3)
    assert bench.chain.weights == {0: {1: 65535}}
    assert "weights: gone for a moment" in caplog.text
    assert sorted(bench.miners.asked) == ["a", "b", "c"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_full_disk_is_said_and_survived(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = Database(tmp_path / "validator.db")
    bench = Bench(database)
    bench.prove("a")
    pages = database.query("PRAGMA page_count")[0][0]
    (limit,) = database.query(f"PRAGMA max_page_count = {pages}")[0]
    assert limit == pages
    bench.miners.specs = {hotkey: L4.to_json() + " " * 60_000 for hotkey in ("a", "b", "c")}
    service = bench.service(proof_interval_blocks=10_000)
    task = await run(service, bench, lambda: "Make room" in caplog.text)
    assert "specs: " in caplog.text
    assert not task.done(), "it goes on"
    assert bench.facts.histories()["a"].last_ok is not None, "with what it has"
    database.query("PRAGMA max_page_count = 100000")
    for _ in range(2000):
        bench.clock.advance(1.0)
        await asyncio.sleep(0)
        if len(bench.facts.specs()) == 3 and bench.chain.weights:
            break
    assert set(bench.facts.specs()) == {"a", "b", "c"}
    assert bench.chain.weights == {0: {1: 65535}}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_without_the_hardware_query_nobody_is_asked(bench: Bench) -> None:
    bench.prove("a")
    service = bench.service(perform_hardware_query=False)
    task = await run(service, bench, lambda: bool(bench.chain.weights))
    assert bench.miners.asked == []
    assert len(bench.facts.verdicts("a")) == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
