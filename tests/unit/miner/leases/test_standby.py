"""The machine that stands ready between leases: who gets it, and that nothing depends on it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compute.base.errors import LeaseError, StoreError
from compute.base.reasons import Refusal
from compute.miner.leases.manager import LeaseRequest
from compute.miner.leases.standby import Standby
from compute.miner.leases.states import LeaseState
from compute.miner.leases.store import Owner
from compute.miner.runtimes.base import ContainerSpec, Limits
from compute.miner.runtimes.local import LocalRuntime
from compute.testing.clock import ManualClock
from compute.wire.keys import SecretBox, SessionKey
from compute.wire.lease_terms import LeaseKind
from compute.wire.requirements import DeviceRequirement
from tests.waiting import DEADLINE_SECONDS, until_async

RETRY_SECONDS = 600


@pytest.fixture
async def miner(tmp_path: Path, miner_type: Any) -> AsyncIterator[Any]:
    miner = miner_type(tmp_path, ManualClock(), SecretBox(bytes(32)), stand_ready=True)
    await miner.manager.start()
    await until_async(lambda: miner.manager.is_ready)
    yield miner
    await miner.close()


@pytest.fixture
def reserving(miner: Any, alice: Owner, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is not set, what alice asks for is not written down."""
    written, reserve = threading.Event(), miner.store.reserve

    def slow(lease: Any, *arguments: Any, **named: Any) -> Any:
        assert lease.owner != alice or written.wait(DEADLINE_SECONDS)
        return reserve(lease, *arguments, **named)

    monkeypatch.setattr(miner.store, "reserve", slow)
    return written


def waiting(miner: Any) -> ContainerSpec:
    spec: ContainerSpec
    (spec,) = miner.runtime.prewarmed.values()
    return spec


def whole(request: LeaseRequest) -> LeaseRequest:
    """As a validator asks."""
    return replace(request, requirement=DeviceRequirement(gpu_count=3))


async def test_the_first_is_the_whole_machine_and_becomes_a_probes(miner: Any, alice: Owner, request_of: Any) -> None:
    ready = waiting(miner)
    assert ready.limits.gpu_uuids == tuple(gpu.uuid for gpu in miner.specs.gpus)
    first = whole(request_of(alice, kind=LeaseKind.PROBE))
    granted = await miner.manager.allocate(first)
    assert granted.lease.lease_id == ready.lease_id
    assert granted.info.host_key == SessionKey.from_private_openssh(ready.host_key).fingerprint
    assert miner.runtime.prewarmed == {}
    assert not miner.manager.is_ready
    (machine,) = miner.runtime.containers.values()
    assert machine.spec.lease_id == granted.lease.lease_id
    assert (await miner.manager.allocate(first)).info == granted.info


async def test_the_next_is_like_the_last_lease_and_nobody_elses(
    miner: Any, alice: Owner, bob: Owner, request_of: Any
) -> None:
    identities = set()
    for owner in (alice, bob, alice):
        granted = await miner.manager.allocate(request_of(owner, gpus=1))
        identities.add((granted.lease.lease_id, granted.info.host_key))
        await miner.manager.deallocate(owner)
        await until_async(lambda: miner.manager.is_ready)
        ready = waiting(miner)
        assert ready.limits == granted.lease.limits
        assert SessionKey.from_private_openssh(ready.host_key).fingerprint != granted.info.host_key
    assert len(identities) == 3
    granted = await miner.manager.allocate(request_of(bob, gpus=1))
    assert granted.lease.lease_id == ready.lease_id
    assert granted.info.host_key == SessionKey.from_private_openssh(ready.host_key).fingerprint


async def test_for_another_machine_it_makes_way_first(miner: Any, alice: Owner, request_of: Any) -> None:
    ready = waiting(miner)
    miner.runtime.calls.clear()
    granted = await miner.manager.allocate(request_of(alice, gpus=1))
    assert granted.lease.lease_id != ready.lease_id
    # It has the port.
    assert miner.runtime.calls == ["stop", "start"]
    assert miner.runtime.prewarmed == {}


async def test_a_customer_who_takes_over_from_a_probe_gets_a_machine_of_its_own(
    miner: Any, alice: Owner, bob: Owner, request_of: Any
) -> None:
    probe = await miner.manager.allocate(whole(request_of(alice, kind=LeaseKind.PROBE)))
    granted = await miner.manager.allocate(whole(request_of(bob)))
    assert granted.lease.lease_id != probe.lease.lease_id
    assert granted.lease.limits == probe.lease.limits
    await miner.manager.deallocate(bob)
    await until_async(lambda: miner.manager.is_ready)


async def test_of_two_at_once_one_gets_it(miner: Any, alice: Owner, bob: Owner, request_of: Any) -> None:
    ready = waiting(miner)
    answers = await asyncio.gather(
        miner.manager.allocate(whole(request_of(alice))),
        miner.manager.allocate(whole(request_of(bob))),
        return_exceptions=True,
    )
    refused = [answer for answer in answers if isinstance(answer, LeaseError)]
    assert [error.reason for error in refused] == [Refusal.BUSY]
    assert [machine.spec.limits for machine in miner.runtime.containers.values()] == [ready.limits]
    assert miner.runtime.prewarmed == {}


async def test_it_makes_way_for_whoever_was_faster_than_the_one_who_asked_for_it(
    miner: Any, alice: Owner, bob: Owner, request_of: Any, reserving: threading.Event
) -> None:
    asking = asyncio.create_task(miner.manager.allocate(whole(request_of(alice))))
    await until_async(lambda: not miner.manager.is_ready)
    miner.runtime.calls.clear()
    await miner.manager.allocate(whole(request_of(bob)))
    # It has the port.
    assert miner.runtime.calls == ["stop", "start"]
    assert miner.runtime.prewarmed == {}
    reserving.set()
    with pytest.raises(LeaseError) as refused:
        await asking
    assert refused.value.reason is Refusal.BUSY
    assert not miner.manager.is_ready
    await miner.manager.deallocate(bob)
    await until_async(lambda: miner.manager.is_ready)


async def test_no_second_one_is_made_while_one_is_asked_for(
    miner: Any, alice: Owner, request_of: Any, reserving: threading.Event
) -> None:
    asking = asyncio.create_task(miner.manager.allocate(whole(request_of(alice))))
    await until_async(lambda: not miner.manager.is_ready)
    # As where the scheduler looks just now.
    assert not miner.manager._steps.standby.is_due
    await miner.manager._steps.stand_ready()
    reserving.set()
    await asking
    assert [call for call in miner.runtime.calls if call != "renew"] == ["list", "prewarm", "start"]


async def test_one_that_was_not_reserved_after_all_is_the_next_ones(
    miner: Any, alice: Owner, request_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = waiting(miner)

    def full(*_: Any, **__: Any) -> Any:
        raise StoreError("the disk is full")

    with monkeypatch.context() as broken, pytest.raises(StoreError):
        broken.setattr(miner.store, "reserve", full)
        await miner.manager.allocate(whole(request_of(alice)))
    assert miner.manager.is_ready
    assert (await miner.manager.allocate(whole(request_of(alice)))).lease.lease_id == ready.lease_id


async def test_a_caller_who_goes_while_it_is_reserved_takes_nothing_along(
    miner: Any, alice: Owner, request_of: Any, reserving: threading.Event
) -> None:
    ready = waiting(miner)
    asking = asyncio.create_task(miner.manager.allocate(whole(request_of(alice))))
    await until_async(lambda: not miner.manager.is_ready)
    asking.cancel()
    reserving.set()
    await until_async(lambda: miner.states() == [LeaseState.RESERVED])
    assert (await miner.manager.allocate(whole(request_of(alice)))).lease.lease_id == ready.lease_id


async def test_whoever_comes_while_it_is_made_waits_for_it_and_no_longer(
    tmp_path: Path, miner_type: Any, alice: Owner, request_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    miner = miner_type(tmp_path, ManualClock(), SecretBox(bytes(32)), stand_ready=True)
    gate, begun, prewarm = threading.Event(), threading.Event(), miner.runtime.prewarm

    def slow(spec: ContainerSpec) -> None:
        begun.set()
        gate.wait(DEADLINE_SECONDS)
        prewarm(spec)

    monkeypatch.setattr(miner.runtime, "prewarm", slow)
    await miner.manager.start()
    await until_async(begun.is_set)
    asking = asyncio.create_task(miner.manager.allocate(whole(request_of(alice))))
    await until_async(lambda: miner.states() == [LeaseState.STARTING] or miner.states() == [LeaseState.RESERVED])
    assert miner.runtime.containers == {}
    gate.set()
    granted = await asking
    assert list(miner.runtime.containers) == [granted.lease.lease_id]
    assert [call for call in miner.runtime.calls if call != "renew"] == ["list", "prewarm", "start"]
    await miner.close()


async def test_one_that_does_not_come_up_is_said_tried_again_and_in_nobodys_way(
    miner: Any, alice: Owner, request_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await miner.manager.allocate(request_of(alice, gpus=1))
    miner.runtime.fail = {"prewarm"}
    await miner.manager.deallocate(alice)
    await until_async(lambda: "stand_ready: told to fail: prewarm" in caplog.text)
    assert (await miner.manager.allocate(request_of(alice, gpus=1))).lease.state is LeaseState.ACTIVE
    await miner.manager.deallocate(alice)
    await until_async(lambda: caplog.text.count("told to fail: prewarm") == 2)
    end = miner.clock.monotonic() + RETRY_SECONDS
    await until_async(lambda: miner.clock.monotonic() > end - 10, passing=miner.clock, step=5)
    assert caplog.text.count("told to fail: prewarm") == 2
    miner.runtime.fail = set()
    await until_async(lambda: miner.manager.is_ready, passing=miner.clock)
    assert miner.clock.monotonic() >= end
    # The limits of the one that failed may have been why.
    assert len(waiting(miner).limits.gpu_uuids) == 3


async def test_a_runtime_without_standby_containers_gets_none(tmp_path: Path) -> None:
    async def never(*_: Any) -> None:
        raise AssertionError("nothing is to be done")

    runtime = LocalRuntime(tmp_path, chain_endpoint="ws://127.0.0.1:9944")
    standby = Standby(runtime, clock=ManualClock(), ssh_port=0, first=Limits, call=never)
    assert not standby.is_due
    await standby.make()
    assert not standby.is_there


async def test_none_is_made_unless_it_is_wanted(tmp_path: Path, miner_type: Any) -> None:
    miner = miner_type(tmp_path, ManualClock(), SecretBox(bytes(32)))
    await miner.manager.start()
    end = miner.clock.monotonic() + 2 * RETRY_SECONDS
    await until_async(lambda: miner.clock.monotonic() > end, passing=miner.clock, step=30)
    assert "prewarm" not in miner.runtime.calls
    await miner.close()


async def test_a_miner_that_ends_takes_it_down(miner: Any) -> None:
    assert miner.runtime.prewarmed
    await miner.close()
    assert miner.runtime.prewarmed == {}


async def test_an_end_does_not_fail_for_it(tmp_path: Path, miner_type: Any) -> None:
    miner = miner_type(tmp_path, ManualClock(), SecretBox(bytes(32)), stand_ready=True)
    await miner.manager.start()
    await until_async(lambda: miner.manager.is_ready)
    miner.runtime.fail = {"stop"}
    await miner.close()
    assert miner.runtime.calls[-1] == "stop"


async def test_none_is_made_beside_a_lease(miner: Any, alice: Owner, request_of: Any) -> None:
    await miner.manager.allocate(request_of(alice))
    # As where the request came after the scheduler had looked.
    await miner.manager._steps.stand_ready()
    assert miner.runtime.prewarmed == {}


async def test_putting_things_in_order_begins_with_it(miner: Any) -> None:
    await miner.manager._steps.reconcile()
    assert miner.runtime.prewarmed == {}
    assert not miner.manager.is_ready


async def test_a_restart_of_the_miner_makes_another(miner: Any) -> None:
    ready = waiting(miner)
    again = await miner.again()
    await until_async(lambda: again.manager.is_ready)
    assert waiting(again).lease_id != ready.lease_id
    await again.close()
