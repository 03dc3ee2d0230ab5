from __future__ import annotations

import asyncio
import re
import socket
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from compute.base import metrics
from compute.base.errors import ChainUnreachable, ConfigError
from compute.base.options.shared import MetricsOptions
from compute.base.reasons import ProofReason
from compute.base.store import Database
from compute.base.tasks import beside, repeat
from compute.miner.access import AccessPolicy
from compute.miner.gate import MinerGate
from compute.miner.leases.states import LeaseState
from compute.miner.leases.store import Lease, LeaseSecrets, LeaseStore, Owner
from compute.miner.runtimes.base import Limits
from compute.miner.telemetry import MinerCollector
from compute.proof.models import Claim, MachineVerdict
from compute.testing.clock import ManualClock
from compute.validator.store import FactStore, ScoreFact, SpecsFact, WeightsState
from compute.validator.telemetry import ValidatorCollector
from compute.wire.keys import SecretBox
from compute.wire.lease_terms import LeaseKind
from tests.waiting import DEADLINE_SECONDS

ROOT = Path(__file__).resolve().parents[3]
Samples = dict[tuple[str, tuple[str, ...]], float]


def samples(collector: Collector) -> Samples:
    """Every sample by its name and the values of its labels, in the order of the labels' names."""
    registry = CollectorRegistry()
    registry.register(collector)
    return parsed(generate_latest(registry).decode())


def parsed(text: str) -> Samples:
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def facts() -> FactStore:
    return FactStore(Database(":memory:"))


def test_what_a_validator_knows(facts: FactStore) -> None:
    facts.record_specs(
        [SpecsFact("a", 1.0, 1, ProofReason.OK, "{}", ""), SpecsFact("b", 1.0, 1, ProofReason.TIMEOUT, None, "")]
    )
    for reason in (ProofReason.TIMEOUT, ProofReason.OK):
        facts.record_verdict("a", MachineVerdict(reason, Claim("L4", 1)), at=1.0, block=5, seconds=3.0)
    facts.record_scores(
        [ScoreFact("a", 7, 4.25, ProofReason.OK, {}), ScoreFact("b", 8, 0.0, ProofReason.TIMEOUT, {})], at=2.0, block=9
    )
    facts.advance_weights(facts.begin_weights({7: 300, 8: 100}, at=1.0, block=6), WeightsState.CONFIRMED)
    facts.begin_weights({7: 65535}, at=1.0, block=9)
    found = samples(ValidatorCollector(facts, "5Hot", 27))
    expected = {
        ("compute_miners", ("ok",)): 1,
        ("compute_miners", ("timeout",)): 1,
        ("compute_specs", ("ok",)): 1,
        ("compute_specs", ("timeout",)): 1,
        ("compute_verdicts", ("ok",)): 1,
        ("compute_score", ("a", "7")): 4.25,
        ("compute_score", ("b", "8")): 0.0,
        ("compute_scores_block", ()): 9,
        ("compute_weights_block", ("confirmed",)): 6,
        ("compute_weights_block", ("intent",)): 9,
        ("compute_weight", ("7",)): 0.75,
        ("compute_weight", ("8",)): 0.25,
        ("compute_store_readable", ()): 1,
    }
    assert expected.items() <= found.items()
    assert set(found) - set(expected) == {key for key in found if key[0] == "compute_neuron_info"}


def test_who_has_the_machine() -> None:
    store = LeaseStore(Database(":memory:"), SecretBox(bytes(32)))
    collector = MinerCollector(store, "5Hot", 27)
    assert samples(collector)["compute_lease", ("", "free")] == 1
    owner, limits = Owner("5Alice", "pem"), Limits(1, 2, 3, ())
    lease = Lease("1", LeaseState.RESERVED, LeaseKind.PROBE, owner, "r", "ubuntu", limits, 0.0, 600.0)
    store.reserve(lease, LeaseSecrets(host_key="h"), now=0.0)
    found = samples(collector)
    assert found["compute_lease", ("probe", "reserved")] == 1
    assert found["compute_lease_ends_timestamp_seconds", ()] == 600.0


def test_a_database_that_cannot_be_read_is_a_metric(facts: FactStore) -> None:
    facts._database.close()
    found = samples(ValidatorCollector(facts, "5Hot", 27))
    assert {name for name, _ in found} == {"compute_neuron_info", "compute_store_readable"}
    assert found["compute_store_readable", ()] == 0


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_duties_are_timed_and_their_failures_counted() -> None:
    clock, turns = ManualClock(), 0

    async def work() -> None:
        nonlocal turns
        turns += 1
        clock.advance(5.0)
        if turns % 2:
            raise ChainUnreachable("away")

    name = "a duty of this test"
    async with beside(repeat(name, work, clock=clock, pause_seconds=1.0)):
        for _ in range(20):
            await asyncio.sleep(0)
            clock.advance(0.5)
    assert turns > 2
    assert counted("compute_duty_failures_total", duty=name) == (turns + 1) // 2
    assert counted("compute_duty_seconds_count", duty=name) == turns
    assert counted("compute_duty_seconds_sum", duty=name) == 5.0 * turns


def test_refused_requests_are_counted() -> None:
    before = counted("compute_requests_refused_total", reason="metagraph_unknown")
    gate = MinerGate(AccessPolicy(), ManualClock())
    gate.refusal("anybody", "Specs")
    assert counted("compute_requests_refused_total", reason="metagraph_unknown") == before + 1
    before = counted("compute_requests_refused_total", reason="rate_limited")
    for _ in range(61):
        gate.overuse("validator")
    assert counted("compute_requests_refused_total", reason="rate_limited") == before + 1


def fetch(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE_SECONDS) as answer:
        return parsed(answer.read().decode())


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


async def test_they_are_served_while_the_neuron_runs(facts: FactStore, port: int) -> None:
    clock, collector = ManualClock(), ValidatorCollector(facts, "5Hot", 27)
    before = counted("compute_event_loop_lag_seconds_count")
    for _ in range(2):
        async with metrics.served(MetricsOptions(port), [collector], clock):
            await asyncio.sleep(0)
            clock.advance(0.5)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            found = await asyncio.to_thread(fetch, port)
            assert found["compute_store_readable", ()] == 1
            assert ("process_resident_memory_bytes", ()) in found
    assert counted("compute_event_loop_lag_seconds_count") == before + 2
    with pytest.raises(OSError):
        await asyncio.to_thread(fetch, port)


async def test_they_are_off_by_default(facts: FactStore) -> None:
    async with metrics.served(MetricsOptions(), [ValidatorCollector(facts, "5Hot", 27)], ManualClock()):
        assert counted("compute_store_readable") == 0.0


async def test_a_taken_port_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match=r"--metrics\.port"):
        async with metrics.served(MetricsOptions(taken.getsockname()[1]), [], ManualClock()):
            raise AssertionError


def test_the_page_explains_every_metric_and_none_else(facts: FactStore) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    table = {
        (name, tuple(re.findall(r"`(\w+)`", labels)))
        for name, labels in re.findall(r"^\| `(compute_\w+)` \|([^|]*)\|", page, flags=re.MULTILINE)
    }
    found = {
        ("compute_neuron_info", ("role", "hotkey", "netuid", "version")),
        ("compute_lease", ("state", "kind")),
        *((family.name, tuple(family._labelnames)) for family in ValidatorCollector(facts, "", 27).collect()),
        *(
            (family.name, tuple(family._labelnames))
            for family in MinerCollector(LeaseStore(Database(":memory:"), SecretBox(bytes(32))), "", 27).collect()
        ),
        *(
            (counter._name + ("_total" if counter._type == "counter" else ""), counter._labelnames)
            for counter in vars(metrics).values()
            if hasattr(counter, "_labelnames")
        ),
    }
    assert table == {(name, labels) for name, labels in found if (name, labels) != ("compute_neuron", ())}
