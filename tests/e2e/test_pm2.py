"""The neurons under the real pm2. What the file tells it stands in ``tests/unit/scripts/test_ecosystem.py``."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from compute.demo.cast import Actor, Kind
from tests.waiting import until

from .conftest import MakePm2, Pm2
from .releases import Releases, git
from .subnet import Subnet
from .under_pm2 import MINER, VALIDATOR
from .under_pm2 import Subnet as Updating
from .under_pm2 import until as until_within

pytestmark = pytest.mark.e2e


def test_a_lease_outlives_what_pm2_does_to_its_miner_and_a_misconfiguration_does_not_loop(
    make_pm2: MakePm2, tmp_path: Path
) -> None:
    miner = Actor(MINER, Kind.HONEST)
    subnet = Subnet(tmp_path, [miner], block_seconds=0.25)
    try:
        subnet.prepare()
        # A wrong command line: nothing that a restart would mend.
        pm2 = make_pm2(MINER_OPTIONS=" ".join(subnet.miner_options(miner)), VALIDATOR_OPTIONS="--netuid many")
        pm2("start", "ecosystem.config.js")
        until(lambda: subnet.serves(miner), "the miner is on the chain", dump=lambda: pm2.journal, pause_seconds=0.2)
        subnet.rent("allocate-hotkey", subnet.hotkey(MINER), "--days", "1", "--name", "mine")
        machine = subnet.rent("exec", "mine", "--", "cat", "/proc/self/environ")
        assert "COMPUTE_LEASE" in machine
        for number, act in enumerate((restarted, killed), start=1):
            act(pm2)
            # The very same machine: the host key is pinned, and the process is marked with the lease's id.
            assert subnet.rent("exec", "mine", "--", "cat", "/proc/self/environ") == machine
            until(lambda number=number: pm2.state(MINER) == ("online", number), "the miner is up again")
        pm2("stop", MINER)
        assert pm2.state(MINER) == ("stopped", 2)
        assert subnet.rent("exec", "mine", "--", "cat", "/proc/self/environ") == machine
        assert pm2.journal.count("via signal [SIGKILL]") == 1, "all other ends were clean"
        assert "Traceback" not in pm2.log(MINER)

        # The miner has been started twice meanwhile. pm2 calls it waiting, but it waits for nothing.
        assert pm2.state(VALIDATOR) == ("waiting restart", 0)
        assert pm2.processes()[VALIDATOR]["pid"] == 0
        assert len(re.findall(r"exited with code \[2\]", pm2.journal)) == 1
        # Mended, it is started again by the file, which reads its variables anew.
        pm2.environment["VALIDATOR_OPTIONS"] = "--netuid mended"
        pm2("restart", "ecosystem.config.js", "--only", VALIDATOR)
        until(lambda: "'mended'" in pm2.log(VALIDATOR), "the new options are used", dump=lambda: pm2.journal)
    finally:
        subnet.close()


def restarted(pm2: Pm2) -> None:
    pm2("restart", MINER)


def killed(pm2: Pm2) -> None:
    pid = pm2.pid(MINER)
    assert pid > 0, "0 would be this process and all beside it"
    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def updating(tmp_path: Path) -> Iterator[Updating]:
    subnet = Updating(tmp_path)
    try:
        subnet.open()
        yield subnet
    finally:
        subnet.stage.close()


@pytest.mark.long
def test_pm2_does_not_see_an_update_and_brings_a_release_that_dies_to_its_end(
    updating: Updating, make_pm2: MakePm2, tmp_path: Path
) -> None:
    releases = Releases(tmp_path)
    updating.auto_update = True
    pm2 = make_pm2(
        releases.clone,
        MINER_OPTIONS=" ".join(updating.miner_options),
        VALIDATOR_OPTIONS=" ".join(updating.validator_options),
    )
    pm2("start", "ecosystem.config.js")
    until_within(updating.is_paid, "weights on the chain")
    updating.register_py("allocate", "--days", "1", "--name", "mine")
    machine = updating.register_py("exec", "mine", "--", "cat", "/proc/self/environ")
    until_within(updating.is_rented, "the validator's score of the rental")
    neurons = (MINER, VALIDATOR)
    started = {name: pm2.pid(name) for name in neurons}

    def all_is_well() -> None:
        block = updating.confirmed_block()
        until_within(lambda: updating.confirmed_block() > block, "the next weights")
        until_within(updating.is_rented, "the score of the rental")
        assert updating.is_paid()
        assert updating.register_py("exec", "mine", "--", "cat", "/proc/self/environ") == machine

    releases.number("2.0.0", "2.0.1")
    good = releases.publish()
    until_within(lambda: all("the new commit is up and stays" in pm2.log(name) for name in neurons), "both run it", 300)
    assert {name: pm2.pid(name) for name in neurons} == started
    assert releases.taken() == good
    all_is_well()

    releases.number("2.0.1", "2.0.2")
    # No handler sees this one: it is pm2 that starts the neuron again.
    releases.start_with("__import__('os').kill(__import__('os').getpid(), 9)")
    releases.publish()
    until_within(lambda: all("failed_before" in pm2.log(name) for name in neurons), "the broken one is left alone", 300)
    assert releases.taken() == good
    assert git(releases.clone, "status", "--porcelain") == ""
    assert pm2.journal.count("via signal [SIGKILL]") == 3
    assert sorted(pm2.state(name) for name in neurons) == [("online", 0), ("online", 3)]
    all_is_well()
    for name in neurons:
        assert re.findall(r"starts version=(\S+)", pm2.log(name))[-1] == "2.0.1"
    updating.register_py("deallocate", "mine", "--yes")
    pm2("stop", "all")
