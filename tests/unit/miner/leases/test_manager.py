from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from compute.base.errors import LeaseError
from compute.base.reasons import Refusal
from compute.miner.leases.manager import MAX_SECONDS, RETRY_SECONDS, LeaseManager
from compute.miner.leases.states import LeaseState
from compute.miner.leases.store import Owner
from compute.miner.runtimes.base import ContainerSpec, ContainerState
from compute.wire.keys import SessionKey
from compute.wire.lease_terms import PROBE_SECONDS, KeyLine, LeaseKind
from compute.wire.requirements import DeviceRequirement
from tests.waiting import DEADLINE_SECONDS, until_async

DAY = 86_400.0
PROBE, CUSTOMER = LeaseKind.PROBE, LeaseKind.CUSTOMER


async def refusal(work: Coroutine[Any, Any, object]) -> LeaseError:
    with pytest.raises(LeaseError) as refused:
        await work
    return refused.value


async def test_a_lease_is_active_and_its_info_says_how_to_log_in(miner: Any, alice: Owner, request_of: Any) -> None:
    granted = await miner.manager.allocate(request_of(alice))
    (machine,) = miner.runtime.containers.values()
    assert miner.only() == granted.lease
    assert granted.lease.state is LeaseState.ACTIVE
    assert granted.lease.ends_at == miner.clock.now() + 2 * DAY
    assert (granted.info.username, granted.info.port) == ("root", 4444)
    assert granted.info.host_key == machine.endpoint.host_key
    assert machine.spec.kind.container_name == "ssh-container"
    assert machine.spec.ssh_port == 4444


async def test_login_is_by_key_for_a_customer_who_sent_one(
    miner: Any, alice: Owner, request_of: Any, ssh_key: SessionKey
) -> None:
    granted = await miner.manager.allocate(request_of(alice))
    (machine,) = miner.runtime.containers.values()
    assert machine.spec.password is None
    assert granted.info.password is None
    assert machine.spec.authorized_keys == (ssh_key.public_line,)


@pytest.mark.parametrize(("kind", "with_key"), [(PROBE, True), (PROBE, False), (CUSTOMER, False)])
async def test_login_by_password_where_peers_need_it(
    miner: Any, alice: Owner, request_of: Any, kind: LeaseKind, with_key: bool
) -> None:
    request = request_of(alice, kind=kind)
    granted = await miner.manager.allocate(request if with_key else replace(request, ssh_key=""))
    (machine,) = miner.runtime.containers.values()
    assert machine.spec.password == granted.info.password
    assert len(granted.info.password) >= 20
    assert len(machine.spec.authorized_keys) == with_key


async def test_a_customer_gets_the_gpus_asked_for_and_a_probe_sees_all(
    miner: Any, alice: Owner, request_of: Any
) -> None:
    await miner.manager.allocate(request_of(alice, kind=PROBE))
    (machine,) = miner.runtime.containers.values()
    assert machine.spec.limits.gpu_uuids == ("GPU-0", "GPU-1", "GPU-2")
    wanted = DeviceRequirement(cpu_count=2, gpu_count=1, gpu_type="a100", ram_bytes=5, disk_bytes=7)
    await miner.manager.allocate(replace(request_of(alice), requirement=wanted))
    (machine,) = miner.runtime.containers.values()
    limits = machine.spec.limits
    assert (limits.cpu_count, limits.ram_bytes, limits.disk_bytes, limits.gpu_uuids) == (2, 5, 7, ("GPU-1",))


@pytest.mark.parametrize(("kind", "days", "seconds"), [(PROBE, 2, PROBE_SECONDS), (CUSTOMER, 9999, MAX_SECONDS)])
async def test_no_lease_is_longer_than_its_kind_may_be(
    miner: Any, alice: Owner, request_of: Any, kind: LeaseKind, days: float, seconds: float
) -> None:
    granted = await miner.manager.allocate(request_of(alice, kind=kind, days=days))
    assert granted.lease.ends_at - miner.clock.now() == seconds


async def test_of_two_at_once_one_gets_it(miner: Any, alice: Owner, bob: Owner, request_of: Any) -> None:
    asked = [miner.manager.allocate(request_of(owner)) for owner in (alice, bob, alice, bob)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, LeaseError)]
    assert [error.reason for error in refused] == [Refusal.BUSY] * 2
    assert all(error.retry_after_seconds == DAY for error in refused)
    assert len(miner.runtime.containers) == 1


async def test_asking_again_gives_the_same_lease_and_way_in(miner: Any, alice: Owner, request_of: Any) -> None:
    request = replace(request_of(alice), ssh_key="")
    first = await miner.manager.allocate(request)
    miner.clock.advance(100)
    # The lease itself may have used up what it asked for.
    miner.specs = replace(miner.specs, gpus=())
    assert await miner.manager.allocate(replace(request, seconds=50 * DAY)) == first
    assert miner.runtime.calls.count("start") == 1


async def test_the_owner_of_a_lease_who_asks_for_something_else_is_told(
    miner: Any, alice: Owner, request_of: Any
) -> None:
    await miner.manager.allocate(request_of(alice))
    error = await refusal(miner.manager.allocate(request_of(alice, gpus=2)))
    assert error.reason is Refusal.BUSY
    assert "deallocate it first" in str(error)


async def test_a_customer_ends_a_probe_and_a_probe_ends_nothing(
    miner: Any, alice: Owner, bob: Owner, request_of: Any
) -> None:
    probe = await miner.manager.allocate(request_of(alice, kind=PROBE))
    assert (await refusal(miner.manager.allocate(request_of(bob, kind=PROBE)))).reason is Refusal.BUSY
    customer = await miner.manager.allocate(request_of(bob))
    assert list(miner.runtime.containers) == [customer.lease.lease_id]
    assert miner.store.get(probe.lease.lease_id).state is LeaseState.FREE
    assert (await refusal(miner.manager.allocate(request_of(alice, kind=PROBE)))).reason is Refusal.BUSY
    assert miner.only() == customer.lease
    # The probe's port is the customer's: it is gone before the other starts.
    assert miner.runtime.calls.index("stop") < len(miner.runtime.calls) - miner.runtime.calls[::-1].index("start")


async def test_check(miner: Any, alice: Owner, request_of: Any) -> None:
    await miner.manager.check(DeviceRequirement(gpu_count=3), CUSTOMER)
    error = await refusal(miner.manager.check(DeviceRequirement(gpu_count=4), CUSTOMER))
    assert error.reason is Refusal.GPU_COUNT
    await miner.manager.allocate(request_of(alice, kind=PROBE))
    await miner.manager.check(DeviceRequirement(), CUSTOMER)
    error = await refusal(miner.manager.check(DeviceRequirement(), PROBE))
    assert (error.reason, error.retry_after_seconds) == (Refusal.BUSY, PROBE_SECONDS)
    await miner.manager.allocate(request_of(alice))
    assert (await refusal(miner.manager.check(DeviceRequirement(), CUSTOMER))).reason is Refusal.BUSY


async def test_what_falls_short_is_no_lease(miner: Any, alice: Owner, request_of: Any) -> None:
    error = await refusal(miner.manager.allocate(request_of(alice, gpus=4)))
    assert error.reason is Refusal.GPU_COUNT
    assert miner.store.live() == []


async def test_an_image_that_the_runtime_does_not_run_is_unsupported(miner: Any, alice: Owner, request_of: Any) -> None:
    miner.runtime.images = frozenset({"ubuntu"})
    error = await refusal(miner.manager.allocate(replace(request_of(alice), image="evil/image")))
    assert error.reason is Refusal.UNSUPPORTED
    await miner.manager.allocate(request_of(alice))


async def test_owns_is_about_the_key_of_the_live_lease(miner: Any, alice: Owner, bob: Owner, request_of: Any) -> None:
    assert not await miner.manager.owns(alice.public_pem)
    await miner.manager.allocate(request_of(alice))
    assert await miner.manager.owns(alice.public_pem)
    assert not await miner.manager.owns(bob.public_pem)
    await miner.manager.deallocate(alice)
    assert not await miner.manager.owns(alice.public_pem)
    assert await miner.manager.current() is None


ACTIONS: dict[str, Callable[[LeaseManager, Owner], Coroutine[Any, Any, object]]] = {
    "deallocate": lambda manager, owner: manager.deallocate(owner),
    "pause": lambda manager, owner: manager.pause(owner),
    "unpause": lambda manager, owner: manager.unpause(owner),
    "restart": lambda manager, owner: manager.restart(owner),
    "exchange_key": lambda manager, owner: manager.exchange_key(owner, KeyLine.USER, "ssh-ed25519 NEW"),
    "extend": lambda manager, owner: manager.extend(owner, 99 * DAY),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("stranger", ["other hotkey", "other key", "other both"])
async def test_every_action_is_its_owners_only(
    miner: Any, alice: Owner, bob: Owner, request_of: Any, action: str, stranger: str
) -> None:
    granted = await miner.manager.allocate(request_of(alice))
    (machine,) = miner.runtime.containers.values()
    before = (machine.state, machine.starts, machine.spec)
    who = {
        "other hotkey": replace(alice, hotkey=bob.hotkey),
        "other key": replace(alice, public_pem=bob.public_pem),
        "other both": bob,
    }[stranger]
    assert (await refusal(ACTIONS[action](miner.manager, who))).reason is Refusal.NOT_OWNER
    assert miner.only() == granted.lease
    assert (machine.state, machine.starts, machine.spec) == before


@pytest.mark.parametrize("action", ACTIONS)
async def test_every_action_needs_a_lease(miner: Any, alice: Owner, action: str) -> None:
    assert (await refusal(ACTIONS[action](miner.manager, alice))).reason is Refusal.NO_LEASE


@pytest.mark.parametrize("action", [name for name in ACTIONS if name != "deallocate"])
async def test_every_action_may_be_repeated(miner: Any, alice: Owner, request_of: Any, action: str) -> None:
    await miner.manager.allocate(request_of(alice))
    await ACTIONS[action](miner.manager, alice)
    once = miner.only()
    await ACTIONS[action](miner.manager, alice)
    assert miner.only() == once


@pytest.mark.parametrize("action", [name for name in ACTIONS if name != "deallocate"])
async def test_a_failing_runtime_is_a_reason_and_not_an_accident(
    miner: Any, alice: Owner, request_of: Any, action: str
) -> None:
    await miner.manager.allocate(request_of(alice))
    miner.runtime.fail = {"pause", "unpause", "restart", "set_keys", "set_end"}
    assert (await refusal(ACTIONS[action](miner.manager, alice))).reason is Refusal.RUNTIME_FAILED


async def test_pause_and_on(miner: Any, alice: Owner, request_of: Any) -> None:
    granted = await miner.manager.allocate(request_of(alice))
    (machine,) = miner.runtime.containers.values()
    await miner.manager.pause(alice)
    assert (miner.only().state, machine.state) == (LeaseState.PAUSED, ContainerState.PAUSED)
    assert (await miner.manager.allocate(request_of(alice))).info == granted.info
    await miner.manager.unpause(alice)
    assert (miner.only().state, machine.state) == (LeaseState.ACTIVE, ContainerState.RUNNING)


async def test_restart_keeps_keys_and_port_and_revives_the_dead(miner: Any, alice: Owner, request_of: Any) -> None:
    granted = await miner.manager.allocate(request_of(alice))
    lease_id = granted.lease.lease_id
    miner.runtime.containers[lease_id].state = ContainerState.DEAD
    await miner.manager.restart(alice)
    machine = miner.runtime.containers[lease_id]
    assert (machine.state, machine.starts) == (ContainerState.RUNNING, 2)
    assert (machine.endpoint.port, machine.endpoint.host_key) == (granted.info.port, granted.info.host_key)
    assert miner.only().state is LeaseState.ACTIVE


async def test_a_restart_that_fails_ends_the_lease_with_a_reason(miner: Any, alice: Owner, request_of: Any) -> None:
    await miner.manager.allocate(request_of(alice))
    miner.runtime.fail = {"restart"}
    error = await refusal(miner.manager.restart(alice))
    assert error.reason is Refusal.RUNTIME_FAILED
    assert "told to fail: restart" in str(error)
    assert (miner.store.live(), miner.runtime.containers) == ([], {})
    assert miner.store.history()[-1].reason == "told to fail: restart"


async def test_exchange_key_replaces_its_own_line_only(
    miner: Any, alice: Owner, request_of: Any, ssh_key: SessionKey
) -> None:
    await miner.manager.allocate(request_of(alice))
    (machine,) = miner.runtime.containers.values()
    await miner.manager.exchange_key(alice, KeyLine.TERMINAL, "ssh-ed25519 T")
    assert machine.spec.authorized_keys == (ssh_key.public_line, "ssh-ed25519 T")
    await miner.manager.exchange_key(alice, KeyLine.USER, "ssh-ed25519 U")
    assert machine.spec.authorized_keys == ("ssh-ed25519 U", "ssh-ed25519 T")


async def test_extend_lengthens_and_never_shortens(miner: Any, alice: Owner, request_of: Any) -> None:
    await miner.manager.allocate(request_of(alice, days=10))
    (machine,) = miner.runtime.containers.values()
    now = miner.clock.now()
    assert await miner.manager.extend(alice, 3 * DAY) == now + 10 * DAY
    assert await miner.manager.extend(alice, 30 * DAY) == now + 30 * DAY
    assert miner.only().ends_at == machine.spec.ends_at == now + 30 * DAY
    assert await miner.manager.extend(alice, 9e9) == now + MAX_SECONDS


async def test_a_probe_cannot_be_extended(miner: Any, alice: Owner, request_of: Any) -> None:
    await miner.manager.allocate(request_of(alice, kind=PROBE))
    assert (await refusal(miner.manager.extend(alice, DAY))).reason is Refusal.UNSUPPORTED


async def test_a_lease_ends_at_its_time_and_not_before(miner: Any, alice: Owner, request_of: Any) -> None:
    await miner.manager.allocate(request_of(alice))
    looks = 3
    for _ in range(looks):
        miner.clock.advance((2 * DAY - 1) / looks)
        await asyncio.sleep(0.01)
    assert miner.only().state is LeaseState.ACTIVE
    miner.clock.advance(1)
    await until_async(lambda: not miner.runtime.containers and not miner.store.live(), passing=miner.clock)
    assert miner.store.history()[-1].reason == "its time was over"


async def test_the_scheduler_sleeps_until_the_end_and_no_longer(miner: Any, alice: Owner, request_of: Any) -> None:
    granted = await miner.manager.allocate(replace(request_of(alice), seconds=30))
    await until_async(lambda: granted.lease.ends_at in miner.clock.ends)


async def test_a_paused_lease_ends_as_well(miner: Any, alice: Owner, request_of: Any) -> None:
    await miner.manager.allocate(request_of(alice))
    await miner.manager.pause(alice)
    miner.clock.advance(2 * DAY)
    await until_async(lambda: not miner.runtime.containers and not miner.store.live(), passing=miner.clock)


async def test_an_extended_lease_lives_past_its_first_end(miner: Any, alice: Owner, request_of: Any) -> None:
    await miner.manager.allocate(request_of(alice))
    await miner.manager.extend(alice, 5 * DAY)
    miner.clock.advance(5 * DAY - 1)
    await asyncio.sleep(0.02)
    assert miner.only().state is LeaseState.ACTIVE
    miner.clock.advance(1)
    await until_async(lambda: not miner.store.live(), passing=miner.clock)


async def test_past_its_end_a_lease_is_nobodys_even_before_the_scheduler_comes(
    miner: Any, alice: Owner, bob: Owner, request_of: Any
) -> None:
    old = await miner.manager.allocate(request_of(alice))
    miner.clock.advance(2 * DAY)
    new = await miner.manager.allocate(request_of(bob))
    assert list(miner.runtime.containers) == [new.lease.lease_id] != [old.lease.lease_id]
    assert (await refusal(miner.manager.deallocate(alice))).reason is Refusal.NOT_OWNER


async def test_an_expired_lease_has_no_owner_where_no_scheduler_runs(
    tmp_path: Any, miner_type: Any, miner: Any, alice: Owner, request_of: Any
) -> None:
    await miner.close()
    life = miner_type(tmp_path, miner.clock, miner.box)
    await life.manager._reconcile()
    await life.manager.allocate(request_of(alice))
    assert await life.manager.owns(alice.public_pem)
    life.clock.advance(2 * DAY)
    assert not await life.manager.owns(alice.public_pem)
    await life.manager.check(DeviceRequirement(), PROBE)
    for action in ACTIONS.values():
        assert (await refusal(action(life.manager, alice))).reason is Refusal.NO_LEASE
    await life.close()


async def test_the_same_change_asked_twice_at_once_is_done_once(
    miner: Any, alice: Owner, request_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, restart = threading.Event(), miner.runtime.restart

    def slow(spec: ContainerSpec) -> Any:
        assert gate.wait(DEADLINE_SECONDS)
        return restart(spec)

    monkeypatch.setattr(miner.runtime, "restart", slow)
    await miner.manager.allocate(request_of(alice))
    asking = [asyncio.create_task(miner.manager.restart(alice)) for _ in range(3)]
    await until_async(lambda: miner.clock.ends.count(miner.clock.now() + miner.manager.answer_seconds) == 3)
    gate.set()
    await asyncio.gather(*asking)
    assert miner.runtime.calls.count("restart") == 1


async def test_a_slow_start_is_told_in_time_and_asking_again_gets_it(
    miner: Any, alice: Owner, bob: Owner, request_of: Any
) -> None:
    miner.runtime.gate = threading.Event()
    asked = asyncio.ensure_future(miner.manager.allocate(request_of(alice)))
    await until_async(lambda: "start" in miner.runtime.calls)
    await until_async(asked.done, passing=miner.clock)
    error = await refusal(asked)
    assert (error.reason, error.retry_after_seconds) == (Refusal.STARTING, 5)
    assert (await refusal(miner.manager.allocate(request_of(bob)))).reason is Refusal.BUSY
    for change in (miner.manager.pause, miner.manager.restart):
        asked = asyncio.ensure_future(change(alice))
        await until_async(asked.done, passing=miner.clock)
        assert (await refusal(asked)).reason is Refusal.STARTING
    miner.runtime.gate.set()
    # What was asked of it meanwhile is done then.
    await until_async(lambda: not miner.manager._work)
    granted = await miner.manager.allocate(request_of(alice))
    assert miner.runtime.calls.count("start") == 1
    assert granted.lease.lease_id in miner.runtime.containers


async def test_a_caller_who_goes_leaves_the_start_going_on(miner: Any, alice: Owner, request_of: Any) -> None:
    miner.runtime.gate = threading.Event()
    asked = asyncio.ensure_future(miner.manager.allocate(request_of(alice)))
    await until_async(lambda: "start" in miner.runtime.calls)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    miner.runtime.gate.set()
    await until_async(lambda: miner.states() == [LeaseState.ACTIVE])


async def test_a_lease_given_back_while_it_starts_is_taken_down_after_all(
    miner: Any, alice: Owner, request_of: Any
) -> None:
    miner.runtime.gate = threading.Event()
    asked = asyncio.ensure_future(miner.manager.allocate(request_of(alice)))
    await until_async(lambda: "start" in miner.runtime.calls)
    given_back = asyncio.ensure_future(miner.manager.deallocate(alice))
    await until_async(lambda: miner.states() == [LeaseState.STOPPING])
    miner.runtime.gate.set()
    await given_back
    assert (await refusal(asked)).reason is Refusal.RUNTIME_FAILED
    await until_async(lambda: not miner.runtime.containers and not miner.store.live(), passing=miner.clock)


async def test_a_start_that_fails_frees_the_machine_and_says_why(miner: Any, alice: Owner, request_of: Any) -> None:
    miner.runtime.fail = {"start"}
    error = await refusal(miner.manager.allocate(request_of(alice)))
    assert error.reason is Refusal.RUNTIME_FAILED
    assert "told to fail: start" in str(error)
    miner.runtime.fail = set()
    await miner.manager.allocate(request_of(alice))
    assert miner.store.history()[0].reason == "told to fail: start"


async def test_what_cannot_be_taken_down_is_tried_again(miner: Any, alice: Owner, bob: Owner, request_of: Any) -> None:
    await miner.manager.allocate(request_of(alice))
    miner.runtime.fail = {"stop"}
    await miner.manager.deallocate(alice)
    assert miner.states() == [LeaseState.STOPPING]
    assert not await miner.manager.owns(alice.public_pem)
    # Nobody else is put beside it.
    assert (await refusal(miner.manager.allocate(request_of(bob)))).reason is Refusal.RUNTIME_FAILED
    miner.runtime.fail = set()
    miner.clock.advance(RETRY_SECONDS)
    await until_async(lambda: not miner.runtime.containers and not miner.store.live(), passing=miner.clock)
    await miner.manager.allocate(request_of(bob))


async def test_a_failing_drain_is_not_tried_in_a_tight_loop(miner: Any, alice: Owner, request_of: Any) -> None:
    def scheduler_sleeps(seconds: float) -> bool:
        return miner.clock.now() + seconds in miner.clock.ends

    await miner.manager.allocate(request_of(alice))
    await until_async(lambda: scheduler_sleeps(60))
    miner.runtime.fail = {"stop"}
    await miner.manager.deallocate(alice)
    await until_async(lambda: scheduler_sleeps(RETRY_SECONDS))
    assert miner.runtime.calls.count("stop") == 1


async def test_a_step_that_breaks_in_an_unforeseen_way_is_put_right(
    miner: Any, alice: Owner, request_of: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patched, caplog.at_level(logging.CRITICAL):
        patched.setattr(miner.runtime, "start", broken)
        with pytest.raises(ZeroDivisionError):
            await miner.manager.allocate(request_of(alice))
    await until_async(lambda: not miner.store.live(), passing=miner.clock)
    await until_async(lambda: miner.manager._reconciled, passing=miner.clock)
    await miner.manager.allocate(request_of(alice))


async def test_the_scheduler_survives_whatever_happens_to_it(
    miner: Any, alice: Owner, request_of: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    await miner.manager.allocate(request_of(alice))
    with monkeypatch.context() as patched, caplog.at_level(logging.ERROR):
        patched.setattr(miner.store, "live", lambda: 1 / 0)
        miner.clock.advance(2 * DAY)
        await until_async(lambda: "stumbled" in caplog.text, passing=miner.clock)
    miner.clock.advance(RETRY_SECONDS)
    await until_async(lambda: not miner.runtime.containers and not miner.store.live(), passing=miner.clock)


async def test_the_event_loop_runs_on_while_the_runtime_blocks(miner: Any, alice: Owner, request_of: Any) -> None:
    miner.runtime.gate = threading.Event()
    asked = asyncio.ensure_future(miner.manager.allocate(request_of(alice)))
    await until_async(lambda: "start" in miner.runtime.calls)
    for _ in range(100):
        await asyncio.sleep(0)
    assert not asked.done()
    assert await asyncio.wait_for(miner.manager.owns(alice.public_pem), DEADLINE_SECONDS)
    miner.runtime.gate.set()
    await asked
