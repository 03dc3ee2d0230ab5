"""A machine that becomes another one while it is rented: the lease ends, the renter's operator is told why, and what is
left is proven at once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compute.base.reasons import ProofReason
from compute.base.store import Database
from compute.demo.cast import Actor, Kind
from compute.demo.stage import NETUID, VALIDATOR, Stage
from compute.localnet.settings import config_text
from compute.proof.calibrate import calibrate_cpu
from compute.validator.show import MinerRow, miner_rows
from compute.validator.store import FactStore

from . import waiting

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
MINER = Actor("one", Kind.HONEST, devices=2)
_SECONDS = 180.0


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    # Nobody listens there: the notice waits in the outbox, where the test reads it.
    monkeypatch.setenv("DEALLOCATION_NOTIFY_URL", "http://127.0.0.1:9/")
    stage = Stage(tmp_path, [MINER], block_seconds=0.25)
    try:
        stage.config_path.write_text(config_text(await calibrate_cpu(runs=1)), encoding="utf-8")
        stage.start_chain()
        for name in (VALIDATOR, MINER.name):
            stage.register(name)
        stage.start_miner(MINER)
        stage.start_validator()
        yield stage
    finally:
        stage.close()


def validators_database(stage: Stage) -> closing[Database]:
    return closing(Database(stage.database_path(VALIDATOR)))


def row(stage: Stage) -> MinerRow | None:
    with validators_database(stage) as database:
        return next(iter(miner_rows(FactStore(database))), None)


def notices(stage: Stage) -> list[str]:
    with validators_database(stage) as database:
        return [found["details"] for found in database.query("SELECT details FROM notice WHERE kind = 'DEALLOCATION'")]


def is_known_as_leased(stage: Stage) -> bool:
    """Whether the validator has seen what the machine is since it is leased."""
    with validators_database(stage) as database:
        return bool(FactStore(database).leased())


def renter(stage: Stage, *words: str) -> Any:
    """What ``register.py`` prints with the validator's wallet and database."""
    wallet = ("--wallet.path", str(stage.folder / "wallets"), "--wallet.name", VALIDATOR, "--wallet.hotkey", "default")
    chain = ("--netuid", str(NETUID), "--subtensor.chain_endpoint", stage.node.endpoint)
    options = [*wallet, *chain, "--database", str(stage.database_path(VALIDATOR)), "--json"]
    program = [sys.executable, str(ROOT / "neurons" / "register.py"), *words, *options]
    done = subprocess.run(program, cwd=stage.folder, capture_output=True, text=True, timeout=_SECONDS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def until(stage: Stage, condition: Callable[[], bool]) -> None:
    await waiting.until(stage, condition, _SECONDS, lambda: f"{row(stage)}\n{stage.log_tail(VALIDATOR)}")


async def test_a_lease_whose_hardware_changes_ends(stage: Stage) -> None:
    def shows(reason: ProofReason, count: int, *, allocated: bool) -> bool:
        found = row(stage)
        return found is not None and (found.reason, found.count, found.allocated) == (reason, count, allocated)

    await until(stage, lambda: shows(ProofReason.OK, 2, allocated=False))
    renter(stage, "allocate", "--count", "1", "--days", "1", "--name", "rented")
    await until(stage, lambda: shows(ProofReason.RENTED, 2, allocated=True))
    await until(stage, lambda: is_known_as_leased(stage))

    miner = stage.processes.pop(MINER.name)
    miner.send_signal(signal.SIGTERM)
    miner.wait()
    stage.start_miner(replace(MINER, devices=1))

    await until(stage, lambda: bool(notices(stage)))
    (details,) = notices(stage)
    assert "its hardware has changed: GPUs were 2 x Localnet CPU core, now 1 x Localnet CPU core" in details
    assert renter(stage, "list") == []
    await until(stage, lambda: shows(ProofReason.OK, 1, allocated=False))
