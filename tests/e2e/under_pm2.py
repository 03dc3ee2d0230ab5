"""A subnet whose neurons pm2 starts, and what a test may ask of it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compute.base.store import Database
from compute.demo.cast import Actor, Kind
from compute.demo.stage import VALIDATOR, Stage
from compute.testing.rates import easy_config
from compute.validator.show import MinerRow, miner_rows
from compute.validator.store import FactStore, WeightsState

ROOT = Path(__file__).resolve().parents[2]
MINER = "miner"
ADDRESS = "127.0.0.2"
SECONDS = 120


class Subnet:
    """A chain, a miner and a validator that are registered on it, and what they would be told."""

    def __init__(self, folder: Path) -> None:
        self.stage = Stage(folder, [Actor(MINER, Kind.HONEST)], block_seconds=0.25)
        self.auto_update = False
        self._axon_port, self._ssh_port = free_ports(2)

    def open(self) -> None:
        self.stage.config_path.write_text(easy_config(), encoding="utf-8")
        self.stage.start_chain()
        for name in (VALIDATOR, MINER):
            self.stage.register(name)

    def options(self, name: str) -> list[str]:
        stage = self.stage
        return [
            *("--subtensor.chain_endpoint", stage.node.endpoint, "--wallet.path", str(stage.folder / "wallets")),
            *("--wallet.name", name, "--database", str(stage.database_path(name))),
        ]

    def neuron_options(self, name: str) -> list[str]:
        return [*self.options(name), *([] if self.auto_update else ["--no-auto_update"])]

    @property
    def miner_options(self) -> list[str]:
        return [
            *self.neuron_options(MINER),
            *("--axon.ip", ADDRESS, "--axon.external_ip", ADDRESS),
            *("--axon.port", str(self._axon_port), "--ssh.port", str(self._ssh_port)),
            *("--miner.runtime", "local", "--miner.cpu.devices", "1"),
        ]

    @property
    def validator_options(self) -> list[str]:
        return [
            *self.neuron_options(VALIDATOR),
            *("--config.file", str(self.stage.config_path)),
            *("--validator.specs.interval", "10", "--validator.proof.interval", "240"),
        ]

    def register_py(self, *arguments: str) -> str:
        command = [sys.executable, str(ROOT / "neurons" / "register.py"), *arguments[:1], *self.options(VALIDATOR)]
        done = subprocess.run([*command, *arguments[1:]], capture_output=True, text=True, timeout=SECONDS)
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

    def is_rented(self) -> bool:
        """Whether the validator pays the miner for a rental."""
        row = self.row()
        return row is not None and row.allocated and row.score > 0


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind((ADDRESS, 0))
        return [int(probe.getsockname()[1]) for probe in sockets]


def until(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.2)
