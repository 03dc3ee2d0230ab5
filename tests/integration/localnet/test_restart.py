"""A node that stops or is killed goes on as the same chain."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import bittensor
import pytest

from compute.base.errors import ChainUnreachable
from compute.localnet.client import LocalnetClient
from compute.localnet.process import NodeProcess
from tests.waiting import DEADLINE_SECONDS, until

TAO = 10**9
ALICE = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_restarted_node_is_the_same_chain(tmp_path: Path, how: str, hold_port) -> None:
    node = NodeProcess(block_time_seconds=0.1, state=tmp_path / "chain.db", port=hold_port())
    with node:
        node.client.faucet(ALICE, 5 * TAO)
        node.client.set_hyperparameter(27, "tempo", 33)
        genesis, endpoint = node.greeting["genesis"], node.endpoint
        before = node.client.snapshot()
        getattr(node, how)()
        with pytest.raises(ChainUnreachable):
            LocalnetClient(endpoint, timeout_seconds=DEADLINE_SECONDS).snapshot()

        node.start()

        assert node.endpoint == endpoint
        assert node.greeting["genesis"] == genesis
        assert node.greeting["block"] >= before["block"]
        assert node.client.call("chain_getBlockHash", before["block"]) == before["hash"]
        after = node.client.snapshot()
        assert after["accounts"] == before["accounts"]
        assert after["subnets"]["27"]["hyperparameters"]["tempo"] == 33
        until(lambda: node.client.snapshot()["block"] > after["block"], "the next block")


def test_an_sdk_client_lives_through_a_restart(tmp_path: Path, make_wallet, hold_port) -> None:
    node = NodeProcess(block_time_seconds=0.1, state=tmp_path / "chain.db", port=hold_port())
    with node:
        wallet = make_wallet("miner")
        node.client.faucet(wallet.coldkeypub.ss58_address, 10 * TAO)
        subtensor = bittensor.Subtensor(network=node.endpoint)
        assert subtensor.burned_register(wallet, netuid=27).success
        node.kill()
        node.start()
        uid = subtensor.get_uid_for_hotkey_on_subnet(wallet.hotkey.ss58_address, 27)
        assert uid == 0
        axon = bittensor.Axon(wallet=wallet, ip="127.0.0.2", port=18091, external_ip="127.0.0.2", external_port=18091)
        assert subtensor.serve_axon(netuid=27, axon=axon).success
        subtensor.close()


def test_being_killed_in_the_middle_of_anything_loses_one_block_at_most(tmp_path: Path, hold_port) -> None:
    node = NodeProcess(block_time_seconds=0, state=tmp_path / "chain.db", port=hold_port())
    with node:
        for _ in range(3):
            node.client.advance(50)
            reached = node.client.advance(1)
            os.kill(node.pid, signal.SIGKILL)
            node.kill()
            node.start()
            assert node.greeting["block"] == reached


def test_blocks_are_made_on_request_only_without_a_block_time(tmp_path: Path) -> None:
    with NodeProcess(block_time_seconds=0) as node:
        assert node.client.advance(2) == 2
        assert node.client.snapshot()["block"] == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_node_cleanly(number: signal.Signals) -> None:
    with NodeProcess() as node:
        process = node._process
        os.kill(node.pid, number)
        assert process.wait(DEADLINE_SECONDS) == 0
        assert "Traceback" not in node.log()


def test_the_first_line_on_stdout_says_where_as_json() -> None:
    command = [sys.executable, "-m", "compute.localnet", "node", "--port", "0", "--block-time", "0", "--netuid", "5"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        line = json.loads(process.stdout.readline())
        process.terminate()
        assert process.stdout.read() == ""
    assert line["netuid"] == 5
    assert line["block"] == 0
    host, port = line["endpoint"].removeprefix("ws://").split(":")
    assert (host, process.returncode) == ("127.0.0.1", 0)
    assert 1024 <= int(port) <= 65535


def test_a_node_that_cannot_start_raises_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(ChainUnreachable, match="tempo is an integer from 1"):
        NodeProcess(options=["--tempo", "0"]).start()
    state = tmp_path / "chain.db"
    with NodeProcess(state=state) as node:
        node.client.advance(1)
        with pytest.raises(ChainUnreachable, match="another node has"):
            NodeProcess(state=state).start()
        with pytest.raises(ChainUnreachable, match="address already in use"):
            NodeProcess(port=int(node.endpoint.rpartition(":")[2])).start()
    with pytest.raises(ChainUnreachable, match="has subnet 27, not 28"):
        NodeProcess(state=state, netuid=28).start()
