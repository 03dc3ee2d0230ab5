"""A receipt's way through the miner: from the renter's hand, over the lease's row, into the specs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bittensor
import pytest

from compute.base.store import Database
from compute.miner.access import AccessPolicy
from compute.miner.allocate_handler import AllocateService
from compute.miner.gate import MinerGate
from compute.miner.hardware import FixedHardware
from compute.miner.leases.manager import LeaseManager
from compute.miner.leases.store import LeaseStore
from compute.miner.service import MinerService
from compute.protocol import Allocate, Specs
from compute.testing.chain import FakeChain
from compute.testing.clock import ManualClock
from compute.testing.runtime import FakeRuntime
from compute.wire.keys import RenterKey, SecretBox, SessionKey
from compute.wire.receipts import Issuer, Receipt, check
from compute.wire.server import RequestContext
from compute.wire.signing import SignerMemory, verify_signature
from compute.wire.specs import Gpu, MachineSpecs, parse_specs

MINER, CALLER, OTHER = (bittensor.Keypair.create_from_uri(f"//{name}") for name in ("miner", "caller", "other"))
RENTER = RenterKey.generate()
GIB = 1 << 30
MACHINE = MachineSpecs(8, 3000.0, 64 * GIB, 60 * GIB, 0, 0, 100, 0, 100, (Gpu("NVIDIA L4", 23034),))
DAY = 86_400


class Bench:
    """One life of a miner; the next one on the same folder has the same leases."""

    def __init__(self, folder: Path, clock: ManualClock | None = None, runtime: FakeRuntime | None = None) -> None:
        self.clock = clock or ManualClock()
        self.runtime = runtime or FakeRuntime()
        self.database = Database(folder / "miner.db")
        self.store = LeaseStore(self.database, SecretBox(b"k" * 32))
        self.manager = LeaseManager(
            store=self.store, runtime=self.runtime, specs=lambda: MACHINE, clock=self.clock, answer_seconds=5
        )

        def check_receipt(receipt: Receipt) -> None:
            check(receipt, netuid=27, miner=MINER.ss58_address, now=self.clock.now(), verify=verify_signature)

        self.service = MinerService(
            hotkey=MINER,
            own_hotkey=MINER.ss58_address,
            chain=FakeChain(MINER.ss58_address),
            server=SimpleNamespace(),
            gate=MinerGate(AccessPolicy(), self.clock),
            allocation=AllocateService(self.manager, check_receipt),
            hardware=FixedHardware(MACHINE),
            signers=SignerMemory(self.database),
            clock=self.clock,
        )

    async def ask(self, key: Any = CALLER, **fields: Any) -> dict[str, Any]:
        synapse = Allocate(checking=False, public_key=RENTER.public_pem, **fields)
        context = RequestContext(key.ss58_address, 1, "127.0.0.1")
        return (await self.service.answer_allocate(synapse, context)).output

    async def lease(self, days: int = 10, **requirement: Any) -> str:
        """A lease of the caller's; returns its host key."""
        output = await self.ask(timeline=days, device_requirement={"gpu": {"count": 1}, **requirement})
        assert output["status"] is True
        lease = self.store.holder()
        assert lease is not None
        return SessionKey.from_private_openssh(self.store.secrets(lease.lease_id).host_key).fingerprint

    @property
    def port(self) -> int:
        lease = self.store.holder()
        assert lease is not None
        return lease.port

    def receipt(self, host_key: str, key: Any = CALLER, **changes: Any) -> Receipt:
        issuer = Issuer(key, key.ss58_address, changes.get("netuid", 27), self.clock)
        return issuer.issue(
            changes.get("miner", MINER.ss58_address), host_key, changes.get("port", self.port), self.clock.now() + DAY
        )

    async def hand(self, receipt: object, key: Any = CALLER) -> dict[str, Any]:
        wire = receipt.to_wire() if isinstance(receipt, Receipt) else receipt
        return await self.ask(key, docker_change=True, docker_action={"action": "receipt", "receipt": wire})

    async def shown(self) -> Receipt | None:
        answer = await self.service.answer_specs(Specs(), RequestContext(OTHER.ss58_address, 1, "127.0.0.1"))
        return parse_specs(answer.specs_output).receipt


@pytest.fixture
async def bench(tmp_path: Path) -> Any:
    bench = Bench(tmp_path)
    await bench.service.refresh_hardware()
    await bench.manager.start()
    yield bench
    await bench.manager.close()


async def test_a_receipt_is_shown_until_it_or_the_lease_is_over(bench: Bench) -> None:
    assert await bench.shown() is None
    host_key = await bench.lease()
    assert await bench.shown() is None
    first = bench.receipt(host_key)
    assert (await bench.hand(first))["status"] is True
    assert await bench.shown() == first
    bench.clock.advance(DAY / 2)
    second = bench.receipt(host_key)
    await bench.hand(second)
    assert await bench.shown() == second
    bench.clock.advance(DAY)
    assert await bench.shown() is None
    third = bench.receipt(host_key)
    await bench.hand(third)
    assert await bench.shown() == third
    assert (await bench.ask())["status"] is True
    assert await bench.shown() is None


async def test_the_next_lease_has_none_of_the_last_ones(bench: Bench) -> None:
    await bench.hand(bench.receipt(await bench.lease()))
    await bench.ask()
    await bench.lease()
    assert await bench.shown() is None


async def test_it_survives_a_restart(bench: Bench, tmp_path: Path) -> None:
    receipt = bench.receipt(await bench.lease())
    await bench.hand(receipt)
    await bench.manager.close()
    again = Bench(tmp_path, bench.clock, bench.runtime)
    await again.service.refresh_hardware()
    await again.manager.start()
    assert await again.shown() == receipt
    await again.manager.close()


async def test_only_the_owner_hands_one_over_and_only_his_own(bench: Bench) -> None:
    host_key = await bench.lease()
    assert (await bench.hand(bench.receipt(host_key, OTHER), OTHER))["reason"] == "not_owner"
    assert (await bench.hand(bench.receipt(host_key, OTHER)))["reason"] == "bad_request"
    assert await bench.shown() is None


@pytest.mark.parametrize(
    "wrong",
    ["another lease", "another port", "another miner", "another subnet", "forged", "over", "huge", "nothing", "a list"],
)
async def test_a_receipt_that_is_worth_nothing_is_not_carried(bench: Bench, wrong: str) -> None:
    good = bench.receipt(await bench.lease())
    receipt: object = {
        "another lease": bench.receipt(SessionKey.generate().fingerprint),
        "another port": bench.receipt(good.host_key, port=bench.port + 1),
        "another miner": bench.receipt(good.host_key, miner=OTHER.ss58_address),
        "another subnet": bench.receipt(good.host_key, netuid=15),
        "forged": replace(good, until=good.until + 1),
        "over": good,
        "huge": {**good.to_wire(), "host_key": "x" * 60_000},
        "nothing": None,
        "a list": [good.to_wire()] * 1000,
    }[wrong]
    if wrong == "over":
        bench.clock.advance(DAY)
    assert (await bench.hand(receipt))["reason"] == "bad_request"
    assert await bench.shown() is None


async def test_a_probe_has_no_receipt(bench: Bench) -> None:
    host_key = await bench.lease(testing=True)
    assert (await bench.hand(bench.receipt(host_key)))["reason"] == "unsupported"


async def test_without_a_lease_there_is_nothing_to_carry(bench: Bench) -> None:
    receipt = Issuer(CALLER, CALLER.ss58_address, 27, bench.clock).issue(
        MINER.ss58_address, SessionKey.generate().fingerprint, 4444, bench.clock.now() + DAY
    )
    assert (await bench.hand(receipt))["reason"] == "no_lease"
