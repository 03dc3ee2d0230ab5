"""One miner and one validator that are told many options at once; each option alone is shown in process."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import Field

from compute.base.clock import SystemClock
from compute.base.reasons import ProofReason
from compute.base.store import Database
from compute.miner import show as miner_show
from compute.miner.options import parse_miner
from compute.proof.models import CPU_MODEL, Claim, MachineVerdict
from compute.protocol import Specs, Synapse
from compute.validator import show as validator_show
from compute.validator.options import parse_validator
from compute.validator.store import FactStore
from compute.wire.client import DendriteCaller
from compute.wire.lease_client import AllocationClient, LeaseKeys
from compute.wire.peer import Peer
from compute.wire.requirements import DeviceRequirement
from compute.wire.specs import parse_specs
from tests.waiting import DEADLINE_SECONDS

if TYPE_CHECKING:
    from conftest import Start, Subnet

DAY_BLOCKS = 7200


class Allocate(Synapse):
    """As peers of older releases send it: without a signature of the body."""

    timeline: int = 0
    checking: bool = True
    output: dict[str, Any] = Field(default_factory=dict)


def address(ip: str) -> int:
    """As the chain has it."""
    return int.from_bytes(socket.inet_aton(ip), "big")


def metrics_at(at: tuple[str, int]) -> str:
    with urllib.request.urlopen(f"http://{at[0]}:{at[1]}/metrics", timeout=60) as answer:
        return str(answer.read().decode())


def test_a_miner(subnet: Subnet, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hotkey, validator = subnet.join("miner"), subnet.join("validator", stake=5000)
    ip, port = subnet.free_address()
    outside, ssh, metrics = subnet.free_address()[0], subnet.free_address(), subnet.free_address()
    miner = start(
        "miner",
        *subnet.options("miner"),
        *("--subtensor.network", "finney", "--subtensor._mock", "false"),
        *("--axon.ip", ip, "--axon.port", str(port), "--axon.external_ip", outside, "--axon.external_port", "4321"),
        *("--axon.max_workers", "2", "--ssh.host", ssh[0], "--ssh.port", str(ssh[1])),
        *("--miner.runtime", "local", "--miner.cpu.devices", "2", "--miner.require.signed"),
        *("--config.file", str(subnet.config(2.0)), "--metrics.ip", metrics[0], "--metrics.port", str(metrics[1])),
        *("--logging.json", "--logging.record_log", "--logging.logging_dir", str(tmp_path / "logs")),
        *("--miner.hashcat.path", "/none", "--miner.hashcat.workload.profile", "4"),
        "--miner.hashcat.extended.options=-O",
    )
    miner.until("auto-update is off")
    events = miner.events()
    assert (events["miner starts"]["hotkey"], events["miner starts"]["netuid"]) == (hotkey, subnet.netuid)
    assert events["what this machine scores if it proves itself"]["free"] == 2 * 2.0 * 50 / 32
    assert (tmp_path / "logs" / "miner.log").read_text(encoding="utf-8") in miner.log

    axon = subnet.neuron(hotkey)["axon"]
    assert (axon["ip"], axon["port"]) == (address(outside), 4321)
    assert miner.listens_on() == {(ip, port), metrics}
    assert f'hotkey="{hotkey}"' in metrics_at(metrics)

    asyncio.run(_rent_and_return(subnet, Peer(hotkey, ip, port), ssh))
    assert miner_show.status(parse_miner(["--status", "--json", "--database", str(tmp_path / "miner.db")], {})) == 0
    assert json.loads(capsys.readouterr().out)["leases"][0]["owner"] == validator


async def _rent_and_return(subnet: Subnet, peer: Peer, ssh: tuple[str, int]) -> None:
    """Two devices are claimed, what nobody signed is refused, and a lease answers SSH where it was told to."""
    async with DendriteCaller(subnet.wallets["validator"].hotkey) as caller:
        specs = await caller.call(peer, Specs(), timeout_seconds=60)
        assert len(parse_specs(specs.specs_output).gpus) == 2
        client, keys = AllocationClient(caller, SystemClock()), await LeaseKeys.generate()
        login = await client.allocate(peer, DeviceRequirement(cpu_count=1, gpu_count=1), days=1, keys=keys)
        assert login.port == ssh[1]
        reader, writer = await asyncio.open_connection(*ssh)
        assert (await asyncio.wait_for(reader.readline(), 60)).startswith(b"SSH-2.0")
        writer.close()
        await client.deallocate(peer, keys)
        unsigned: Any = await caller.call(peer, Allocate(timeline=1, checking=True), timeout_seconds=60)
        assert unsigned.output["reason"] == "bad_signature"


def test_a_validator(subnet: Subnet, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hotkey = subnet.join("validator", stake=5000)
    one, two = subnet.join("one"), subnet.join("two")
    for name in ("one", "two"):
        subnet.serve(name, subnet.free_address())
    # It has found a core of one of them already.
    path = tmp_path / "validator.db"
    database = Database(path)
    verdict = MachineVerdict(ProofReason.OK, Claim(CPU_MODEL, 1), CPU_MODEL, 1)
    FactStore(database).record_verdict(one, verdict, at=4e9, block=DAY_BLOCKS, seconds=1.0)
    database.close()
    config = ("--config.file", str(subnet.config(2.0)))
    validator = start(
        *("validator", *subnet.options("validator"), *config),
        *("--validator.rounds", "1", "--no-validator.perform.hardware.query", "--validator.challenge.batch.size", "3"),
        *("--subtensor.network", "finney", "--subtensor._mock", "no", "--axon.ip", "127.0.0.1"),
        *("--axon.external_ip", "127.3.2.1", "--axon.port", "4001", "--axon.max_workers", "3"),
        *("--logging.json", "--logging.record_log", "--logging.logging_dir", str(tmp_path / "logs")),
    )
    assert validator.process.wait(DEADLINE_SECONDS) == 0, validator.log
    events = validator.events()
    assert (events["validator starts"]["hotkey"], events["validator starts"]["netuid"]) == (hotkey, subnet.netuid)
    assert {"version published", "auto-update is off"} <= set(events)
    assert (tmp_path / "logs" / "validator.log").read_text(encoding="utf-8") in validator.log
    chain = subnet.neuron(hotkey)
    assert list(chain["weights"]) == [str(subnet.neuron(one)["uid"])]
    assert (chain["prometheus"]["ip"], chain["prometheus"]["port"]) == (address("127.3.2.1"), 4001)

    assert validator_show.status(parse_validator(["--status", "--json", "--database", str(path)], {})) == 0
    rows = {row["hotkey"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows[one]["score"], rows[one]["weight"]) == (2.0 * 50 / 32, 1.0)
    assert rows[two]["verdict"]["reason"] == "not_proven_yet", "nobody has asked it"
    assert (
        validator_show.explain_miner(parse_validator(["explain", one, "--database", str(path), *config], {}), one) == 0
    )
    assert f"2 ({CPU_MODEL}) × 1 GPU × factor 1.5625 = 3.125" in capsys.readouterr().out
