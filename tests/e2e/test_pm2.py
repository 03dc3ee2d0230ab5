"""Both neurons under the real pm2, on a localnet: what pm2 does to them leaves leases, scores and weights alone."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from compute.localnet.newcomer import make_wallet, register
from compute.localnet.process import NodeProcess

from .conftest import MakePm2, Pm2
from .releases import Releases, git
from .under_pm2 import MINER, VALIDATOR, Subnet, until

pytestmark = pytest.mark.e2e


@pytest.fixture
def subnet(tmp_path: Path, make_pm2: MakePm2) -> Iterator[Subnet]:
    subnet = Subnet(tmp_path)
    try:
        subnet.open()
        yield subnet
    finally:
        subnet.stage.close()


def test_a_running_subnet_survives_what_pm2_does_to_it(subnet: Subnet, make_pm2: MakePm2) -> None:
    pm2 = make_pm2(MINER_OPTIONS=" ".join(subnet.miner_options), VALIDATOR_OPTIONS=" ".join(subnet.validator_options))
    pm2("start", "ecosystem.config.js")
    until(subnet.is_paid, "weights on the chain")
    subnet.register_py("allocate", "--days", "1", "--name", "mine")
    machine = subnet.register_py("exec", "mine", "--", "cat", "/proc/self/environ")
    assert "COMPUTE_LEASE" in machine
    until(subnet.is_rented, "the validator's score of the rental")

    def still_rented() -> None:
        # The very same machine: the host key is pinned, and the process is marked with the lease's id.
        assert subnet.register_py("exec", "mine", "--", "cat", "/proc/self/environ") == machine

    def still_validated(block: int) -> None:
        # Nothing began anew: the score is there before the first round is over, and weights go on.
        assert subnet.is_rented()
        until(lambda: subnet.confirmed_block() > block, "the next weights")
        assert subnet.is_rented()
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
    assert subnet.is_rented()

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


def test_pm2_does_not_see_an_update_and_brings_a_release_that_dies_to_its_end(
    subnet: Subnet, make_pm2: MakePm2, tmp_path: Path
) -> None:
    releases = Releases(tmp_path)
    subnet.auto_update = True
    pm2 = make_pm2(
        releases.clone,
        MINER_OPTIONS=" ".join(subnet.miner_options),
        VALIDATOR_OPTIONS=" ".join(subnet.validator_options),
    )
    pm2("start", "ecosystem.config.js")
    until(subnet.is_paid, "weights on the chain")
    subnet.register_py("allocate", "--days", "1", "--name", "mine")
    machine = subnet.register_py("exec", "mine", "--", "cat", "/proc/self/environ")
    until(subnet.is_rented, "the validator's score of the rental")
    neurons = (MINER, VALIDATOR)
    started = {name: pm2.pid(name) for name in neurons}

    def all_is_well() -> None:
        block = subnet.confirmed_block()
        until(lambda: subnet.confirmed_block() > block, "the next weights")
        until(subnet.is_rented, "the score of the rental")
        assert subnet.is_paid()
        assert subnet.register_py("exec", "mine", "--", "cat", "/proc/self/environ") == machine

    releases.number("2.0.0", "2.0.1")
    good = releases.publish()
    until(lambda: all("the new commit is up and stays" in pm2.log(name) for name in neurons), "both run it", 300)
    assert {name: pm2.pid(name) for name in neurons} == started
    assert releases.taken() == good
    all_is_well()

    releases.number("2.0.1", "2.0.2")
    # No handler sees this one: it is pm2 that starts the neuron again.
    releases.start_with("__import__('os').kill(__import__('os').getpid(), 9)")
    releases.publish()
    until(lambda: all("failed_before" in pm2.log(name) for name in neurons), "the broken one is left alone", 300)
    assert releases.taken() == good
    assert git(releases.clone, "status", "--porcelain") == ""
    assert pm2.journal.count("via signal [SIGKILL]") == 3
    assert sorted(pm2.state(name) for name in neurons) == [("online", 0), ("online", 3)]
    all_is_well()
    for name in neurons:
        assert re.findall(r"starts version=(\S+)", pm2.log(name))[-1] == "2.0.1"
    subnet.register_py("deallocate", "mine", "--yes")
    pm2("stop", "all")


def pm2_does(command: str) -> Callable[[Pm2, str], None]:
    def act(pm2: Pm2, name: str) -> None:
        pm2(command, name)

    return act


def killed(pm2: Pm2, name: str) -> None:
    pid = pm2.pid(name)
    assert pid > 0, "0 would be this process and all beside it"
    os.kill(pid, signal.SIGKILL)


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
        assert pm2.log(name).count(says) <= 1
    # pm2 may lose the last words of a process that has ended.
    assert any(says in pm2.log(name) for name in names)
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
