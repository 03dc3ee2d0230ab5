"""Who is proven when: newcomers and retries wait for no round, and no more machines are proven at once than may be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from compute.base.errors import CallUnreachable, SshUnreachable
from compute.base.reasons import ProofReason
from compute.base.store import Database
from compute.chain.access_lists import AccessLists
from compute.incentive.config import load_config
from compute.proof.models import Claim, MachineVerdict
from compute.protocol import Allocate, Specs
from compute.testing.chain import FakeChain
from compute.testing.clock import ManualClock
from compute.validator.eligibility import QueryPolicy
from compute.validator.proving import Lane, lane_sizes
from compute.validator.rented import OwnRentals
from compute.validator.service import ValidatorService, ValidatorSettings
from compute.validator.store import FactStore
from compute.wire.lease_client import AllocationClient
from compute.wire.peer import Peer, S
from compute.wire.specs import Gpu, MachineSpecs
from tests.waiting import until_async

L4 = MachineSpecs(8, 3000.0, 64 << 30, 0, 0, 0, 100, 0, 100, (Gpu("NVIDIA L4", 23_034),))
CONFIG = load_config()
SMALL = replace(CONFIG.proof, rows=1024, k=64, columns=64)
"""No machine comes to its proof here, but the arithmetic of a batch is begun beside the requests for its leases."""


class Miners:
    """Refuse every lease; those in ``slow`` answer anything only once ``go`` is set."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.slow: set[str] = set()
        self.go = asyncio.Event()
        self.proving: set[str] = set()
        self.most_at_once = 0
        self.unreachable: set[str] = set()
        self.specs = L4

    async def call(self, peer: Peer, synapse: S, *, timeout_seconds: float) -> S:
        if isinstance(synapse, Specs):
            self.asked.append(peer.hotkey)
            if peer.hotkey in self.slow:
                await self.go.wait()
            if peer.hotkey in self.unreachable:
                raise CallUnreachable("no connection")
            synapse.specs_output = self.specs.to_json()
        elif isinstance(synapse, Allocate):
            self.proving.add(peer.hotkey)
            self.most_at_once = max(self.most_at_once, len(self.proving))
            if peer.hotkey in self.slow:
                await self.go.wait()
            self.proving.discard(peer.hotkey)
            synapse.output = {"status": False, "port": 4444, "reason": "busy", "message": "taken"}
        return synapse


class NoHosts:
    async def host_key_line(self, host: str, port: int, *, timeout_seconds: float) -> str:
        raise SshUnreachable("nobody there")


class Bench:
    def __init__(self, *, workers: int = 4, retries: int = 2) -> None:
        self.chain = FakeChain("validator")
        self.chain.add("validator", ip="0.0.0.0", stake=5000.0, validator_permit=True)
        self.miners = Miners()
        self.clock = ManualClock()
        self.facts = FactStore(Database(":memory:"))
        rounds = replace(
            CONFIG.rounds,
            max_workers=workers,
            retry_limit=retries,
            retry_interval_seconds=60.0,
            max_random_delay_seconds=1200.0,
        )
        self.service = ValidatorService(
            own_hotkey="validator",
            chain=self.chain,
            caller=self.miners,
            client=AllocationClient(self.miners, self.clock),
            facts=self.facts,
            own_rentals=OwnRentals(
                rentals=list, penalized=set, host_keys=NoHosts(), verify=lambda hotkey, message, s: False
            ),
            config=replace(CONFIG, rounds=rounds, proof=SMALL),
            settings=ValidatorSettings(policy=QueryPolicy(AccessLists()), specs_batch_size=2),
            clock=self.clock,
        )

    async def know(self, *hotkeys: str) -> None:
        for hotkey in hotkeys:
            self.chain.add(hotkey)
        await self.service.sync()
        await self.service.query_due_specs()

    def prove(self, hotkey: str, reason: ProofReason = ProofReason.OK) -> None:
        found = ("NVIDIA L4", 1) if reason is ProofReason.OK else (None, 0)
        verdict = MachineVerdict(reason, Claim("NVIDIA L4", 1), *found)
        self.facts.record_verdict(hotkey, verdict, at=self.clock.now(), block=self.chain.height, seconds=1.0)

    def proven(self) -> set[str]:
        return set(self.facts.histories())

    def score(self, hotkey: str) -> tuple[float, ProofReason]:
        return next((fact.total, fact.reason) for fact in self.facts.scores() if fact.hotkey == hotkey)

    def running(self, *lanes: Lane) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self.service.prove_due(lane)) for lane in lanes]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    bench.miners.go.set()


def test_lanes_share_the_workers() -> None:
    def sizes(workers: int, device: str = "cuda") -> dict[Lane, int]:
        proof = replace(CONFIG.proof, device=device, rows=512, k=512)
        return lane_sizes(replace(CONFIG, rounds=replace(CONFIG.rounds, max_workers=workers), proof=proof))

    assert sizes(16) == {Lane.MAIN: 12, Lane.EXPRESS: 4}
    assert sizes(2) == {Lane.MAIN: 1, Lane.EXPRESS: 1}
    assert sizes(1) == {Lane.MAIN: 1}
    for workers in range(1, 257):
        assert sum(sizes(workers).values()) == workers
    assert sizes(16, "cpu") == {Lane.MAIN: 16}


async def test_a_newcomer_waits_for_no_round(bench: Bench) -> None:
    await bench.know("a", "b", "c")
    bench.miners.slow = {"a", "b", "c"}
    (main,) = bench.running(Lane.MAIN)
    await until_async(lambda: len(bench.miners.proving) == 3)
    await bench.know("newcomer")
    await bench.service.prove_due(Lane.EXPRESS)
    assert bench.proven() == {"newcomer"}
    assert not main.done()
    bench.miners.go.set()
    await main
    assert bench.proven() == {"a", "b", "c", "newcomer"}


async def test_a_retry_waits_for_no_round_and_not_for_its_own_batch(bench: Bench) -> None:
    await bench.know("slow", "quick")
    bench.miners.slow = {"slow"}
    (main,) = bench.running(Lane.MAIN)
    await until_async(lambda: bench.proven() == {"quick"})
    await bench.service.prove_due(Lane.EXPRESS)
    assert len(bench.facts.verdicts("quick")) == 1
    bench.clock.advance(60)
    await bench.service.prove_due(Lane.EXPRESS)
    assert len(bench.facts.verdicts("quick")) == 2
    assert not main.done()
    bench.miners.go.set()
    await main


async def test_both_lanes_together_keep_to_the_workers(bench: Bench) -> None:
    names = [f"miner-{number}" for number in range(11)]
    await bench.know(*names)
    bench.miners.slow = set(names)
    tasks = bench.running(Lane.MAIN, Lane.EXPRESS)
    await until_async(lambda: len(bench.miners.proving) == 4)
    bench.miners.go.set()
    await asyncio.gather(*tasks)
    while len(bench.proven()) < len(names):
        await asyncio.gather(*bench.running(Lane.MAIN, Lane.EXPRESS))
    assert bench.miners.most_at_once == 4
    # Nobody was proven by both lanes.
    assert all(len(bench.facts.verdicts(name)) == 1 for name in names)


async def test_a_gap_between_proofs_is_a_gap_of_both_lanes(bench: Bench) -> None:
    await bench.know("a", "b", "c", "d")
    bench.miners.slow = {"a", "b", "c", "d"}
    tasks = bench.running(Lane.MAIN, Lane.EXPRESS)
    await until_async(lambda: len(bench.miners.proving) == 4)
    gap = asyncio.create_task(bench.service.between_proofs.acquire())
    bench.miners.go.set()
    await asyncio.gather(*tasks)
    await gap
    bench.clock.advance(60)
    tasks = bench.running(Lane.MAIN, Lane.EXPRESS)
    for _ in range(100):
        await asyncio.sleep(0)
    assert all(len(bench.facts.verdicts(name)) == 1 for name in "abcd")
    bench.service.between_proofs.release()
    await asyncio.gather(*tasks)
    assert all(len(bench.facts.verdicts(name)) == 2 for name in "abcd")
    assert not bench.service.between_proofs.locked()


async def test_newcomers_come_before_what_is_only_old(bench: Bench) -> None:
    for name in ("old-1", "old-2", "old-3", "old-4"):
        bench.prove(name)
    await bench.know("old-1", "old-2", "old-3", "old-4")
    bench.chain.height += 360
    await bench.service.prove_due()
    bench.clock.advance(1200)
    await bench.know("newcomer")
    await bench.service.prove_due()
    assert len(bench.facts.verdicts("newcomer")) == 1
    assert sum(len(bench.facts.verdicts(f"old-{number}")) for number in range(1, 5)) == 4 + 2


async def test_a_routine_proof_waits_for_a_moment_that_nobody_else_knows(bench: Bench) -> None:
    bench.prove("a")
    await bench.know("a")
    bench.chain.height += 360
    await bench.service.prove_due()
    await bench.service.prove_due(Lane.EXPRESS)
    assert len(bench.facts.verdicts("a")) == 1
    bench.clock.advance(1200)
    await bench.service.prove_due(Lane.EXPRESS)
    assert len(bench.facts.verdicts("a")) == 1
    await bench.service.prove_due()
    assert len(bench.facts.verdicts("a")) == 2


async def test_changed_gpus_are_proven_at_once_and_a_new_driver_is_not(bench: Bench) -> None:
    bench.prove("a")
    await bench.know("a")
    bench.chain.height += 150
    bench.clock.advance(1800)
    bench.miners.specs = replace(
        L4.with_gpus((replace(L4.gpus[0], driver="580.1", capacity_mib=23_000),)), ram_total=63 << 30
    )
    await bench.service.query_due_specs()
    await asyncio.gather(*bench.running(Lane.MAIN, Lane.EXPRESS))
    assert len(bench.facts.verdicts("a")) == 1
    bench.chain.height += 150
    bench.miners.specs = L4.with_gpus(L4.gpus * 2)
    await bench.service.query_due_specs()
    await bench.service.prove_due(Lane.EXPRESS)
    assert bench.facts.verdicts("a")[-1].claim_count == 2


async def test_who_refuses_a_probe_is_asked_at_once_whether_it_is_rented(bench: Bench) -> None:
    await bench.know("a")
    await bench.service.query_due_specs()
    assert bench.miners.asked == ["a"]
    await bench.service.prove_due()
    await bench.service.query_due_specs()
    await bench.service.query_due_specs()
    assert bench.miners.asked == ["a", "a"]


async def test_newcomers_are_asked_before_a_round_of_specs_goes_on(bench: Bench) -> None:
    await bench.know("a", "b", "c", "d")
    bench.chain.height += 150
    bench.miners.asked.clear()

    bench.miners.slow = {"a", "b"}
    querying = asyncio.create_task(bench.service.query_due_specs())
    await until_async(lambda: len(bench.miners.asked) == 2)
    bench.chain.add("newcomer")
    # The duty that sets weights reads the subnet at every poll, and so knows it first.
    await bench.service.set_weights()
    bench.miners.go.set()
    await querying
    assert "newcomer" in bench.miners.asked[2:4]
    assert sorted(bench.miners.asked) == ["a", "b", "c", "d", "newcomer"]


# --- the window of grace ----------------------------------------------------------------------------------------


async def test_a_rental_that_cannot_be_proven_keeps_its_pay_for_the_retries_and_no_longer(bench: Bench) -> None:
    bench.prove("a")
    await bench.know("a")
    bench.chain.height += 360
    bench.clock.advance(3600)
    # Its moment is drawn here, and has come by the second time.
    await bench.service.prove_due()
    bench.clock.advance(1200)
    paid = []
    for failures in range(1, 6):
        await bench.service.prove_due()
        await bench.service.set_weights()
        paid.append(bench.score("a"))
        # The proof that was due, two retries, and no more.
        assert len(bench.facts.verdicts("a")) == 1 + min(failures, 3)
        bench.clock.advance(60)
    assert paid == [(pytest.approx(0.671875), ProofReason.REFUSED)] * 2 + [(0.0, ProofReason.REFUSED)] * 3


async def test_one_good_proof_makes_up_for_all_failures(bench: Bench) -> None:
    bench.prove("a")
    for _ in range(9):
        bench.prove("a", ProofReason.SLOWER_THAN_CLAIMED)
    await bench.know("a")
    await bench.service.set_weights()
    assert bench.score("a") == (0.0, ProofReason.SLOWER_THAN_CLAIMED)
    bench.prove("a")
    await bench.service.set_weights()
    assert bench.score("a")[1] is ProofReason.OK


# --- one address, one uid ---------------------------------------------------------------------------------------


async def test_who_only_says_that_an_address_is_his_takes_it_from_nobody(bench: Bench) -> None:
    squatter: Any = bench.chain.add("squatter", registered_at=1)
    bench.chain.add("honest", ip=squatter.ip, registered_at=50)
    bench.miners.unreachable = {"squatter"}
    await bench.know()
    bench.prove("honest")
    await bench.service.set_weights()
    assert bench.score("squatter") == (0.0, ProofReason.DUPLICATE_IP)
    assert bench.score("honest")[1] is ProofReason.OK


async def test_of_two_that_answer_at_one_address_the_older_is_paid(bench: Bench) -> None:
    first: Any = bench.chain.add("first", registered_at=1)
    bench.chain.add("second", ip=first.ip, registered_at=50)
    await bench.know()
    for hotkey in ("first", "second"):
        bench.prove(hotkey)
    await bench.service.set_weights()
    assert bench.score("first")[1] is ProofReason.OK
    assert bench.score("second") == (0.0, ProofReason.DUPLICATE_IP)
    bench.chain.height += 400
    bench.clock.advance(3600)
    await bench.service.prove_due()
    bench.clock.advance(1200)
    await bench.service.prove_due()
    assert (len(bench.facts.verdicts("first")), len(bench.facts.verdicts("second"))) == (2, 1)
