"""The renter's service over fakes: what it leases, what it keeps, and what it leaves behind when things fail."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from compute.base.errors import (
    CallError,
    CallTimeout,
    CallUnreachable,
    ChainUnreachable,
    HostKeyMismatch,
    LeaseError,
    NotFound,
    SshError,
    StoreError,
    UsageError,
)
from compute.base.reasons import Refusal
from compute.rental.evidence import Rental
from compute.rental.keeper import RentalKeeper
from compute.rental.records import Allocation, AllocationState, RenterStore
from compute.rental.service import MAX_ATTEMPTS
from compute.testing.renter import kind_of
from compute.wire.keys import SecretBox, SessionKey
from compute.wire.receipts import MAX_SECONDS, check
from compute.wire.requirements import DeviceRequirement

ONE_GPU = DeviceRequirement(cpu_count=1, gpu_count=1)
WITH_H200 = DeviceRequirement(gpu_count=1, gpu_type="h200")


def scripted_no(reason: str, **more: Any) -> dict[str, Any]:
    return {"status": False, "port": 4444, "reason": reason, **more}


async def test_the_best_fit_is_leased_logged_in_to_and_recorded(world: Any) -> None:
    steps: list[str] = []
    record = await world.service.allocate(ONE_GPU, on_progress=steps.append)
    assert record.hotkey == world.small.peer.hotkey
    assert record.state is AllocationState.ACTIVE
    assert record.ends_at - world.clock.now() == 90 * 86_400
    assert record.host_key == world.small.host_key.fingerprint
    assert not record.trusted_on_first_use
    assert world.remote.commands == [("true",)]
    assert world.service.allocations() == [record]
    assert world.service.get(record.name) == world.service.get(record.hotkey) == record
    assert [step.split()[0] for step in steps] == ["reading", "asking", "starting", "logging"]


async def test_by_hotkey_it_is_thirty_days_and_no_choice(world: Any) -> None:
    record = await world.service.allocate(ONE_GPU, hotkey=world.large.peer.hotkey, name="big-one")
    assert record.hotkey == world.large.peer.hotkey
    assert record.name == "big-one"
    assert record.ends_at - world.clock.now() == 30 * 86_400


async def test_a_refusal_at_the_best_goes_on_to_the_next(world: Any) -> None:
    world.small.scripts["allocate"] = scripted_no("busy")
    record = await world.service.allocate(ONE_GPU)
    assert record.hotkey == world.large.peer.hotkey
    assert [each.name for each in world.service.allocations()] == [record.name]
    assert world.store.histories()[world.small.peer.hotkey].bad == 1
    assert world.store.histories()[world.large.peer.hotkey].good == 1


async def test_the_only_one_tried_says_why_itself(world: Any) -> None:
    world.large.scripts["check"] = scripted_no("busy", message="until Friday")
    with pytest.raises(LeaseError, match="until Friday") as caught:
        await world.service.allocate(WITH_H200)
    assert caught.value.reason is Refusal.BUSY


async def test_of_several_each_says_why(world: Any) -> None:
    world.small.scripts["check"] = CallTimeout("late")
    world.large.scripts["check"] = scripted_no("busy")
    with pytest.raises(NotFound, match="none of the 2 machines") as caught:
        await world.service.allocate(ONE_GPU)
    assert "late" in str(caught.value)
    assert "busy" in str(caught.value)
    assert MAX_ATTEMPTS >= 2


async def test_nobody_serves_the_requirement(world: Any) -> None:
    with pytest.raises(NotFound, match="none of the 2 serving miners"):
        await world.service.allocate(DeviceRequirement(gpu_count=1, gpu_type="B200"))
    assert "check" not in world.small.requests


async def test_an_unknown_hotkey_is_not_found_and_a_mistyped_one_is_usage(world: Any, hotkeys: Any) -> None:
    with pytest.raises(NotFound):
        await world.service.allocate(ONE_GPU, hotkey=hotkeys[2])
    with pytest.raises(UsageError):
        await world.service.allocate(ONE_GPU, hotkey=hotkeys[0][:-1] + "Z")


@pytest.mark.parametrize("days", [0, -1, 367])
async def test_days_have_bounds(world: Any, days: int) -> None:
    with pytest.raises(UsageError, match=str(days)):
        await world.service.allocate(ONE_GPU, days=days)


@pytest.mark.parametrize("name", ["Brisk", "a b", "-a", "x" * 41, "a--b", "../a"])
async def test_names_have_a_form(world: Any, name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        await world.service.allocate(ONE_GPU, name=name)


async def test_a_name_is_given_once(world: Any) -> None:
    await world.service.allocate(ONE_GPU, name="mine")
    with pytest.raises(UsageError, match="taken"):
        await world.service.allocate(ONE_GPU, name="mine")


async def test_penalized_miners_and_ones_own_are_left_out(world: Any) -> None:
    world.service.penalize(world.small.peer.hotkey, "slow disk")
    record = await world.service.allocate(ONE_GPU)
    assert record.hotkey == world.large.peer.hotkey
    with pytest.raises(NotFound):
        await world.service.allocate(ONE_GPU)
    world.service.unpenalize(world.small.peer.hotkey)
    assert (await world.service.allocate(ONE_GPU)).hotkey == world.small.peer.hotkey
    with pytest.raises(NotFound):
        world.service.unpenalize(world.small.peer.hotkey)


async def test_a_miner_that_failed_before_is_less_reliable(world: Any) -> None:
    world.large.specs = world.small.specs
    for _ in range(3):
        world.store.note_outcome(world.small.peer.hotkey, 0.0, good=False)
    ranking = await world.service.choose(ONE_GPU, seed=1)
    assert [entry.candidate.hotkey for entry in ranking] == [world.large.peer.hotkey, world.small.peer.hotkey]
    assert "less reliable (20% against 50%)" in ranking[1].why


async def test_a_machine_that_cannot_be_logged_in_to_is_given_back(world: Any) -> None:
    world.remote.down = 100
    with pytest.raises(SshError):
        await world.service.allocate(WITH_H200)
    assert world.large.owner is None
    assert world.service.allocations() == []


async def test_a_machine_that_is_slow_to_answer_is_waited_for(world: Any) -> None:
    world.remote.down = 3
    await world.service.allocate(WITH_H200)
    assert world.remote.commands == [("true",)]


async def test_an_impostor_is_not_waited_for(world: Any) -> None:
    def replaced(argv: object) -> Any:
        raise HostKeyMismatch("somebody else answered")

    world.remote.result = replaced
    with pytest.raises(HostKeyMismatch):
        await world.service.allocate(WITH_H200)
    assert len(world.remote.commands) == 1
    assert world.large.owner is None


async def test_what_cannot_be_given_back_stays_on_the_list(world: Any) -> None:
    world.remote.down = 100
    world.large.scripts["deallocate"] = CallUnreachable("gone")
    steps: list[str] = []
    with pytest.raises(SshError):
        await world.service.allocate(WITH_H200, on_progress=steps.append)
    (record,) = world.service.allocations()
    assert any(f"could not give {record.name} back" in step for step in steps)
    del world.large.scripts["deallocate"]
    await world.service.deallocate(record.name)
    assert world.large.owner is None
    assert world.service.allocations() == []


async def test_a_cancelled_allocation_leaves_nothing(world: Any) -> None:
    started = asyncio.Event()

    async def hang(*_: object, **__: object) -> Any:
        started.set()
        await asyncio.Event().wait()

    world.remote.run = hang
    task = asyncio.create_task(world.service.allocate(WITH_H200))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.large.owner is None
    assert world.service.allocations() == []
    assert world.store.histories() == {}


async def test_a_crash_while_starting_leaves_a_record_that_can_be_given_back(world: Any) -> None:
    seen: list[Any] = []
    answer = world.large.answer

    def spying(synapse: Any) -> Any:
        if kind_of(synapse) == "allocate":
            seen.extend(world.store.all())
        return answer(synapse)

    world.large.answer = spying
    await world.service.allocate(WITH_H200)
    (record,) = seen
    assert record.state is AllocationState.STARTING
    world.store.save(record)  # as if nothing had been written after it
    with pytest.raises(LeaseError, match="never came up"):
        await world.service.execute(record.name, ["true"])
    await world.service.deallocate(record.name)
    assert world.large.owner is None


async def test_an_older_miner_without_host_key_needs_consent_and_is_pinned_from_then_on(world: Any) -> None:
    world.large.pinned = False
    with pytest.raises(LeaseError) as caught:
        await world.service.allocate(WITH_H200)
    assert caught.value.reason is Refusal.UNPINNED
    assert world.large.owner is None
    record = await world.service.allocate(WITH_H200, allow_unpinned=True)
    assert record.trusted_on_first_use
    assert record.host_key == world.large.host_key.fingerprint
    world.large.host_key = SessionKey.generate()
    with pytest.raises(HostKeyMismatch):
        await world.service.execute(record.name, ["true"])
    with pytest.raises(HostKeyMismatch):
        await world.service.ssh(record.name)


async def test_deallocate_and_forget(world: Any) -> None:
    record = await world.service.allocate(ONE_GPU)
    world.small.scripts["deallocate"] = CallUnreachable("gone")
    with pytest.raises(CallError):
        await world.service.deallocate(record.name)
    assert world.service.get(record.name) == record
    world.service.forget(record.name)
    with pytest.raises(NotFound, match="none yet"):
        world.service.get(record.name)


async def test_a_lease_that_ended_by_itself_can_be_given_back(world: Any) -> None:
    record = await world.service.allocate(ONE_GPU)
    world.small.owner = None
    assert (await world.service.liveness(record.name)).live is False
    await world.service.deallocate(record.name)
    assert world.service.allocations() == []


async def test_liveness_without_an_answer_is_unknown(world: Any) -> None:
    record = await world.service.allocate(ONE_GPU)
    assert (await world.service.liveness(record.name)).live is True
    world.small.scripts["owns"] = CallUnreachable("gone")
    liveness = await world.service.liveness(record.name)
    assert liveness.live is None
    assert "gone" in liveness.detail


async def test_pause_resume_restart_and_extend(world: Any) -> None:
    name = (await world.service.allocate(ONE_GPU)).name
    await world.service.pause(name)
    assert world.small.paused
    assert world.service.get(name).state is AllocationState.PAUSED
    await world.service.resume(name)
    assert not world.small.paused
    assert world.service.get(name).state is AllocationState.ACTIVE
    await world.service.restart(name)
    assert world.small.requests[-3:] == ["pause", "unpause", "restart"]
    record = await world.service.extend(name, days=200)
    assert record.ends_at - world.clock.now() == 200 * 86_400
    assert world.service.get(name) == record


async def test_a_refused_change_changes_no_record(world: Any) -> None:
    name = (await world.service.allocate(ONE_GPU)).name
    world.small.scripts["pause"] = scripted_no("runtime_failed", message="would not freeze")
    with pytest.raises(LeaseError, match="would not freeze"):
        await world.service.pause(name)
    assert world.service.get(name).state is AllocationState.ACTIVE


async def test_exchange_key_replaces_ours_and_keeps_us_in(world: Any) -> None:
    name = (await world.service.allocate(ONE_GPU)).name
    before = world.service.get(name).keys.session
    await world.service.exchange_key(name)
    after = world.service.get(name).keys.session
    assert before != after
    assert world.small.user_key == after.public_line
    await world.service.execute(name, ["uptime"])


async def test_a_key_of_ones_own_goes_to_the_terminal_line(world: Any) -> None:
    name = (await world.service.allocate(ONE_GPU)).name
    own = SessionKey.generate().public_line
    await world.service.install_terminal_key(name, own + " me@home\n")
    assert world.small.terminal_key == own
    await world.service.execute(name, ["uptime"])
    with pytest.raises(UsageError):
        await world.service.install_terminal_key(name, 'command="x" ' + own)


async def test_no_secret_is_in_the_database_or_a_repr(world: Any) -> None:
    record = await world.service.allocate(ONE_GPU)
    secrets = [record.keys.session.private_openssh.splitlines()[2], record.keys.owner.private_pem.splitlines()[3]]
    dump = "\n".join(world.database._connection.iterdump())
    for secret in [*secrets, "PRIVATE KEY"]:
        assert secret not in dump
        assert secret not in repr(record)
    assert record.name in dump


async def test_the_wrong_key_file_is_an_error_that_says_so(world: Any) -> None:
    record = await world.service.allocate(ONE_GPU)
    other = RenterStore(world.database, SecretBox(b"o" * 32))
    with pytest.raises(StoreError, match=f"{record.name} do not open with this key file"):
        other.all()


async def test_offers_say_who_is_free_and_why_not(world: Any) -> None:
    world.large.scripts["check"] = scripted_no("busy")
    small, large = await world.service.offers(ONE_GPU)
    assert (small.problem, large.problem) == (None, "busy")
    world.small.scripts["specs"] = CallTimeout("late")
    world.large.scripts["specs"] = {"not": "text"}
    small, large = await world.service.offers(ONE_GPU)
    assert small.problem == "no answer (408)"
    assert large.problem == "specs are a dict, not text"


async def test_execute_needs_a_command(world: Any) -> None:
    name = (await world.service.allocate(ONE_GPU)).name
    with pytest.raises(UsageError):
        await world.service.execute(name, [])


async def test_a_second_start_finds_what_the_first_left(world: Any) -> None:
    record = await world.service.allocate(ONE_GPU)
    assert RenterStore(world.database, world.box).all() == [record]


async def test_a_miner_that_moved_is_found_again(world: Any) -> None:
    name = (await world.service.allocate(ONE_GPU)).name
    world.small.peer = replace(world.small.peer, port=9999)
    await world.service.pause(name)
    assert world.service.get(name).peer.port == 9999
    assert world.service.get(name).state is AllocationState.PAUSED
    world.small.peer = replace(world.small.peer, ip="127.0.0.8")
    await world.service.deallocate(name)
    assert world.small.owner is None


async def test_without_a_chain_the_miners_silence_is_what_is_told(world: Any) -> None:
    name = (await world.service.allocate(ONE_GPU)).name
    world.small.peer = replace(world.small.peer, port=9999)

    async def unreachable() -> Any:
        raise ChainUnreachable("no chain")

    world.service._market._metagraph = unreachable
    with pytest.raises(CallError, match="nobody at"):
        await world.service.deallocate(name)
    assert world.service.get(name).peer.port == 8091


async def test_a_paused_machine_is_not_logged_in_to(world: Any) -> None:
    name = (await world.service.allocate(ONE_GPU)).name
    await world.service.pause(name)
    for work in (world.service.execute(name, ["true"]), world.service.ssh(name)):
        with pytest.raises(UsageError, match="is paused"):
            await work


# --- receipts ---------------------------------------------------------------------------------------------------


async def test_the_miner_gets_a_receipt_when_the_machine_is_up(world: Any) -> None:
    record = await world.service.allocate(ONE_GPU, days=30)
    receipt = world.small.receipt
    assert receipt is not None
    check(
        receipt,
        netuid=27,
        miner=world.small.peer.hotkey,
        now=world.clock.now(),
        verify=lambda hotkey, m, s: m[:64] == s,
    )
    assert (receipt.host_key, receipt.port) == (record.host_key, record.login.port)
    assert receipt.until == int(world.clock.now() + MAX_SECONDS)
    assert world.store.receipts() == {record.host_key: receipt.until}
    await world.service.deallocate(record.name)
    assert world.store.receipts() == {}


async def test_an_older_miner_knows_no_receipts_and_is_rented_all_the_same(world: Any) -> None:
    world.small.scripts["receipt"] = {"status": False, "port": 4444}
    steps: list[str] = []
    record = await world.service.allocate(ONE_GPU, on_progress=steps.append)
    assert world.service.allocations() == [record]
    assert "took no receipt" in steps[-1]
    assert world.store.receipts() == {}


async def test_extending_renews_the_receipt(world: Any) -> None:
    record = await world.service.allocate(ONE_GPU, days=1)
    first = world.small.receipt
    assert first.until == int(record.ends_at)
    world.clock.advance(3600)
    extended = await world.service.extend(record.name, days=3)
    assert world.small.receipt.until == int(extended.ends_at)
    world.small.scripts["receipt"] = CallUnreachable("gone")
    await world.service.extend(record.name, days=5)


def keeper_of(world: Any) -> RentalKeeper:
    return RentalKeeper(lambda: world.service, world.clock)


def rental_of(record: Allocation) -> Rental:
    login = record.require_login()
    assert login.host_key is not None
    return Rental(record.hotkey, record.peer.ip, login.port, login.host_key, is_paused=False)


async def test_a_running_validator_renews_receipts_in_good_time(world: Any) -> None:
    record = await world.service.allocate(ONE_GPU, days=30)
    rental, keeper = rental_of(record), keeper_of(world)
    first = world.small.receipt
    await keeper.renew([rental])
    world.clock.advance(MAX_SECONDS / 2 - 60)
    await keeper.renew([rental])
    assert world.small.receipt == first
    world.clock.advance(120)
    await keeper.renew([])
    assert world.small.receipt == first
    await keeper.renew([rental])
    assert world.small.receipt.until == int(world.clock.now() + MAX_SECONDS)
    assert world.store.receipts() == {record.host_key: world.small.receipt.until}


async def test_a_miner_that_has_moved_gets_its_receipt_and_its_machine_back(world: Any) -> None:
    record = await world.service.allocate(ONE_GPU, days=30)
    world.small.peer = replace(world.small.peer, ip="127.0.0.9")
    world.clock.advance(MAX_SECONDS / 2 + 60)
    await keeper_of(world).renew([rental_of(record)])
    assert world.small.receipt.until == int(world.clock.now() + MAX_SECONDS)
    assert world.service.get(record.name).peer.ip == "127.0.0.9"
    await keeper_of(world).end(rental_of(record))
    assert world.small.owner is None


async def test_a_lease_from_before_receipts_gets_one(world: Any) -> None:
    world.small.scripts["receipt"] = {"status": False, "port": 4444}
    record = await world.service.allocate(ONE_GPU, days=30)
    keeper = keeper_of(world)
    for _ in range(5):
        await keeper.renew([rental_of(record)])
    # A miner that takes none is asked again in an hour, not at every look.
    assert world.small.requests.count("receipt") == 2
    del world.small.scripts["receipt"]
    world.clock.advance(3600)
    await keeper.renew([rental_of(record)])
    assert world.small.receipt is not None


async def test_the_last_receipt_ends_with_the_lease_and_is_not_renewed(world: Any) -> None:
    record = await world.service.allocate(ONE_GPU, days=1)
    keeper = keeper_of(world)
    world.clock.advance(86_000)
    await keeper.renew([rental_of(record)])
    assert world.small.requests.count("receipt") == 1


async def test_a_validator_ends_a_rental_and_forgets_it(world: Any) -> None:
    record = await world.service.allocate(ONE_GPU)
    keeper = keeper_of(world)
    world.small.scripts["deallocate"] = CallUnreachable("gone")
    with pytest.raises(CallError):
        await keeper.end(rental_of(record))
    assert world.service.allocations() == [record]
    del world.small.scripts["deallocate"]
    await keeper.end(rental_of(record))
    assert world.service.allocations() == []
    assert world.small.owner is None
    await keeper.end(rental_of(record))
