"""The miner's answers, without a network: the server is the only thing that is not the real one here."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bittensor
import pytest

from compute import __version_as_int__
from compute.base.errors import ChainUnreachable, ConfigError, ExtrinsicRefused, NotRegistered
from compute.base.store import Database
from compute.miner.access import AccessPolicy
from compute.miner.allocate_handler import AllocateService
from compute.miner.gate import MinerGate
from compute.miner.hardware import FixedHardware
from compute.miner.leases.manager import LeaseManager
from compute.miner.leases.store import LeaseStore
from compute.miner.service import SYNC_BLOCKS, MinerService
from compute.protocol import Allocate, Challenge, Specs
from compute.testing.chain import FakeChain
from compute.testing.clock import ManualClock
from compute.testing.runtime import FakeRuntime
from compute.wire import signing
from compute.wire.keys import RenterKey, SecretBox
from compute.wire.server import RequestContext
from compute.wire.signing import SignerMemory, verify_signature
from compute.wire.specs import Gpu, MachineSpecs, parse_specs
from tests.waiting import until_async

MINER = bittensor.Keypair.create_from_uri("//miner")
CALLER = bittensor.Keypair.create_from_uri("//caller")
CONTEXT = RequestContext(CALLER.ss58_address, 1_700_000_000_000_000_000, "127.0.0.1")
MACHINE = MachineSpecs(
    8, 3000.0, 64 << 30, 60 << 30, 4 << 30, 60 << 30, 1 << 40, 0, 1 << 40, (Gpu("NVIDIA L4", 23034),)
)
# RSA keys take 100 ms each; one is enough here.
RENTER = RenterKey.generate()


class RecordedServer:
    """Stands for the axon's socket."""

    def __init__(self) -> None:
        self.axon = SimpleNamespace(external_ip="127.0.0.2", external_port=8091)
        self.new_address: str | None = None
        self.attached: set[str] = set()
        self.running = False

    def attach(self, synapse: type, handler: Any) -> None:
        self.attached.add(synapse.__name__)

    async def start(self) -> None:
        self.running = True

    async def stop(self) -> None:
        self.running = False

    async def refresh_address(self) -> None:
        if self.new_address is not None:
            self.axon.external_ip = self.new_address


class Bench:
    def __init__(self, tmp_path: Path, *, require_signed: bool = False) -> None:
        self.clock = ManualClock()
        self.chain = FakeChain(MINER.ss58_address)
        self.database = Database(tmp_path / "miner.db")
        self.hardware = FixedHardware(MACHINE)
        self.server = RecordedServer()
        self.gate = MinerGate(AccessPolicy(), self.clock)
        self.manager = LeaseManager(
            store=LeaseStore(self.database, SecretBox(b"k" * 32)),
            runtime=FakeRuntime(),
            specs=self.hardware.specs,
            clock=self.clock,
        )
        self.service = MinerService(
            hotkey=MINER,
            own_hotkey=MINER.ss58_address,
            chain=self.chain,
            server=self.server,
            gate=self.gate,
            allocation=AllocateService(self.manager),
            hardware=self.hardware,
            signers=SignerMemory(self.database),
            clock=self.clock,
            require_signed=require_signed,
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def signed(synapse: Allocate, key: Any = CALLER) -> Allocate:
    message = signing.request_message("Allocate", CONTEXT.nonce, synapse.model_dump())
    synapse.body_signature = signing.encode(key.sign(message))
    return synapse


def allocation() -> Allocate:
    return Allocate(timeline=1, checking=False, public_key=RENTER.public_pem, device_requirement={"gpu": {"count": 1}})


async def test_specs_are_the_machines(bench: Bench) -> None:
    await bench.service.refresh_hardware()
    answer = await bench.service.answer_specs(Specs(), CONTEXT)
    assert parse_specs(answer.specs_output) == MACHINE


async def test_challenges_are_retired_politely(bench: Bench) -> None:
    answer = await bench.service.answer_challenge(Challenge(challenge_hash="x"), CONTEXT)
    assert answer.output["status"] is False
    assert "retired" in answer.output["message"]


async def test_a_lease_comes_with_an_info_that_the_miner_has_signed(bench: Bench) -> None:
    await bench.manager.start()
    answer = await bench.service.answer_allocate(signed(allocation()), CONTEXT)
    assert answer.output["status"] is True
    signature = signing.decode(answer.output["info_signature"])
    assert signature is not None
    message = signing.answer_message(CONTEXT.nonce, CONTEXT.hotkey, answer.output["info"])
    assert verify_signature(MINER.ss58_address, message, signature)
    await bench.manager.close()


async def test_an_older_peer_need_not_sign(bench: Bench) -> None:
    await bench.manager.start()
    assert (await bench.service.answer_allocate(allocation(), CONTEXT)).output["status"] is True
    await bench.manager.close()


@pytest.mark.parametrize("forgery", ["another key", "another body", "garbage"])
async def test_a_wrong_signature_is_refused_before_anything_is_done(bench: Bench, forgery: str) -> None:
    synapse = signed(allocation(), MINER if forgery == "another key" else CALLER)
    if forgery == "another body":
        synapse.timeline = 90
    elif forgery == "garbage":
        synapse.body_signature = "0xzz"
    output = (await bench.service.answer_allocate(synapse, CONTEXT)).output
    assert (output["status"], output["reason"]) == (False, "bad_signature")
    assert await bench.manager.current() is None


async def test_who_has_signed_once_signs_always(bench: Bench, tmp_path: Path) -> None:
    await bench.service.answer_allocate(signed(Allocate(timeline=1)), CONTEXT)
    again = Bench(tmp_path)
    output = (await again.service.answer_allocate(allocation(), CONTEXT)).output
    assert output["reason"] == "bad_signature"
    assert "signed before" in output["message"]


async def test_require_signed(tmp_path: Path) -> None:
    output = (await Bench(tmp_path, require_signed=True).service.answer_allocate(allocation(), CONTEXT)).output
    assert output["reason"] == "bad_signature"


async def run_until(bench: Bench, condition: Any) -> None:
    task = asyncio.create_task(bench.service.run())
    await until_async(condition, passing=bench.clock)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not bench.server.running


async def test_the_axon_is_announced_and_announced_again(bench: Bench) -> None:
    bench.chain.add(MINER.ss58_address, ip="0.0.0.0", port=0, version=0)

    def announced() -> bool:
        own = bench.chain.neurons[0]
        return (own.ip, own.port, own.version) == ("127.0.0.2", 8091, __version_as_int__)

    await run_until(bench, announced)
    assert bench.server.attached == {"Specs", "Allocate", "Challenge"}

    # The chain forgets (registered again by its owner): the next sync puts it right.
    bench.chain.neurons.clear()
    bench.chain.add(MINER.ss58_address, ip="0.0.0.0", port=0, version=0)
    bench.chain.height += 30
    await run_until(bench, announced)


async def test_an_unregistered_miner_says_how_to_register(bench: Bench) -> None:
    with pytest.raises(NotRegistered, match="btcli subnets register"):
        await bench.service.run()


async def test_a_chain_that_fails_for_a_while_changes_nothing(bench: Bench) -> None:
    bench.chain.add(MINER.ss58_address, ip="127.0.0.2", version=__version_as_int__)
    task = asyncio.create_task(bench.service.run())
    await until_async(lambda: bench.server.running, "the axon runs")
    bench.chain.fail_next("block", ChainUnreachable("gone"))
    for _ in range(50):
        bench.clock.advance(10.0)
        await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_the_serving_rate_limit_is_no_reason_to_end(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.chain.add(MINER.ss58_address, ip="0.0.0.0")
    bench.chain.fail_next("serve", ExtrinsicRefused("ServingRateLimitExceeded", "too often"))
    await run_until(bench, lambda: "takes the axon's new address later" in caplog.text)


async def test_deregistration_is_noticed_and_said(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.chain.add(MINER.ss58_address, ip="127.0.0.2", version=__version_as_int__)
    await bench.service.sync()
    bench.chain.neurons.clear()
    await bench.service.sync()
    assert "has been deregistered" in caplog.text


async def test_a_miner_that_is_registered_again_says_so_and_is_announced(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.chain.add(MINER.ss58_address, ip="127.0.0.2", version=__version_as_int__)
    await bench.service.sync()
    bench.chain.neurons.clear()
    for _ in range(3):
        bench.chain.height += SYNC_BLOCKS
        await bench.service.sync_if_due()
    assert caplog.text.count("has been deregistered") == 1
    bench.chain.add(MINER.ss58_address, ip="0.0.0.0", port=0, version=0)
    bench.chain.height += SYNC_BLOCKS
    await bench.service.sync_if_due()
    assert "this hotkey is registered again" in caplog.text
    assert (bench.chain.neurons[0].ip, bench.chain.neurons[0].port) == ("127.0.0.2", 8091)


async def test_the_axon_follows_a_new_address_and_a_new_version(bench: Bench) -> None:
    bench.chain.add(MINER.ss58_address, ip="127.0.0.2", port=8091, version=__version_as_int__ - 1)
    await bench.service.sync()
    bench.chain.height += SYNC_BLOCKS - 1
    await bench.service.sync_if_due()
    assert bench.chain.neurons[0].version == __version_as_int__ - 1
    bench.chain.height += 1
    await bench.service.sync_if_due()
    assert bench.chain.neurons[0].version == __version_as_int__
    bench.server.new_address = "127.0.0.3"
    bench.chain.height += SYNC_BLOCKS
    await bench.service.sync_if_due()
    assert bench.chain.neurons[0].ip == "127.0.0.3"


async def test_specs_are_looked_up_once_for_all_who_ask(bench: Bench) -> None:
    await bench.service.refresh_hardware()
    bench.hardware.current = MACHINE.with_gpus(())
    for _ in range(3):
        answer = await bench.service.answer_specs(Specs(), CONTEXT)
        assert parse_specs(answer.specs_output) == MACHINE


async def test_hardware_that_cannot_be_looked_at_stays_as_last_seen(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.service.refresh_hardware()

    def fail() -> MachineSpecs:
        raise ConfigError("no such disk")

    monkeypatch.setattr(bench.hardware, "specs", fail)
    with pytest.raises(ConfigError):
        await bench.service.refresh_hardware()
    answer = await bench.service.answer_specs(Specs(), CONTEXT)
    assert parse_specs(answer.specs_output) == MACHINE


async def test_what_is_lost_or_used_up_cannot_be_leased(bench: Bench) -> None:
    await bench.manager.start()
    await bench.service.refresh_hardware()
    bench.hardware.current = MACHINE.with_gpus(())
    output = (await bench.service.answer_allocate(allocation(), CONTEXT)).output
    assert (output["status"], output["reason"]) == (False, "gpu_count")
    bench.hardware.current = replace(MACHINE, ram_available=1 << 30, ram_total=64 << 30)
    wanted = {"gpu": {"count": 1}, "ram": {"capacity": 2 << 30}}
    for checking in (True, False):
        synapse = Allocate(timeline=1, checking=checking, public_key=RENTER.public_pem, device_requirement=wanted)
        output = (await bench.service.answer_allocate(synapse, CONTEXT)).output
        assert (output["status"], output["reason"]) == (False, "ram")
    await bench.manager.close()


async def test_busy_memory_is_no_change_of_hardware(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    await bench.service.refresh_hardware()
    bench.hardware.current = replace(MACHINE, ram_available=0, ram_free=0, disk_free=0)
    await bench.service.refresh_hardware()
    assert "the hardware has changed" not in caplog.text


async def test_a_lost_gpu_is_noticed(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    await bench.service.refresh_hardware()
    bench.hardware.current = MACHINE.with_gpus(())
    await bench.service.refresh_hardware()
    assert "the hardware has changed" in caplog.text
    answer = await bench.service.answer_specs(Specs(), CONTEXT)
    assert parse_specs(answer.specs_output).gpus == ()
