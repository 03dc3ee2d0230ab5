"""What each option of a validator does to one that runs."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from compute.base.reasons import ProofReason
from compute.base.store import Database
from compute.proof.models import CPU_MODEL, Claim, MachineVerdict
from compute.protocol import Allocate, Specs
from compute.validator.store import FactStore
from compute.wire.server import AxonServer, RequestContext
from compute.wire.specs import Gpu, MachineSpecs

if TYPE_CHECKING:
    from conftest import Start, Subnet

MACHINE = MachineSpecs(8, 3000.0, 1 << 36, 1 << 36, 0, 1 << 36, 1 << 40, 0, 1 << 40, (Gpu(CPU_MODEL, 1024),))
DAY = 7200


def proven(subnet: Subnet, name: str, *hotkeys: str) -> Path:
    """The database of a validator that has found a core of every one of ``hotkeys`` already."""
    path = subnet.folder / f"{name}.db"
    database = Database(path)
    for hotkey in hotkeys:
        verdict = MachineVerdict(ProofReason.OK, Claim(CPU_MODEL, 1), CPU_MODEL, 1)
        FactStore(database).record_verdict(hotkey, verdict, at=4e9, block=DAY, seconds=1.0)
    database.close()
    return path


def reasons(path: Path) -> dict[str, str]:
    """The reason of every score, by hotkey."""
    database = Database(path, read_only=True)
    try:
        return {fact.hotkey: fact.reason.value for fact in FactStore(database).scores()}
    finally:
        database.close()


@pytest.mark.shows(
    "validator",
    *("netuid", "subtensor.chain_endpoint", "subtensor.network", "subtensor._mock"),
    *("wallet.path", "wallet.name", "wallet.hotkey", "database", "config.file", "auto_update"),
    *("axon.external_ip", "axon.external_port", "axon.port", "axon.ip", "axon.max_workers"),
    *("validator.rounds", "validator.perform.hardware.query", "validator.challenge.batch.size"),
    *("validator.force.update.prometheus", "status", "json", "explain"),
    *("logging.json", "logging.record_log", "logging.logging_dir", "logging.info"),
)
def test_who_it_is_and_what_it_pays(subnet: Subnet, start: Start, tmp_path: Path) -> None:
    subnet.join("validator", stake=5000)
    for name in ("one", "two"):
        subnet.join(name, at=subnet.free_address())
    database = proven(subnet, "validator", subnet.hotkey("one"))
    words = [
        *(*subnet.options("validator"), "--validator.rounds", "1", "--no-validator.perform.hardware.query"),
        *("--config.file", str(subnet.config(score=2.0)), "--axon.external_ip", "127.3.2.1"),
        *("--subtensor.network", "finney", "--subtensor._mock", "no", "--axon.ip", "127.0.0.1"),
        *("--axon.max_workers", "3", "--validator.challenge.batch.size", "3"),
    ]
    recorded = ["--logging.json", "--logging.record_log", "--logging.logging_dir", str(tmp_path / "logs")]
    first = start("validator", *words, "--axon.port", "4001", *recorded, after=subnet.chatter)
    assert first.outcome()[0] == 0, first.log
    events = {event["event"]: event for event in first.events()}
    assert events["validator starts"]["hotkey"] == subnet.hotkey("validator")
    assert events["validator starts"]["netuid"] == subnet.netuid
    assert (tmp_path / "logs" / "validator.log").read_text(encoding="utf-8") in first.log
    assert "version published" in events
    assert "auto-update is off" in events
    assert "says the SDK" not in first.log
    chain = subnet.neuron("validator")
    assert list(chain["weights"]) == [str(subnet.neuron("one")["uid"])]
    address = int.from_bytes(socket.inet_aton("127.3.2.1"), "big")
    assert (chain["prometheus"]["ip"], chain["prometheus"]["port"]) == (address, 4001)

    for more, published in (((), False), (("--validator.force.update.prometheus", "--logging.info"), True)):
        again = start("validator", *words, "--axon.external_port", "4001", *more, after=subnet.chatter)
        assert again.outcome()[0] == 0
        assert ("version published" in again.log) is published
        assert ("says the SDK" in again.log) is published

    code, stdout = start("validator", "--status", "--json", "--database", str(database)).outcome()
    rows = {row["hotkey"]: row for row in json.loads(stdout)}
    assert code == 0
    assert (rows[subnet.hotkey("one")]["score"], rows[subnet.hotkey("one")]["weight"]) == (2.0 * 50 / 32, 1.0)
    assert rows[subnet.hotkey("two")]["verdict"]["reason"] == "not_proven_yet", "nobody has asked it"
    code, stdout = start(
        *("validator", "explain", subnet.hotkey("one"), "--database", str(database)),
        *("--config.file", str(subnet.config(score=2.0))),
    ).outcome()
    assert code == 0
    assert f"2 ({CPU_MODEL}) × 1 GPU × factor 1.5625 = 3.125" in stdout


@pytest.mark.shows("validator", "subtensor._mock")
def test_there_is_no_mocked_chain(subnet: Subnet, start: Start) -> None:
    subnet.wallet("validator")
    mocked = start("validator", *subnet.options("validator"), "--subtensor._mock")
    assert mocked.outcome()[0] == 2
    assert "there is no mocked chain" in mocked.log


@pytest.mark.shows(
    "validator",
    *("blacklist.hotkeys", "blacklist.coldkeys", "blacklist.exploiters", "whitelist.hotkeys", "whitelist.coldkeys"),
    *("validator.whitelist.unrecognized", "validator.whitelist.updated.threshold", "version.file"),
    *("subtensor.network", "metrics.ip", "metrics.port"),
    *("logging.debug", "logging.trace", "logging.enable_third_party_loggers"),
)
def test_which_miners_are_asked(subnet: Subnet, start: Start, tmp_path: Path) -> None:
    versions = {"new": 210, "middle": 200, "black": 200, "of-black": 200, "exploiter": 200}
    versions |= {"old": 100, "none": 0, "white": 100, "of-white": 100}
    for name, version in versions.items():
        subnet.join(name, at=subnet.free_address(), version=version)
    validators = [f"validator-{number}" for number in range(3)]
    for name in validators:
        subnet.join(name, stake=5000)
    file = tmp_path / "versions.py"
    file.write_text(
        '__version__ = "2.1.0"\n__minimal_miner_version__ = "2.1.0"\n__minimal_validator_version__ = "2.1.0"\n'
    )
    metrics = subnet.free_address()
    # Nobody is asked anything: whom it would ask is decided before.
    quiet = ("--no-validator.perform.hardware.query", "--validator.specs.interval", "1")
    after = subnet.exploits("exploiter") + subnet.chatter
    one = start(
        *("validator", *subnet.options(validators[0]), *quiet, "--validator.whitelist.updated.threshold", "50"),
        *("--blacklist.hotkeys", subnet.hotkey("black"), "--blacklist.coldkeys", subnet.coldkey("of-black")),
        *("--whitelist.hotkeys", subnet.hotkey("white"), "--whitelist.coldkeys", subnet.coldkey("of-white")),
        *("--metrics.port", str(metrics[1]), "--metrics.ip", metrics[0], "--logging.trace"),
        after=after,
    )
    two = start(
        *("validator", *subnet.options(validators[1]), *quiet, "--validator.whitelist.updated.threshold", "10"),
        *("--no-blacklist.exploiters", "--validator.whitelist.unrecognized", "--version.file", str(file)),
        *("--logging.debug", "--logging.enable_third_party_loggers"),
        after=after,
    )
    three = start(
        *("validator", *quiet, "--subtensor.network", subnet.node.endpoint),
        *(
            word
            for word in subnet.options(validators[2])
            if word not in ("--subtensor.chain_endpoint", subnet.node.endpoint)
        ),
    )
    asked = "not_proven_yet"
    expected = {
        # name: what becomes of it with each validator
        "new": (asked, asked, asked),
        "middle": (asked, "old_version", asked),
        "black": ("blacklisted", "old_version", asked),
        "of-black": ("blacklisted", "old_version", asked),
        "exploiter": ("blacklisted", "old_version", asked),
        "old": ("old_version", "old_version", asked),
        "none": ("old_version", asked, asked),
        "white": (asked, "old_version", asked),
        "of-white": (asked, "old_version", asked),
    }

    def found() -> dict[str, tuple[str, ...]]:
        tables = [reasons(tmp_path / f"{name}.db") for name in validators]
        return {name: tuple(table[subnet.hotkey(name)] for table in tables) for name in versions}

    for validator in (one, two, three):
        validator.until("version published")
    subnet.until(lambda: all(reasons(tmp_path / f"{name}.db") for name in validators), "every validator has scores")
    # The version file may come after the first look at the subnet; then the next one counts it.
    subnet.until(lambda: found() == expected, json.dumps(expected))
    assert (one.listens_on(), two.listens_on(), three.listens_on()) == ({metrics}, set(), set())
    with urllib.request.urlopen(f"http://{metrics[0]}:{metrics[1]}/metrics", timeout=20) as answer:
        assert b'compute_miners{reason="blacklisted"} 3.0' in answer.read()
    assert " DEBUG " in one.log
    assert " DEBUG " in two.log
    assert " DEBUG " not in three.log
    assert "says a library" not in one.log
    assert "says a library" in two.log


class Crowd:
    """Miners that answer from this process, and remember how each validator has asked them."""

    def __init__(self) -> None:
        self.specs: Counter[str] = Counter()
        self.probes: Counter[str] = Counter()
        self.at_once: Counter[str] = Counter()
        self.told_address: set[str] = set()
        self.expects_all = False
        self._now: Counter[str] = Counter()
        self._servers: list[AxonServer] = []

    def refusal(self, hotkey: str, synapse_name: str) -> str | None:
        return None

    def overuse(self, hotkey: str) -> str | None:
        return None

    def priority(self, hotkey: str, synapse_name: str) -> float:
        return 0.0

    async def serve(self, wallet: Any, ip: str, port: int) -> None:
        async def answer_specs(synapse: Specs, context: RequestContext) -> Specs:
            caller = context.hotkey
            self.specs[caller] += 1
            self.told_address.add(str(synapse.dendrite.ip))
            self._now[caller] += 1
            self.at_once[caller] = max(self.at_once[caller], self._now[caller])
            try:
                # Time for the others to come, if they do.
                for _ in range(80 if self.expects_all else 5):
                    if self.expects_all and self.at_once[caller] == len(self._servers):
                        break
                    await asyncio.sleep(0.1)
            finally:
                self._now[caller] -= 1
            synapse.specs_output = MACHINE.to_json()
            return synapse

        async def refuse(synapse: Allocate, context: RequestContext) -> Allocate:
            self.probes[context.hotkey] += 1
            synapse.output = {"status": False, "port": 4444, "reason": "unsupported", "message": "not today"}
            return synapse

        server = AxonServer(wallet, self, ip=ip, port=port, external_ip=ip)
        server.attach(Specs, answer_specs)
        server.attach(Allocate, refuse)
        await server.start()
        self._servers.append(server)

    async def close(self) -> None:
        for server in self._servers:
            await server.stop()


@pytest.fixture
async def crowd(subnet: Subnet) -> AsyncIterator[Crowd]:
    crowd = Crowd()
    for number in range(3):
        at = subnet.free_address()
        await asyncio.to_thread(subnet.join, f"miner-{number}", at=at, version=200)
        await crowd.serve(subnet.wallets[f"miner-{number}"], *at)
    yield crowd
    await crowd.close()


async def soon(condition: Callable[[], bool], subnet: Subnet) -> None:
    await asyncio.to_thread(subnet.until, condition)


@pytest.mark.shows(
    "validator",
    *("validator.specs.batch.size", "validator.specs.interval", "validator.proof.interval", "axon.external_ip"),
)
async def test_how_often_and_how_many_at_once(subnet: Subnet, start: Start, crowd: Crowd, tmp_path: Path) -> None:
    for name in ("one", "two"):
        await asyncio.to_thread(subnet.join, name, stake=5000)
    one, two = subnet.hotkey("one"), subnet.hotkey("two")
    # Retries do not matter here, and none is due within the test. Nor does time: what is due is so by the blocks that
    # are made at once, and not by those that come while something is waited for.
    config = ("--config.file", str(subnet.config(score=2.0, pog_retry_limit=0, pog_retry_interval=36_000)))
    often = ("--validator.specs.interval", "5000", "--validator.proof.interval", "10000")
    single = await asyncio.to_thread(
        lambda: start(
            *("validator", *subnet.options("one"), *config, *often),
            *("--validator.specs.batch.size", "1", "--axon.external_ip", "127.9.9.9"),
        )
    )
    # Whoever refuses a probe may have been rented meanwhile: its specs are asked for again at once.
    await soon(lambda: (crowd.specs[one], crowd.probes[one]) == (6, 3), subnet)
    assert crowd.at_once[one] == 1
    assert crowd.told_address == {"127.9.9.9"}

    await asyncio.to_thread(subnet.node.client.advance, 5000)
    await soon(lambda: crowd.specs[one] == 9, subnet)
    assert crowd.probes[one] == 3
    await asyncio.to_thread(subnet.node.client.advance, 5000)
    # And once more of each, or not, by whether it came before the question that was due.
    await soon(lambda: crowd.specs[one] >= 12 and crowd.probes[one] == 6, subnet)
    await asyncio.to_thread(single.end)

    crowd.expects_all = True
    await asyncio.to_thread(
        lambda: start("validator", *subnet.options("two"), *config, "--validator.specs.batch.size", "3")
    )
    await soon(lambda: crowd.at_once[two] == 3, subnet)
