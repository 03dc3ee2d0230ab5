"""SIGKILL to one process after the other: no other one ends, and the validator's next round shows the truth."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from compute.base.reasons import ProofReason
from compute.base.store import Database
from compute.demo.cast import Actor, Kind
from compute.demo.stage import VALIDATOR
from compute.miner.leases.states import LeaseState
from compute.miner.leases.store import LeaseStore
from compute.wire.keys import SecretBox

from .subnet import Subnet

pytestmark = [pytest.mark.e2e, pytest.mark.long]


class Killed(Subnet):
    """Two honest miners of one device each, a validator and a chain, each of which may be killed."""

    retries = 8

    def proven_at(self, name: str) -> float:
        """When the last verdict on it was found; 0 before the first."""
        row = self.rows().get(name)
        return row.proven_at or 0.0 if row is not None else 0.0

    def shows(self, **weights: float) -> bool:
        """Whether the validator shows these weights, and no others."""
        return {name: row.weight for name, row in self.rows().items()} == pytest.approx(weights)

    def reasons(self) -> dict[str, ProofReason]:
        return {name: row.reason for name, row in self.rows().items()}

    def is_leased(self, name: str) -> bool:
        with closing(Database(self.database_path(name))) as database:
            # The key does not matter to who reads no secrets.
            holder = LeaseStore(database, SecretBox(bytes(32))).holder()
        return holder is not None and holder.state is LeaseState.ACTIVE

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        process.wait()


@pytest.fixture
def subnet(tmp_path: Path) -> Iterator[Killed]:
    subnet = Killed(tmp_path, [Actor("one", Kind.HONEST), Actor("two", Kind.HONEST)], block_seconds=0.25)
    try:
        subnet.start()
        yield subnet
    finally:
        subnet.close()


def test_any_process_may_be_killed(subnet: Killed) -> None:
    one, two = subnet.actors

    # The validator in the middle of a proof: the next one does not wait for the lost one's lease.
    subnet.until(lambda: subnet.is_leased(one.name), "a proof of the first miner")
    subnet.kill(VALIDATOR)
    subnet.start_validator()

    # A miner in the middle of a proof, and back at once.
    subnet.until(lambda: subnet.is_leased(two.name), "a proof of the second miner")
    subnet.kill(two.name)
    killed_at = time.time()
    subnet.start_miner(two)
    subnet.until(lambda: subnet.proven_at(two.name) > killed_at and subnet.shows(one=0.5, two=0.5), "both are paid")

    # The validator at rest: a new one goes on where it was, and sets weights again.
    before = subnet.confirmed_block()
    subnet.kill(VALIDATOR)
    subnet.start_validator()
    subnet.until(lambda: subnet.confirmed_block() > before, "weights of the new validator")
    assert subnet.shows(one=0.5, two=0.5)

    # The chain: nobody else ends; when it is back, it is the same chain, and gets weights again.
    before = subnet.confirmed_block()
    subnet.node.kill()
    subnet.until(lambda: "no chain at" in subnet.log_tail(VALIDATOR), "the validator misses the chain")
    subnet.node.start()
    subnet.until(lambda: subnet.confirmed_block() > before, "weights on the chain that is back")
    assert subnet.shows(one=0.5, two=0.5)

    # A miner: its weight falls to nothing, the other's does not; when it is back, it is paid again.
    subnet.kill(two.name)

    def one_is_paid_alone() -> bool:
        return subnet.shows(one=1.0, two=0.0) and subnet.reasons() == {
            "one": ProofReason.OK,
            "two": ProofReason.UNREACHABLE,
        }

    subnet.until(one_is_paid_alone, "one is paid alone")
    subnet.start_miner(two)
    subnet.until(lambda: subnet.shows(one=0.5, two=0.5), "both are paid again")
