"""``python -m compute.localnet register``: a wallet from nothing to a uid, by the command that the manual gives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from compute.localnet import __main__ as localnet
from compute.localnet.process import NodeProcess
from tests.waiting import DEADLINE_SECONDS


def register(endpoint: str, path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "compute.localnet", "register", "--endpoint", endpoint, "--wallet.path", str(path)]
    return subprocess.run([*command, "--json", *options], capture_output=True, text=True, timeout=DEADLINE_SECONDS)


def in_process(capsys: pytest.CaptureFixture[str], endpoint: str, path: Path, *options: str) -> tuple[int, str, str]:
    """The same without the seconds of a process."""
    code = localnet.main(["register", "--endpoint", endpoint, "--wallet.path", str(path), "--json", *options])
    return (code, *capsys.readouterr())


def test_a_newcomer_is_registered_once_and_staked_to_each_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with NodeProcess() as node:
        done = register(node.endpoint, tmp_path, "--wallet.name", "validator", "--stake", "2000")
        assert done.returncode == 0, done.stderr
        first = json.loads(done.stdout)
        _, again, _ = in_process(capsys, node.endpoint, tmp_path, "--wallet.name", "validator", "--stake", "10")
        assert json.loads(again) == first
        miner = json.loads(in_process(capsys, node.endpoint, tmp_path, "--wallet.name", "miner")[1])
        assert miner["uid"] == first["uid"] + 1
        neurons = node.client.snapshot(node.netuid)["subnets"][str(node.netuid)]["neurons"]
        assert [neuron["hotkey"] for neuron in neurons] == [first["hotkey"], miner["hotkey"]]
        assert neurons[0]["validator_permit"]


def test_no_localnet_is_one_line_and_not_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, said = in_process(capsys, "ws://127.0.0.1:9", tmp_path, "--wallet.name", "miner")
    assert code == 1
    assert "no localnet answers" in said
    assert said.count("\n") == 1
