"""Machines that go down, and runtimes that go away, under a manager that goes on."""

from __future__ import annotations

from typing import Any

import pytest

from compute.base.errors import LeaseError
from compute.base.reasons import Refusal
from compute.miner.leases.manager import WATCH_SECONDS
from compute.miner.leases.states import LeaseState
from compute.miner.leases.store import Owner
from compute.miner.runtimes.base import ContainerState
from compute.wire.keys import SessionKey
from compute.wire.lease_terms import KeyLine
from tests.waiting import until_async


def is_running(miner: Any, lease_id: str) -> bool:
    machine = miner.runtime.containers.get(lease_id)
    return machine is not None and machine.state is ContainerState.RUNNING


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("state", [ContainerState.DEAD, ContainerState.ABSENT])
async def test_a_machine_that_goes_down_is_brought_back(
    miner: Any, alice: Owner, request_of: Any, state: ContainerState, paused: bool
) -> None:
    granted = await miner.manager.allocate(request_of(alice))
    lease_id = granted.lease.lease_id
    if paused:
        await miner.manager.pause(alice)
    if state is ContainerState.DEAD:
        miner.runtime.containers[lease_id].state = state
    else:
        del miner.runtime.containers[lease_id]
    miner.clock.advance(WATCH_SECONDS)
    await until_async(lambda: is_running(miner, lease_id) and miner.states() == [LeaseState.ACTIVE])
    assert (await miner.manager.allocate(request_of(alice))).info == granted.info


async def test_a_machine_that_does_not_come_back_is_a_lease_that_failed(
    miner: Any, alice: Owner, request_of: Any
) -> None:
    await miner.manager.allocate(request_of(alice))
    (machine,) = miner.runtime.containers.values()
    machine.state, miner.runtime.fail = ContainerState.DEAD, {"restart"}
    await until_async(lambda: miner.store.live() == [], passing=miner.clock)
    assert miner.runtime.containers == {}
    assert miner.store.history()[-1].reason == "told to fail: restart"


async def test_what_is_well_is_only_looked_at(miner: Any, alice: Owner, request_of: Any) -> None:
    await miner.manager.allocate(request_of(alice))
    miner.runtime.calls.clear()
    await until_async(lambda: len(miner.runtime.calls) > 2, passing=miner.clock)
    assert set(miner.runtime.calls) == {"list", "renew"}


async def test_where_there_is_no_lease_no_machine_is_asked_for(miner: Any) -> None:
    miner.runtime.calls.clear()
    await until_async(lambda: len(miner.runtime.calls) > 5, passing=miner.clock)
    assert set(miner.runtime.calls) == {"renew"}


async def test_a_runtime_that_goes_away_costs_no_lease(
    miner: Any, alice: Owner, bob: Owner, request_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    granted = await miner.manager.allocate(request_of(alice))
    miner.runtime.gone = True
    fresh = SessionKey.generate().public_line
    for change in (
        miner.manager.pause(alice),
        miner.manager.exchange_key(alice, KeyLine.USER, fresh),
        miner.manager.restart(alice),
    ):
        with pytest.raises(LeaseError, match="nobody answers") as refused:
            await change
        assert refused.value.reason is Refusal.RUNTIME_FAILED
    with pytest.raises(LeaseError, match="is leased"):
        await miner.manager.allocate(request_of(bob))
    looks = miner.runtime.calls.count("list") + 3
    await until_async(lambda: miner.runtime.calls.count("list") > looks, passing=miner.clock)
    assert caplog.text.count("cannot be looked after") == 1
    miner.runtime.gone = False
    await until_async(lambda: miner.states() == [LeaseState.ACTIVE], passing=miner.clock)
    (machine,) = miner.runtime.containers.values()
    assert (machine.spec.lease_id, machine.endpoint.port) == (granted.lease.lease_id, granted.info.port)
    # The change that was lost on the way is made up for.
    assert machine.spec.authorized_keys == (fresh,)


async def test_a_lost_pause_is_what_the_machine_says(miner: Any, alice: Owner, request_of: Any) -> None:
    await miner.manager.allocate(request_of(alice))
    (machine,) = miner.runtime.containers.values()
    miner.runtime.gone = True
    with pytest.raises(LeaseError):
        await miner.manager.pause(alice)
    # It had been done, but the answer never came.
    machine.state = ContainerState.PAUSED
    miner.runtime.gone = False
    await until_async(lambda: miner.states() == [LeaseState.PAUSED], passing=miner.clock)


async def test_keys_that_cannot_be_written_again_cost_no_lease(
    miner: Any, alice: Owner, request_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    granted = await miner.manager.allocate(request_of(alice))
    await miner.close()
    miner = type(miner)(miner.folder, miner.clock, miner.box, miner.machines)
    miner.runtime.fail = {"set_keys"}
    await miner.manager.start()
    assert [lease.lease_id for lease in miner.store.live()] == [granted.lease.lease_id]
    assert "could not be written again" in caplog.text
    await miner.close()
