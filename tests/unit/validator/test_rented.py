"""What is evidence of a rental, and what is not: receipts of other validators, abused in every way we know of."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import bittensor
import pytest

from compute.base.errors import CallError, CallUnreachable, SshUnreachable, StoreError
from compute.base.reasons import ProofReason
from compute.base.store import Database
from compute.chain.access_lists import AccessLists
from compute.chain.subtensor import Metagraph
from compute.notices.notice import Notice, NoticeKind
from compute.rental.evidence import Rental
from compute.testing.chain import FakeChain
from compute.testing.clock import ManualClock
from compute.validator.rental_table import RentalEventKind
from compute.validator.rented import LOOK_SECONDS, OwnRentals, RentedMachines
from compute.validator.store import FactStore, SpecsFact
from compute.wire.keys import SessionKey
from compute.wire.receipts import MAX_SECONDS, Issuer, Receipt
from compute.wire.signing import verify_signature
from compute.wire.specs import Gpu, MachineSpecs

US, SIGNER, POOR, UNPERMITTED = (bittensor.Keypair.create_from_uri(f"//{name}") for name in ("us", "s", "poor", "un"))
MINERS = [bittensor.Keypair.create_from_uri(f"//miner{number}").ss58_address for number in range(3)]
A, B, C = MINERS
MACHINE = MachineSpecs(8, 3000.0, 64 << 30, 0, 0, 0, 100, 0, 100, (Gpu("NVIDIA L4", 23_034),) * 2)
INTERVAL = 150
DAY = 86_400.0


class Hosts:
    """SSH servers by address and port; whatever is not listed answers nobody."""

    def __init__(self) -> None:
        self.keys: dict[tuple[str, int], SessionKey] = {}
        self.asked: list[tuple[str, int]] = []
        self.at_once = self.most_at_once = 0

    async def host_key_line(self, host: str, port: int, *, timeout_seconds: float) -> str:
        self.asked.append((host, port))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if (host, port) not in self.keys:
            raise SshUnreachable("nobody there")
        return self.keys[host, port].public_line


class RecordedKeeper:
    """Ends rentals by dropping them from ``rentals``, as the database would."""

    def __init__(self, rentals: list[Rental]) -> None:
        self.rentals = rentals
        self.renewed: list[set[str]] = []
        self.problem: CallError | None = None

    async def renew(self, alive: Collection[Rental]) -> None:
        self.renewed.append({rental.hotkey for rental in alive})

    async def end(self, rental: Rental) -> None:
        if self.problem is not None:
            raise self.problem
        self.rentals.remove(rental)


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.chain = FakeChain(US.ss58_address)
        self.chain.add(US.ss58_address, stake=9000.0, validator_permit=True)
        self.chain.add(SIGNER.ss58_address, stake=1024.0, validator_permit=True)
        self.chain.add(POOR.ss58_address, stake=1023.9, validator_permit=True)
        self.chain.add(UNPERMITTED.ss58_address, stake=9000.0)
        for hotkey in MINERS:
            self.chain.add(hotkey)
        self.facts = FactStore(Database(":memory:"))
        self.hosts = Hosts()
        self.rentals: list[Rental] = []
        self.keeper = RecordedKeeper(self.rentals)
        self.notices: list[Notice] = []
        self.lists = AccessLists()
        self.seen: list[str] = []
        self.rented = self.start()

    def start(self) -> RentedMachines:
        """A validator's process, on the same database."""

        own_rentals = OwnRentals(
            rentals=lambda: list(self.rentals),
            penalized=set,
            host_keys=self.hosts,
            verify=verify_signature,
            notify=lambda connection, notices: self.notices.extend(notices),
            keeper=self.keeper,
        )
        return RentedMachines(
            own_hotkey=US.ss58_address,
            own_rentals=own_rentals,
            facts=self.facts,
            lists=self.lists,
            clock=self.clock,
            uid=lambda hotkey: None,
            on_rented=self.seen.append,
        )

    def ip(self, hotkey: str) -> str:
        return next(neuron.ip for neuron in self.chain.neurons if neuron.hotkey == hotkey)

    def receipt(self, miner: str = A, key: Any = SIGNER, *, port: int = 4444, days: float = 2) -> Receipt:
        """A receipt for a lease whose machine answers at the miner's address."""
        host = SessionKey.generate()
        self.hosts.keys[self.ip(miner), port] = host
        issuer = Issuer(key, key.ss58_address, 27, self.clock)
        return issuer.issue(miner, host.fingerprint, port, self.clock.now() + days * DAY)

    def show(self, miner: str, receipt: Receipt | None, machine: MachineSpecs = MACHINE) -> SpecsFact:
        """The miner has answered ``Specs``."""
        text = replace(machine, receipt=receipt).to_json()
        fact = SpecsFact(miner, self.clock.now(), self.chain.height, ProofReason.OK, text, "")
        self.facts.record_specs([fact])
        self.rented.compare([fact], INTERVAL)
        return fact

    def rent(self, miner: str = A) -> Rental:
        """We rent it ourselves."""
        host = SessionKey.generate()
        self.hosts.keys[self.ip(miner), 4444] = host
        rental = Rental(miner, self.ip(miner), 4444, host.fingerprint, is_paused=False)
        self.rentals.append(rental)
        return rental

    async def look(self) -> dict[str, str]:
        await self.rented.watch_own(self.chain.height)
        await self.rented.look_at_receipts(Metagraph(27, self.chain.height, tuple(self.chain.neurons)))
        return self.rented.through()

    def pass_blocks(self, blocks: int) -> None:
        self.chain.height += blocks
        self.clock.advance(12.0 * blocks)

    def events(self, hotkey: str = A) -> list[RentalEventKind]:
        return [event.kind for event in self.facts.rentals.events(hotkey)]


@pytest.fixture
def world() -> World:
    return World()


async def test_a_receipt_and_the_machine_behind_it_are_evidence(world: World) -> None:
    world.show(A, world.receipt())
    assert await world.look() == {A: SIGNER.ss58_address}
    assert world.events() == [RentalEventKind.RENTED]
    await world.look()
    assert world.seen == [A]


async def test_a_miners_word_alone_is_none(world: World) -> None:
    world.show(A, replace(world.receipt(), signature="0x" + "11" * 64))
    assert await world.look() == {}
    assert world.hosts.asked == []


@pytest.mark.parametrize("key", [POOR, UNPERMITTED, bittensor.Keypair.create_from_uri("//stranger")])
async def test_who_has_no_stake_no_permit_or_no_uid_is_no_witness(world: World, key: Any) -> None:
    world.show(A, world.receipt(key=key))
    assert await world.look() == {}
    assert world.hosts.asked == []


async def test_a_signer_that_loses_its_permit_is_no_witness_any_more(world: World) -> None:
    world.show(A, world.receipt())
    assert await world.look() == {A: SIGNER.ss58_address}
    world.chain.neurons[1] = replace(world.chain.neurons[1], validator_permit=False)
    world.clock.advance(LOOK_SECONDS)
    assert await world.look() == {}


async def test_one_owner_of_both_is_no_witness(world: World) -> None:
    world.chain.neurons[1] = replace(world.chain.neurons[1], coldkey=world.chain.neurons[4].coldkey)
    world.show(A, world.receipt())
    assert await world.look() == {}


async def test_a_blacklisted_signer_is_no_witness(world: World) -> None:
    world.lists = AccessLists(blacklist_hotkeys=frozenset({SIGNER.ss58_address}))
    world.rented = world.start()
    world.show(A, world.receipt())
    assert await world.look() == {}


async def test_our_own_name_on_a_receipt_is_not_our_own_lease(world: World) -> None:
    """A lease that we gave back early leaves a receipt behind; our database knows better."""
    world.show(A, world.receipt(key=US))
    assert await world.look() == {}


async def test_a_receipt_of_another_miner_is_none(world: World) -> None:
    world.show(B, world.receipt(A))
    assert await world.look() == {}


async def test_a_receipt_is_over_at_its_end_whatever_still_answers(world: World) -> None:
    world.show(A, world.receipt(days=0.01))
    assert await world.look() == {A: SIGNER.ss58_address}
    world.clock.advance(0.01 * DAY)
    assert world.rented.through() == {}
    assert await world.look() == {}
    assert world.events() == [RentalEventKind.RENTED, RentalEventKind.FREE]


async def test_a_receipt_of_the_far_future_is_none(world: World) -> None:
    issuer = Issuer(SIGNER, SIGNER.ss58_address, 27, ManualClock(world.clock.now() + 30 * DAY))
    good = world.receipt()
    world.show(A, issuer.issue(A, good.host_key, good.port, world.clock.now() + 60 * DAY))
    assert await world.look() == {}


async def test_a_lease_that_is_over_early_has_no_machine_to_show(world: World) -> None:
    world.show(A, world.receipt(days=7))
    assert await world.look() == {A: SIGNER.ss58_address}
    # The next machine, such as that of a probe, has another host key.
    world.hosts.keys[world.ip(A), 4444] = SessionKey.generate()
    world.clock.advance(LOOK_SECONDS)
    assert await world.look() == {}


async def test_the_machine_must_answer_at_the_miners_own_address(world: World) -> None:
    receipt = world.receipt(A)
    world.hosts.keys = {(world.ip(B), 4444): world.hosts.keys[world.ip(A), 4444]}
    world.show(A, receipt)
    assert await world.look() == {}
    assert world.hosts.asked == [(world.ip(A), 4444)]


async def test_a_port_with_another_machine_is_none(world: World) -> None:
    receipt = world.receipt(port=2222)
    world.hosts.keys[world.ip(A), 2222] = SessionKey.generate()
    world.show(A, receipt)
    assert await world.look() == {}


async def test_one_host_key_counts_once_for_the_oldest_uid(world: World) -> None:
    """Two hotkeys in front of one rented machine, both with a receipt that somebody signed."""
    first = world.receipt(B)
    world.hosts.keys[world.ip(A), 4444] = world.hosts.keys[world.ip(B), 4444]
    issuer = Issuer(SIGNER, SIGNER.ss58_address, 27, world.clock)
    world.show(A, issuer.issue(A, first.host_key, 4444, world.clock.now() + DAY))
    world.show(B, first)
    registered = {neuron.hotkey: neuron.registered_at for neuron in world.chain.neurons}
    assert registered[A] <= registered[B]
    assert await world.look() == {A: SIGNER.ss58_address}


async def test_our_own_lease_keeps_its_host_key_from_others(world: World) -> None:
    rental = world.rent(B)
    world.hosts.keys[world.ip(A), 4444] = world.hosts.keys[world.ip(B), 4444]
    issuer = Issuer(SIGNER, SIGNER.ss58_address, 27, world.clock)
    world.show(A, issuer.issue(A, rental.host_key, 4444, world.clock.now() + DAY))
    assert await world.look() == {B: US.ss58_address}


async def test_thousands_of_receipts_cost_one_look_each_and_not_all_at_once(world: World) -> None:
    for number in range(200):
        hotkey = f"miner-{number}"
        world.chain.add(hotkey)
        world.show(hotkey, world.receipt(hotkey))
    assert len(await world.look()) == 200
    for _ in range(20):
        world.clock.advance(LOOK_SECONDS / 40)
        await world.look()
    assert len(world.hosts.asked) == 200
    assert world.hosts.most_at_once <= 32
    # A miner that shows another receipt at every question is looked at once for each answer, and holds one.
    for _ in range(50):
        world.show(A, world.receipt(A))
    await world.look()
    assert len(world.hosts.asked) == 201


async def test_a_renewed_receipt_of_the_same_lease_is_no_news(world: World) -> None:
    receipt = world.receipt()
    world.show(A, receipt)
    await world.look()
    issuer = Issuer(SIGNER, SIGNER.ss58_address, 27, world.clock)
    world.show(A, issuer.issue(A, receipt.host_key, receipt.port, world.clock.now() + MAX_SECONDS))
    await world.look()
    world.clock.advance(3 * DAY)
    assert await world.look() == {A: SIGNER.ss58_address}
    assert world.events() == [RentalEventKind.RENTED]


async def test_a_restart_is_no_news(world: World) -> None:
    world.show(A, world.receipt())
    world.show(B, None)
    world.rent(B)
    await world.look()
    world.rented = world.start()
    await world.rented.watch_own(world.chain.height)
    assert world.events(A) == world.events(B) == [RentalEventKind.RENTED]
    await world.look()
    assert world.events(A) == world.events(B) == [RentalEventKind.RENTED]


async def test_offline_and_back_are_told_across_a_restart(world: World) -> None:
    rental = world.rent()
    await world.look()
    host = world.hosts.keys.pop((rental.ip, rental.port))
    for _ in range(3):
        await world.look()
        world.rented = world.start()
    world.hosts.keys[rental.ip, rental.port] = host
    await world.look()
    assert [notice.kind for notice in world.notices] == [NoticeKind.OFFLINE, NoticeKind.ONLINE]
    world.rentals.clear()
    world.rented = world.start()
    await world.look()
    assert [notice.kind for notice in world.notices[2:]] == [NoticeKind.DEALLOCATION]


async def test_what_could_not_be_written_is_told_again(world: World) -> None:
    world.rent()
    await world.look()
    world.rentals.clear()

    def fails(connection: sqlite3.Connection, notices: Sequence[Notice]) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    own_rentals = world.rented._own_rentals
    world.rented._own_rentals = replace(own_rentals, notify=fails)
    with pytest.raises(StoreError):
        await world.look()
    assert world.events() == [RentalEventKind.RENTED]
    world.rented._own_rentals = own_rentals
    await world.look()
    assert world.events() == [RentalEventKind.RENTED, RentalEventKind.FREE]
    assert [notice.kind for notice in world.notices] == [NoticeKind.DEALLOCATION]


async def test_the_table_holds_at_most_one_ended_rental_of_a_miner(world: World) -> None:
    for _ in range(5):
        world.rentals.clear()
        world.rent()
        await world.look()
        world.show(A, None)
    world.rentals.clear()
    await world.look()
    (row,) = world.facts.rentals.rows().values()
    assert row.ended is not None
    for _ in range(5):
        world.show(B, world.receipt(B))
        await world.look()
    assert [len(rows) for rows in world.facts.rentals.by_hotkey().values()] == [1, 2], "one of B's lasts"


# --- hardware ---------------------------------------------------------------------------------------------------

LESS = MACHINE.with_gpus(MACHINE.gpus[:1])


async def test_hardware_that_changes_during_our_lease_ends_it_when_it_was_seen_twice(world: World) -> None:
    rental = world.rent()
    await world.look()
    world.show(A, None)
    world.pass_blocks(INTERVAL)
    world.show(A, None, LESS)
    world.pass_blocks(10)
    world.show(A, None, LESS)
    await world.rented.keep_own()
    assert world.rentals == [rental]
    assert await world.look() == {A: US.ss58_address}
    world.pass_blocks(INTERVAL - 10)
    world.show(A, None, LESS)
    assert world.rented.through() == {}
    world.keeper.problem = CallUnreachable("gone")
    await world.rented.keep_own()
    assert world.rentals == [rental]
    world.keeper.problem = None
    await world.rented.keep_own()
    assert world.rentals == []
    await world.look()
    (notice,) = world.notices
    assert (notice.kind, notice.hotkey, notice.rental) == (NoticeKind.DEALLOCATION, A, rental.host_key)
    assert notice.details == "ended, as its hardware has changed: GPUs were 2 x NVIDIA L4, now 1 x NVIDIA L4"
    assert world.events() == [RentalEventKind.RENTED, RentalEventKind.HARDWARE_CHANGED, RentalEventKind.FREE]
    assert world.keeper.renewed == [{A}, set(), set()]


async def test_a_difference_that_was_gone_in_between_is_none(world: World) -> None:
    world.rent()
    await world.look()
    for machine in (MACHINE, LESS, MACHINE, LESS, MACHINE):
        world.show(A, None, machine)
        world.pass_blocks(INTERVAL)
    await world.rented.keep_own()
    assert len(world.rentals) == 1


async def test_what_it_was_before_the_lease_does_not_matter(world: World) -> None:
    world.show(A, None)
    world.rent()
    await world.look()
    for _ in range(3):
        world.pass_blocks(INTERVAL)
        world.show(A, None, LESS)
    assert await world.look() == {A: US.ss58_address}


async def test_each_lease_begins_with_the_machine_that_it_found(world: World) -> None:
    world.rent()
    await world.look()
    world.show(A, None)
    world.rentals.clear()
    await world.look()
    world.rent()
    await world.look()
    for _ in range(3):
        world.show(A, None, LESS)
        world.pass_blocks(INTERVAL)
    assert await world.look() == {A: US.ss58_address}
    for _ in range(2):
        world.show(A, None, MACHINE)
        world.pass_blocks(INTERVAL)
    assert await world.look() == {}


async def test_the_evidence_survives_a_restart(world: World) -> None:
    world.rent()
    await world.look()
    world.show(A, None)
    world.pass_blocks(INTERVAL)
    world.show(A, None, LESS)
    world.rented = world.start()
    await world.look()
    world.pass_blocks(INTERVAL)
    world.show(A, None, LESS)
    await world.rented.keep_own()
    assert world.rentals == []


async def test_of_another_validators_lease_we_only_stop_counting(world: World) -> None:
    receipt = world.receipt()
    world.show(A, receipt)
    assert await world.look() == {A: SIGNER.ss58_address}
    for machine in (MACHINE, LESS, LESS):
        world.show(A, receipt, machine)
        world.pass_blocks(INTERVAL)
    assert await world.look() == {}
    # The next lease is another matter.
    world.show(A, world.receipt(), LESS)
    assert await world.look() == {A: SIGNER.ss58_address}
