"""Neurons as processes of their own, on a chain of their own."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import bittensor
import psutil
import pytest
import yaml

from compute.localnet.newcomer import RAO, make_wallet
from compute.localnet.process import NodeProcess
from compute.proof.models import CPU_MODEL
from tests.waiting import DEADLINE_SECONDS, until

ROOT = Path(__file__).resolve().parents[3]
NETUID = 15
# Nobody else in this run has an address of this process: two miners at one address are a matter of their own.
_ADDRESSES = (f"127.{10 + os.getpid() % 240}.{number // 250}.{2 + number % 250}" for number in itertools.count())


class Neuron:
    """One neuron and its log."""

    def __init__(self, role: str, words: tuple[str, ...], folder: Path) -> None:
        self._log = folder / f"{role}.stderr"
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("BT_", "SQLITE_"))}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "neurons" / f"{role}.py"), *words],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**environment, "PYTHONPATH": str(ROOT)},
            )

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def events(self) -> dict[str, dict[str, Any]]:
        """The log of a neuron with ``--logging.json``, by the event."""
        lines = [json.loads(line) for line in self.log.splitlines() if line.endswith("}")]
        return {line["event"]: line for line in lines}

    def until(self, text: str) -> None:
        """Wait until the log has ``text``."""

        def is_there() -> bool:
            assert self.process.poll() is None or text in self.log, self.log
            return text in self.log

        until(is_there, f"{text!r} in the log", dump=lambda: self.log)

    def listens_on(self) -> set[tuple[str, int]]:
        """The addresses that the process listens on."""
        connections = psutil.Process(self.process.pid).net_connections("tcp")
        return {(item.laddr.ip, item.laddr.port) for item in connections if item.status == psutil.CONN_LISTEN}

    def end(self) -> int:
        """Stop it as pm2 would; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(DEADLINE_SECONDS)


class Subnet:
    """A chain, one connection to it, and people with wallets."""

    def __init__(self, node: NodeProcess, folder: Path) -> None:
        self.node = node
        self.folder = folder
        self.wallets: dict[str, Any] = {}
        self._subtensor = bittensor.Subtensor(network=node.endpoint)

    netuid = NETUID

    def close(self) -> None:
        self._subtensor.close()

    def free_address(self) -> tuple[str, int]:
        """An address of the loopback that no other test has, and a free port on it."""
        address = next(_ADDRESSES)
        with socket.socket() as probe:
            probe.bind((address, 0))
            return address, int(probe.getsockname()[1])

    def config(self, score: float) -> Path:
        """A configuration in which a core of this machine earns ``score``."""
        document = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
        tables = document["gpu_performance"]
        for table, value in (("GPU_TFLOPS_FP16", 0.001), ("GPU_VRAM_GB", 30.0), ("gpu_scores", score)):
            tables[table][CPU_MODEL] = value
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        return path

    def join(self, name: str, *, stake: int = 0) -> str:
        """Register somebody new, with stake in alpha; returns its hotkey."""
        wallet = self.wallets[name] = make_wallet(name, "key", str(self.folder / "wallets"))
        hotkey = str(wallet.hotkey.ss58_address)
        self.node.client.faucet(str(wallet.coldkeypub.ss58_address), 1000 * RAO)
        response = self._subtensor.burned_register(wallet, netuid=NETUID)
        assert response.success, response.message
        if stake:
            self.node.client.stake(NETUID, hotkey, stake * RAO)
        return hotkey

    def serve(self, name: str, at: tuple[str, int]) -> None:
        """Announce an axon for somebody who has none."""
        call = self._subtensor.substrate.compose_call(
            call_module="SubtensorModule",
            call_function="serve_axon",
            call_params={
                **{"netuid": NETUID, "version": 0, "ip": int.from_bytes(socket.inet_aton(at[0]), "big")},
                **{"port": at[1], "ip_type": 4, "protocol": 4, "placeholder1": 0, "placeholder2": 0},
            },
        )
        response = self._subtensor.sign_and_send_extrinsic(
            call=call, wallet=self.wallets[name], sign_with="hotkey", wait_for_inclusion=True
        )
        assert response.success, response.message

    def neuron(self, hotkey: str) -> dict[str, Any]:
        """What the chain has of somebody."""
        subnet = self.node.client.snapshot(NETUID)["subnets"][str(NETUID)]
        return next(neuron for neuron in subnet["neurons"] if neuron["hotkey"] == hotkey)

    def options(self, name: str) -> list[str]:
        """What every neuron on this subnet has to be told."""
        return [
            *("--netuid", str(NETUID), "--subtensor.chain_endpoint", self.node.endpoint),
            *("--wallet.path", str(self.folder / "wallets"), "--wallet.name", name, "--wallet.hotkey", "key"),
            *("--database", str(self.folder / f"{name}.db"), "--no-auto_update"),
        ]


Start = Callable[..., Neuron]


@pytest.fixture
def subnet(tmp_path: Path) -> Iterator[Subnet]:
    options = ["--tempo", "1000", "--weights-rate-limit", "1", "--set", "serving_rate_limit=0"]
    with NodeProcess(block_time_seconds=0.1, netuid=NETUID, options=options) as node:
        subnet = Subnet(node, tmp_path)
        yield subnet
        subnet.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts ``neurons/ROLE.py`` with the given words, and ends it with the test."""
    with ExitStack() as stack:

        def begin(role: str, *words: str) -> Neuron:
            neuron = Neuron(role, words, tmp_path)
            stack.callback(neuron.end)
            return neuron

        yield begin
