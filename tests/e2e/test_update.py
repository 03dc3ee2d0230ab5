"""A miner and a validator that run from one clone, a rental, and what the clone's remote has for them: a good release,
then one that passes its check and does not start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from compute.base.store import Database
from compute.demo.cast import Actor, Kind
from compute.demo.stage import VALIDATOR, Stage
from compute.localnet.settings import config_text
from compute.miner.leases.states import LeaseState
from compute.miner.leases.store import LeaseStore
from compute.proof.calibrate import calibrate_cpu
from compute.validator.show import miner_rows
from compute.validator.store import FactStore, WeightsState
from compute.wire.keys import SecretBox

from . import waiting
from .releases import Releases, git

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
_SECONDS = 200.0


class Updating(Stage):
    """The neurons run from a clone, under its remote's care."""

    def __init__(self, folder: Path, actors: list[Actor]) -> None:
        super().__init__(folder, actors, block_seconds=0.25)
        self.releases = Releases(folder)

    def log(self, name: str) -> str:
        return self.log_path(name).read_text(encoding="utf-8")

    def starts(self, name: str, version: str) -> int:
        role = "validator" if name == VALIDATOR else "miner"
        return self.log(name).count(f"{role} starts version={version}")

    def _shared_options(self, name: str) -> list[str]:
        return [option for option in super()._shared_options(name) if option != "--no-auto_update"]

    def _start(self, name: str, command: list[str]) -> None:
        super()._start(name, [word.replace(f"{ROOT}/neurons", f"{self.releases.clone}/neurons") for word in command])


class Subnet:
    """A validator and two miners of one device each, one of them rented."""

    def __init__(self, stage: Updating) -> None:
        self.stage = stage

    def scores(self) -> dict[str, tuple[float, bool]]:
        database = Database(self.stage.database_path(VALIDATOR))
        try:
            names = {self.stage.hotkey(actor.name): actor.name for actor in self.stage.actors}
            return {names[row.hotkey]: (round(row.weight, 2), row.allocated) for row in miner_rows(FactStore(database))}
        finally:
            database.close()

    def confirmed_block(self) -> int:
        database = Database(self.stage.database_path(VALIDATOR))
        try:
            entry = FactStore(database).last_weights((WeightsState.CONFIRMED,))
        finally:
            database.close()
        return entry.block if entry is not None else -1

    def lease(self, name: str) -> tuple[str, float] | None:
        database = Database(self.stage.database_path(name))
        try:
            # The key does not matter to who reads no secrets.
            holder = LeaseStore(database, SecretBox(bytes(32))).holder()
        finally:
            database.close()
        return (holder.lease_id, holder.ends_at) if holder and holder.state is LeaseState.ACTIVE else None

    def register_py(self, *words: str) -> str:
        wallets = str(self.stage.folder / "wallets")
        chain = ["--subtensor.chain_endpoint", self.stage.node.endpoint, "--wallet.path", wallets]
        own = ["--wallet.name", VALIDATOR, "--database", str(self.stage.database_path(VALIDATOR))]
        command, separator, rest = (list(words), [], []) if "--" not in words else split(words)
        argv = [sys.executable, str(ROOT / "neurons" / "register.py"), *command, *chain, *own, *separator, *rest]
        done = subprocess.run(argv, cwd=self.stage.folder, capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        def seen() -> object:
            return what, {name: self.stage.log_tail(name) for name in self.stage.processes}

        await waiting.until(self.stage, condition, _SECONDS, seen)


def split(words: tuple[str, ...]) -> tuple[list[str], list[str], list[str]]:
    at = words.index("--")
    return list(words[:at]), ["--"], list(words[at + 1 :])


@pytest.fixture
async def subnet(tmp_path: Path) -> AsyncIterator[Subnet]:
    stage = Updating(tmp_path, [Actor("one", Kind.HONEST), Actor("two", Kind.HONEST)])
    try:
        stage.config_path.write_text(config_text(await calibrate_cpu(runs=1)), encoding="utf-8")
        stage.start_chain()
        for name in (VALIDATOR, "one", "two"):
            stage.register(name)
        for actor in stage.actors:
            stage.start_miner(actor)
        stage.start_validator()
        yield Subnet(stage)
    finally:
        stage.close()


async def test_updates_good_and_broken_leave_leases_scores_and_weights_as_they_should(subnet: Subnet) -> None:
    stage, releases = subnet.stage, subnet.stage.releases
    pids = {name: process.pid for name, process in stage.processes.items()}
    first = releases.taken()
    await subnet.until(lambda: subnet.scores() == {"one": (0.5, False), "two": (0.5, False)}, "both are paid")
    hotkey = stage.hotkey("two")
    subnet.register_py("allocate-hotkey", hotkey, "--days", "1", "--name", "mine")
    lease = subnet.lease("two")
    assert lease is not None
    await subnet.until(lambda: subnet.scores() == {"one": (0.33, False), "two": (0.67, True)}, "a rental counts double")
    # Something of the customer's that must live on.
    worker = subnet.register_py("exec", "mine", "--", "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!")

    releases.number("2.0.0", "2.0.1")
    good = releases.publish()
    await subnet.until(
        lambda: all("the new commit is up and stays" in stage.log(name) for name in pids), "all run the good release"
    )
    assert {name: stage.starts(name, "2.0.1") for name in pids} == dict.fromkeys(pids, 1)
    assert releases.taken() == good != first
    before = subnet.confirmed_block()
    await subnet.until(lambda: subnet.confirmed_block() > before, "the new release sets weights")
    await subnet.until(lambda: subnet.scores() == {"one": (0.33, False), "two": (0.67, True)}, "the same scores")
    assert subnet.lease("two") == lease

    releases.number("2.0.1", "2.0.2")
    releases.start_with("raise OSError")
    broken = releases.publish()
    # One of the three tries it, and the others learn from that.
    await subnet.until(lambda: sum(stage.starts(name, "2.0.1") for name in pids) == 4, "the good release is back")
    await subnet.until(lambda: all("failed_before" in stage.log(name) for name in pids), "the broken one is left alone")
    assert releases.taken() == good != broken
    assert git(releases.clone, "status", "--porcelain") == ""
    before = subnet.confirmed_block()
    await subnet.until(lambda: subnet.confirmed_block() > before, "the good release sets weights")
    # A block here is a 48th of a real one: a machine that three starts at once kept busy may have lost a proof or two.
    await subnet.until(lambda: subnet.scores() == {"one": (0.33, False), "two": (0.67, True)}, "the same scores again")

    assert {name: process.pid for name, process in stage.processes.items()} == pids
    assert subnet.lease("two") == lease
    assert subnet.register_py("exec", "mine", "--", "kill", "-0", worker) == ""
    subnet.register_py("deallocate", "mine", "--yes")
