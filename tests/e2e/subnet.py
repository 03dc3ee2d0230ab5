"""A whole subnet of processes for a test, and what a test may ask of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from compute.base.store import Database
from compute.demo.cast import Actor
from compute.demo.stage import NETUID, VALIDATOR, Stage
from compute.localnet.settings import RETRIES
from compute.testing.rates import easy_config
from compute.validator.show import MinerRow, miner_rows
from compute.validator.store import FactStore, WeightsState
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
_PAUSE_SECONDS = 0.2
"""Each look takes a processor from those that are looked at."""


class Subnet(Stage):
    """The demo's stage, with rates that every machine reaches, seen through the validator's database."""

    retries = RETRIES

    def write_config(self) -> None:
        """Write what validators pay by."""
        self.config_path.write_text(easy_config(retries=self.retries), encoding="utf-8")

    def prepare(self) -> None:
        """Write the configuration, and start the chain, on which everybody is registered."""
        self.write_config()
        self.start_chain()
        for name in (VALIDATOR, *(actor.name for actor in self.actors)):
            self.register(name)

    def start(self) -> None:
        """Prepare, and start all miners and the validator."""
        self.prepare()
        for actor in self.actors:
            self.start_miner(actor)
        self.start_validator()

    def look(self, at: Callable[[FactStore], Any], validator: str = VALIDATOR) -> Any:
        """What ``at`` finds in a validator's database."""
        with closing(Database(self.database_path(validator))) as database:
            return at(FactStore(database))

    def rows(self, validator: str = VALIDATOR) -> dict[str, MinerRow]:
        """What a validator knows of each miner, by the miner's name."""
        names = {self.hotkey(actor.name): actor.name for actor in self.actors}
        return {names[row.hotkey]: row for row in self.look(miner_rows, validator) if row.hotkey in names}

    def confirmed_block(self) -> int:
        """The block of the last weights that the validator read back from the chain."""
        entry = self.look(lambda facts: facts.last_weights((WeightsState.CONFIRMED,)))
        return entry.block if entry is not None else -1

    def serves(self, actor: Actor) -> bool:
        """Whether a miner's axon is on the chain."""
        neurons = self.node.client.snapshot(NETUID)["subnets"][str(NETUID)]["neurons"]
        return any(neuron["hotkey"] == self.hotkey(actor.name) and neuron["axon"]["port"] for neuron in neurons)

    def renter_options(self) -> list[str]:
        """What ``register.py`` must be told: the renter has the validator's wallet and database."""
        return [
            *("--netuid", str(NETUID), "--subtensor.chain_endpoint", self.node.endpoint),
            *("--wallet.path", str(self.folder / "wallets"), "--wallet.name", VALIDATOR),
            *("--database", str(self.database_path(VALIDATOR))),
        ]

    def rent(self, command: str, *words: str) -> str:
        """Run ``register.py`` to its end; returns what it printed."""
        program = [sys.executable, str(ROOT / "neurons" / "register.py"), command, *self.renter_options(), *words]
        done = subprocess.run(program, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command} {words}: {done.stderr}"
        return done.stdout

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait; fails at once if a process has ended that should not have."""

        def holds() -> bool:
            fallen = self.fallen()
            assert fallen is None, f"{fallen} has ended: {self.log_tail(fallen or '')}"
            return bool(condition())

        until(
            holds,
            what,
            dump=lambda: {name: self.log_tail(name) for name in self.processes},
            pause_seconds=_PAUSE_SECONDS,
        )
