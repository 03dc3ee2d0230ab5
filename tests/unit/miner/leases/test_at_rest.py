"""When a miner may end for an update: at which moments, and how long it waits for one."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from compute.miner.leases.states import LeaseState
from compute.miner.leases.store import Owner
from compute.wire.lease_terms import LeaseKind
from tests.waiting import until_async


async def test_at_rest_is_when_nobody_proves_the_machine_and_nothing_changes_it(
    miner: Any, alice: Owner, bob: Owner, request_of: Any
) -> None:
    await miner.manager.at_rest()
    await miner.manager.allocate(request_of(alice, kind=LeaseKind.PROBE))
    waiting = asyncio.create_task(miner.manager.at_rest())
    for _ in range(5):
        await asyncio.sleep(0.01)
        miner.clock.advance(1)
    assert not waiting.done(), "a validator proves the machine"

    miner.runtime.gate = threading.Event()
    starting = asyncio.create_task(miner.manager.allocate(request_of(bob)))
    await until_async(lambda: miner.states() == [LeaseState.STARTING])
    for _ in range(5):
        await asyncio.sleep(0.01)
        miner.clock.advance(1)
    assert not waiting.done(), "a customer's machine is starting"
    miner.runtime.gate.set()
    await starting
    await until_async(waiting.done, passing=miner.clock)
    assert miner.only().state is LeaseState.ACTIVE, "a customer has the machine, and keeps it"


async def test_at_rest_does_not_wait_for_ever_for_a_gap_between_proofs(
    miner: Any, alice: Owner, request_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compute.miner.leases.manager.PROBE_SECONDS", 1e6)
    await miner.manager.allocate(request_of(alice, kind=LeaseKind.PROBE))
    waiting = asyncio.create_task(miner.manager.at_rest())
    begun = miner.clock.now()
    await until_async(waiting.done, passing=miner.clock, step=30)
    assert miner.clock.now() - begun >= 3600
