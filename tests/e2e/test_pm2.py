"""Both neurons under the real pm2, on a localnet: what pm2 does to them leaves leases, scores and weights alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from compute.localnet.demo.cast import Actor, Kind
from compute.localnet.demo.stage import VALIDATOR, Stage
from compute.localnet.newcomer import make_wallet, register
from compute.localnet.process import NodeProcess
from compute.localnet.settings import config_text
from compute.proof.calibrate import calibrate_cpu
from compute.store import Database
from compute.validator.facts import FactStore, WeightsState
from compute.validator.status import MinerRow, miner_rows

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
MINER = "miner"
ADDRESS = "127.0.0.2"
_SECONDS = 120


Pm2 = Any
MakePm2 = Callable[..., Pm2]


class Subnet:
    """A chain, a miner and a validator that are registered on it, and what they would be told."""

    def __init__(self, folder: Path) -> None:
        self.stage = Stage(folder, [Actor(MINER, Kind.HONEST)], block_seconds=0.25)
        self._axon_port, self._ssh_port = free_ports(2)

    def open(self) -> None:
        calibration = asyncio.run(calibrate_cpu(runs=1))
        self.stage.config_path.write_text(config_text(calibration, retries=4), encoding="utf-8")
        self.stage.start_chain()
        for name in (VALIDATOR, MINER):
            self.stage.register(name)

    def options(self, name: str) -> list[str]:
        stage = self.stage
        return [
            *("--subtensor.chain_endpoint", stage.node.endpoint, "--wallet.path", str(stage.folder / "wallets")),
            *("--wallet.name", name, "--database", str(stage.database_path(name))),
        ]

    @property
    def miner_options(self) -> list[str]:
        return [
            *self.options(MINER),
            *("--axon.ip", ADDRESS, "--axon.external_ip", ADDRESS, "--no-auto_update"),
            *("--axon.port", str(self._axon_port), "--ssh.port", str(self._ssh_port)),
            *("--miner.runtime", "local", "--miner.cpu.devices", "1"),
        ]

    @property
    def validator_options(self) -> list[str]:
        return [
            *self.options(VALIDATOR),
            *("--config.file", str(self.stage.config_path), "--no-auto_update"),
            *("--validator.specs.interval", "10", "--validator.proof.interval", "240"),
        ]

    def register_py(self, *arguments: str) -> str:
        command = [sys.executable, str(ROOT / "neurons" / "register.py"), *arguments[:1], *self.options(VALIDATOR)]
        done = subprocess.run([*command, *arguments[1:]], capture_output=True, text=True, timeout=_SECONDS)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def row(self) -> MinerRow | None:
        """The miner as the validator's database has it."""
        rows = self._read(miner_rows)
        return next((row for row in rows if row.hotkey == self.stage.hotkey(MINER)), None)

    def confirmed_block(self) -> int:
        """The block of the last weights that the validator read back from the chain."""
        entry = self._read(lambda facts: facts.last_weights((WeightsState.CONFIRMED,)))
        return entry.block if entry is not None else -1

    def _read(self, look: Callable[[FactStore], Any]) -> Any:
        database = Database(self.stage.database_path(VALIDATOR))
        try:
            return look(FactStore(database))
        finally:
            database.close()

    def answers(self) -> bool:
        """Whether the miner's axon is open."""
        with socket.socket() as knocking:
            return knocking.connect_ex((ADDRESS, self._axon_port)) == 0

    def is_paid(self) -> bool:
        """Whether the chain holds the validator's weight for the miner, and for nobody else."""
        netuid = self.stage.node.netuid
        neurons = self.stage.node.client.snapshot(netuid)["subnets"][str(netuid)]["neurons"]
        uids = {neuron["hotkey"]: uid for uid, neuron in enumerate(neurons)}
        held = neurons[uids[self.stage.hotkey(VALIDATOR)]]["weights"]
        return [int(uid) for uid, weight in held.items() if weight] == [uids[self.stage.hotkey(MINER)]]


@pytest.fixture
def subnet(tmp_path: Path, make_pm2: MakePm2) -> Iterator[Subnet]:
    subnet = Subnet(tmp_path)
    try:
        subnet.open()
        yield subnet
    finally:
        subnet.stage.close()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind((ADDRESS, 0))
        return [int(probe.getsockname()[1]) for probe in sockets]


def until(condition: Callable[[], Any], what: str, seconds: float = _SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.2)


def test_a_running_subnet_survives_what_pm2_does_to_it(subnet: Subnet, make_pm2: MakePm2) -> None:
    pm2 = make_pm2(MINER_OPTIONS=" ".join(subnet.miner_options), VALIDATOR_OPTIONS=" ".join(subnet.validator_options))
    pm2("start", "ecosystem.config.js")
    until(subnet.is_paid, "weights on the chain")
    subnet.register_py("allocate", "--days", "1", "--name", "mine")
    machine = subnet.register_py("exec", "mine", "--", "cat", "/proc/self/environ")
    assert "COMPUTE_LEASE" in machine
    until(lambda: rented(subnet), "the validator's score of the rental")

    def still_rented() -> None:
        # The very same machine: the host key is pinned, and the process is marked with the lease's id.
        assert subnet.register_py("exec", "mine", "--", "cat", "/proc/self/environ") == machine

    def still_validated(block: int) -> None:
        # Nothing began anew: the score is there before the first round is over, and weights go on.
        assert rented(subnet)
        until(lambda: subnet.confirmed_block() > block, "the next weights")
        assert rented(subnet)
        assert subnet.is_paid()

    for name in (MINER, VALIDATOR):
        for number, act in enumerate((pm2_does("restart"), pm2_does("reload"), killed), start=1):
            block = subnet.confirmed_block()
            act(pm2, name)
            if name == MINER:
                still_rented()
            else:
                still_validated(block)
            until(lambda name=name, number=number: pm2.state(name) == ("online", number), f"{name} is up again")
    assert rented(subnet)

    pm2("stop", MINER)
    assert pm2.state(MINER) == ("stopped", 3)
    still_rented()
    assert subnet.is_paid()
    pm2("restart", MINER)
    until(subnet.answers, "the miner's axon is open again")
    subnet.register_py("deallocate", "mine", "--yes")
    pm2("stop", "all")
    assert {pm2.state(name)[0] for name in (MINER, VALIDATOR)} == {"stopped"}
    # Two were killed here; all other ends were clean.
    assert pm2.journal.count("via signal [SIGKILL]") == 2
    assert "Traceback" not in pm2.log(MINER) + pm2.log(VALIDATOR)


def rented(subnet: Subnet) -> bool:
    row = subnet.row()
    return row is not None and row.allocated and row.score > 0


def pm2_does(command: str) -> Callable[[Pm2, str], None]:
    def act(pm2: Pm2, name: str) -> None:
        pm2(command, name)

    return act


def killed(pm2: Pm2, name: str) -> None:
    os.kill(pm2.pid(name), signal.SIGKILL)


def test_the_plain_command(subnet: Subnet, make_pm2: MakePm2) -> None:
    pm2 = make_pm2()
    for name, options in ((MINER, subnet.miner_options), (VALIDATOR, subnet.validator_options)):
        pm2("start", f"neurons/{name}.py", "--interpreter", "python3", "--", *options)
    until(subnet.is_paid, "weights on the chain")
    pm2("restart", MINER, VALIDATOR)
    block = subnet.confirmed_block()
    until(lambda: subnet.confirmed_block() > block, "weights after a restart")
    pm2("stop", "all")
    # Whether in pm2's own 1.6 s, or killed after them: a proof may be under way, and this machine busy.
    assert {pm2.state(name) for name in (MINER, VALIDATOR)} == {("stopped", 1)}
    assert "Traceback" not in pm2.log(MINER) + pm2.log(VALIDATOR)


@pytest.mark.parametrize(
    ("options", "says"),
    [("--netuid many", "'many'"), ("--wallet.name nobody --wallet.path /nowhere", "btcli wallet create")],
)
def test_a_misconfiguration_does_not_loop(make_pm2: MakePm2, options: str, says: str) -> None:
    pm2 = make_pm2(MINER_OPTIONS=options, VALIDATOR_OPTIONS=options)
    pm2("start", "ecosystem.config.js")
    # The same by an option of the plain command.
    plain = ("start", "neurons/miner.py", "--name", "plain", "--interpreter", "python3")
    pm2(*plain, "--stop-exit-codes", "2", "--exp-backoff-restart-delay", "100", "--", *options.split())
    names = (MINER, VALIDATOR, "plain")
    until(lambda: len(re.findall(r"exited with code \[2\]", pm2.journal)) == len(names), "all have ended")
    # One that is restarted in spite of that would have been so after these starts of another one.
    pm2("start", "neurons/miner.py", "--name", "loops", "--interpreter", "python3", "--", *options.split())
    until(lambda: pm2.state("loops")[1] >= 2, "pm2 restarts what it is not told to leave alone")
    for name in names:
        assert pm2.processes()[name]["pid"] == 0
        # It waits for nothing, whatever pm2 calls it.
        assert pm2.state(name) == ("waiting restart", 0)
        assert pm2.log(name).count(says) == 1
    # Mended, it is started again by the file, which reads its variables anew.
    pm2.environment["MINER_OPTIONS"] = "--netuid mended"
    pm2("restart", "ecosystem.config.js", "--only", MINER)
    until(lambda: "'mended'" in pm2.log(MINER), "the new options are used")


def test_a_crash_is_restarted_later_and_later_until_it_works(make_pm2: MakePm2, tmp_path: Path) -> None:
    with NodeProcess(state=tmp_path / "chain.db") as node:
        endpoint = node.endpoint
        node.stop()
        wallet = make_wallet("v", "default", str(tmp_path / "wallets"))
        options = f"--subtensor.chain_endpoint {endpoint} --wallet.name v --wallet.path {tmp_path / 'wallets'}"
        pm2 = make_pm2(VALIDATOR_OPTIONS=f"{options} --database {tmp_path / 'v.db'} --no-auto_update")
        pm2("start", "ecosystem.config.js", "--only", VALIDATOR)
        until(lambda: pm2.state(VALIDATOR)[1] >= 3, "three restarts")
        assert "exited with code [3]" in pm2.journal
        delays = [int(delay) for delay in re.findall(r"will restart in (\d+)ms", pm2.journal)]
        assert delays[:3] == [1000, 1500, 2250]
        node.start()
        register(endpoint, node.netuid, wallet, stake_alpha=2000)
        until(lambda: "subnet read" in pm2.log(VALIDATOR).rpartition("validator starts")[2], "the validator is up")
