"""A database of the release that kept what it knew of rentals in several tables and in memory.

``rentals_in_several_tables.sql`` is what that release wrote: ``up``, ``down``, ``changed`` and ``gone`` are rented by
"us", ``shown``, ``unseen``, ``lapsed`` and ``spent`` show another validator's receipt.
"""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import bittensor
import pytest

from compute.base.errors import SshUnreachable
from compute.base.reasons import ProofReason
from compute.base.store import Database
from compute.chain.access_lists import AccessLists
from compute.chain.subtensor import Metagraph
from compute.notices.notice import Notice, NoticeKind, Topic
from compute.notices.outbox import Outbox
from compute.rental.evidence import Rental
from compute.testing.chain import FakeChain
from compute.testing.clock import ManualClock
from compute.validator.rented import OwnRentals, RentedMachines
from compute.validator.store import FactStore, SpecsFact
from compute.wire.keys import fingerprint
from compute.wire.signing import verify_signature
from compute.wire.specs import Gpu, MachineSpecs

SIGNER = bittensor.Keypair.create_from_uri("//s").ss58_address
LESS = MachineSpecs(8, 3000.0, 64 << 30, 0, 0, 0, 100, 0, 100, (Gpu("NVIDIA L4", 23_034),))
CHANGE = "GPUs were 2 x NVIDIA L4, now 1 x NVIDIA L4"
MINERS = ("up", "down", "changed", "gone", "shown", "lapsed", "unseen", "spent")
STOPPED_AT, STOPPED_AT_BLOCK = 1_700_005_436.0, 553
THROUGH = {"up": "us", "shown": SIGNER, "unseen": SIGNER}


def line(name: str) -> str:
    """The host key of the machine behind this miner."""
    return "ssh-ed25519 " + base64.b64encode(name.encode()).decode()


class Validator:
    """This release on that database. What answered then answers now; the rental of ``gone`` has ended meanwhile."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            sql = Path(__file__).with_name("rentals_in_several_tables.sql").read_text()
            with sqlite3.connect(path) as connection:
                connection.executescript(sql)
            connection.close()
        self.chain = FakeChain("us")
        self.chain.height = STOPPED_AT_BLOCK
        self.chain.add("us", stake=9000.0, validator_permit=True)
        self.chain.add(SIGNER, stake=1024.0, validator_permit=True)
        self.lines = {self.chain.add(hotkey).ip: line(hotkey) for hotkey in MINERS}
        self.ips = {neuron.hotkey: neuron.ip for neuron in self.chain.neurons}
        for hotkey in ("down", "lapsed", "spent"):
            del self.lines[self.ips[hotkey]]
        self.clock = ManualClock(STOPPED_AT)
        self.database = Database(path)
        self.facts = FactStore(self.database)
        self.outbox = Outbox(self.database)
        self.told: list[Notice] = []
        self.rentals = [self.rental(hotkey) for hotkey in ("up", "down", "changed")]
        self.asked_again: list[str] = []
        self.rented = RentedMachines(
            own_hotkey="us",
            own_rentals=OwnRentals(
                rentals=lambda: list(self.rentals),
                penalized=set,
                host_keys=self,
                verify=verify_signature,
                notify=self.notify,
            ),
            facts=self.facts,
            lists=AccessLists(),
            clock=self.clock,
            uid=lambda hotkey: None,
            on_rented=self.asked_again.append,
        )

    def notify(self, connection: sqlite3.Connection, notices: Sequence[Notice]) -> None:
        self.outbox.put(connection, notices, tuple(Topic))
        self.told.extend(notices)

    def rental(self, hotkey: str) -> Rental:
        return Rental(hotkey, self.ips[hotkey], 4444, fingerprint(line(hotkey)), is_paused=False)

    async def host_key_line(self, host: str, port: int, *, timeout_seconds: float) -> str:
        if host not in self.lines:
            raise SshUnreachable("nobody there")
        return self.lines[host]

    async def look(self) -> dict[str, str]:
        await self.rented.watch_own(self.chain.height)
        await self.rented.look_at_receipts(Metagraph(27, self.chain.height, tuple(self.chain.neurons)))
        return self.rented.through()

    def answer(self, hotkey: str) -> None:
        """The miner shows one GPU where it had two."""
        fact = SpecsFact(hotkey, self.clock.now(), self.chain.height, ProofReason.OK, LESS.to_json(), "")
        self.rented.compare([fact], 150)

    def events(self, hotkey: str) -> list[str]:
        return [event.kind.value for event in self.facts.rentals.events(hotkey)]


@pytest.fixture
def validator(tmp_path: Path) -> Validator:
    return Validator(tmp_path / "database.db")


async def test_what_was_rented_is_rented_and_no_event_comes_twice(validator: Validator) -> None:
    before = {hotkey: validator.events(hotkey) for hotkey in MINERS}
    for _ in range(3):
        assert await validator.look() == THROUGH
    assert {hotkey: validator.events(hotkey) for hotkey in MINERS} == before | {"gone": ["rented", "free"]}
    assert validator.asked_again == []


async def test_no_notice_is_told_twice_and_none_is_lost(validator: Validator) -> None:
    (queued,) = validator.outbox.due(1e10, tuple(Topic))
    assert (queued.notice.kind, queued.notice.hotkey) == (NoticeKind.OFFLINE, "down")
    for _ in range(3):
        await validator.look()
    assert [(notice.kind, notice.hotkey) for notice in validator.told] == [(NoticeKind.DEALLOCATION, "gone")]
    validator.lines[validator.ips["down"]] = line("down")
    await validator.look()
    assert [(notice.kind, notice.hotkey) for notice in validator.told[1:]] == [(NoticeKind.ONLINE, "down")]
    assert len(validator.outbox.due(1e10, tuple(Topic))) == 3


async def test_a_lease_that_ends_for_its_hardware_says_so(validator: Validator) -> None:
    await validator.look()
    validator.rentals = [rental for rental in validator.rentals if rental.hotkey != "changed"]
    await validator.look()
    assert validator.told[-1].details == f"ended, as its hardware has changed: {CHANGE}"


@pytest.mark.parametrize("hotkey", ["shown", "up"])
async def test_baselines_stay(validator: Validator, hotkey: str) -> None:
    await validator.look()
    for _ in range(2):
        validator.answer(hotkey)
        validator.chain.height += 150
    assert validator.events(hotkey) == ["rented", "hardware_changed"]
    assert await validator.look() == {name: who for name, who in THROUGH.items() if name != hotkey}


async def test_a_difference_that_was_seen_once_is_certain_the_second_time(validator: Validator) -> None:
    (row,) = validator.facts.rentals.by_hotkey()["shown"][:1]
    assert row.differs_since == 400
    await validator.look()
    validator.answer("shown")
    assert validator.events("shown") == ["rented", "hardware_changed"]


async def test_a_receipt_that_is_evidence_again_has_its_baseline(validator: Validator) -> None:
    await validator.look()
    for hotkey in ("lapsed", "spent"):
        validator.lines[validator.ips[hotkey]] = line(hotkey)
    validator.clock.advance(600.0)
    assert await validator.look() == THROUGH | {"lapsed": SIGNER}, "what has changed is rented no more"
    for _ in range(2):
        validator.answer("lapsed")
        validator.chain.height += 150
    assert validator.events("lapsed") == ["rented", "free", "rented", "hardware_changed"]


async def test_nothing_of_the_old_form_is_left(validator: Validator, tmp_path: Path) -> None:
    await validator.look()
    rows = validator.facts.rentals.rows()
    assert all(host_key for _, host_key in rows), "what was told has found its rental"
    assert {row.hotkey for row in rows.values() if row.told_rented} == {*THROUGH, "changed"}
    tables = {row["name"] for row in validator.database.query("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert not tables & {"leased_machine", "notice_rental"}
    validator.database.close()
    assert await Validator(tmp_path / "database.db").look() == THROUGH


def test_a_database_without_notices_opens(tmp_path: Path) -> None:
    """The tables of the notices are made after these."""
    facts = FactStore(Database(tmp_path / "database.db"))
    assert facts.rentals.rows() == {}


async def test_until_both_kinds_have_been_looked_at_nothing_is_free(validator: Validator) -> None:
    await validator.rented.watch_own(STOPPED_AT_BLOCK)
    assert validator.events("gone") == ["rented"]
    assert {row.hotkey for row in validator.facts.rentals.rows().values() if row.told_rented} == {
        *THROUGH,
        "changed",
        "gone",
    }
