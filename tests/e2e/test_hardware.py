"""A machine that becomes another one while it is rented: the lease ends, the renter's operator is told why, and what is
left is proven at once."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from compute.base.reasons import ProofReason
from compute.base.store import Database
from compute.demo.cast import Actor, Kind
from compute.demo.stage import VALIDATOR
from compute.validator.store import FactStore

from .subnet import Subnet

pytestmark = [pytest.mark.e2e, pytest.mark.long]

MINER = Actor("one", Kind.HONEST, devices=2)


class Changing(Subnet):
    """One miner with two devices."""

    def shows(self, reason: ProofReason, count: int, *, allocated: bool) -> bool:
        row = self.rows().get(MINER.name)
        return row is not None and (row.reason, row.count, row.allocated) == (reason, count, allocated)

    def notices(self) -> list[str]:
        with closing(Database(self.database_path(VALIDATOR))) as database:
            found = database.query("SELECT details FROM notice WHERE kind = 'DEALLOCATION'")
            return [row["details"] for row in found]


def _has_a_baseline(facts: FactStore) -> bool:
    return any(row.specs for row in facts.rentals.rows().values())


@pytest.fixture
def subnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Changing]:
    # Nobody listens there: the notice waits in the outbox, where the test reads it.
    monkeypatch.setenv("DEALLOCATION_NOTIFY_URL", "http://127.0.0.1:9/")
    subnet = Changing(tmp_path, [MINER], block_seconds=0.25)
    try:
        subnet.start()
        yield subnet
    finally:
        subnet.close()


def test_a_lease_whose_hardware_changes_ends(subnet: Changing) -> None:
    subnet.until(lambda: subnet.shows(ProofReason.OK, 2, allocated=False), "both devices are proven")
    subnet.rent("allocate", "--count", "1", "--days", "1", "--name", "rented")
    subnet.until(lambda: subnet.shows(ProofReason.RENTED, 2, allocated=True), "the rental counts")
    subnet.until(lambda: subnet.look(_has_a_baseline), "what the machine is since it is leased")

    miner = subnet.processes.pop(MINER.name)
    miner.send_signal(signal.SIGTERM)
    miner.wait()
    subnet.start_miner(replace(MINER, devices=1))

    subnet.until(subnet.notices, "the end of the rental is told")
    (details,) = subnet.notices()
    assert "its hardware has changed: GPUs were 2 x Localnet CPU core, now 1 x Localnet CPU core" in details
    assert json.loads(subnet.rent("list", "--json")) == []
    subnet.until(lambda: subnet.shows(ProofReason.OK, 1, allocated=False), "what is left is proven")
