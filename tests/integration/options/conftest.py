"""Neurons as processes of their own, on a chain of their own, and a record of the options that they were given."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
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

ROOT = Path(__file__).resolve().parents[3]
NETUID = 15
_SECONDS = 180.0
# Nobody else in this run has an address of this process: two miners at one address are a matter of their own.
_ADDRESSES = (f"127.{10 + os.getpid() % 240}.{number // 250}.{2 + number % 250}" for number in itertools.count())
# The SDK and the libraries have something to say elsewhere: on finney, or when something fails.
_CHATTER = """\
import logging
import bittensor
connect = bittensor.Subtensor.__init__
def connect_and_say_so(self, *words, **options):
    connect(self, *words, **options)
    bittensor.logging.info("connected, says the SDK")
    logging.getLogger("websockets.client").info("connected, says a library")
bittensor.Subtensor.__init__ = connect_and_say_so
"""
# The real program, in a process where something else has happened before.
_AFTER = """\
import sys
exec(sys.argv[2])
from importlib import import_module
from compute.update.guard import leave
leave(import_module(f"neurons.{sys.argv[1]}").main(sys.argv[3:]))
"""


def until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.1)


class Neuron:
    """One neuron and its log."""

    def __init__(self, command: list[str], folder: Path, name: str) -> None:
        self._log = folder / f"{name}.stderr"
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("BT_", "SQLITE_"))}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                # A neuron that is aborted says what each of its threads does.
                env={**environment, "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"},
            )

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def events(self) -> list[dict[str, Any]]:
        """The log of a neuron with ``--logging.json``."""
        return [json.loads(line) for line in self.log.splitlines() if line.endswith("}")]

    def until(self, text: str) -> None:
        """Wait until the log has ``text``."""

        def is_there() -> bool:
            assert self.process.poll() is None or text in self.log, self.log
            return text in self.log

        until(is_there, f"{text!r} in: {self.log}")

    def outcome(self) -> tuple[int, str]:
        """Wait for its end; the exit code and stdout."""
        stdout, _ = self.process.communicate(timeout=_SECONDS)
        return self.process.returncode, stdout.decode()

    def listens_on(self) -> set[tuple[str, int]]:
        """The addresses that the process listens on."""
        connections = psutil.Process(self.process.pid).net_connections("tcp")
        return {(item.laddr.ip, item.laddr.port) for item in connections if item.status == psutil.CONN_LISTEN}

    def end(self) -> int:
        """Stop it as pm2 would; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.outcome()[0]

    def threads(self) -> str:
        """What each of its threads did when it was aborted, which this does."""
        self.process.send_signal(signal.SIGABRT)
        self.outcome()
        return self.log.rpartition("Fatal Python error: Aborted")[2]


class Subnet:
    """A chain, one connection to it, and people with wallets."""

    def __init__(self, node: NodeProcess, folder: Path) -> None:
        self.node = node
        self.folder = folder
        self.wallets: dict[str, Any] = {}
        self._subtensor = bittensor.Subtensor(network=node.endpoint)

    netuid = NETUID
    until = staticmethod(until)
    chatter = _CHATTER

    def exploits(self, name: str) -> str:
        """What puts somebody on the built-in list of exploiters, on which nobody is."""
        return f"import compute.chain.access_lists; compute.chain.access_lists.EXPLOITERS = ({self.hotkey(name)!r},)\n"

    def close(self) -> None:
        self._subtensor.close()

    def free_address(self) -> tuple[str, int]:
        """An address of the loopback that no other test has, and a free port on it."""
        address = next(_ADDRESSES)
        return address, self.free_port(address)

    def free_port(self, address: str = "127.0.0.1") -> int:
        with socket.socket() as probe:
            probe.bind((address, 0))
            return int(probe.getsockname()[1])

    def config(self, score: float, **proof: float) -> Path:
        """A configuration in which a core of this machine earns ``score``, and never has to prove itself anew."""
        document = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
        tables = document["gpu_performance"]
        for table, value in (("GPU_TFLOPS_FP16", 0.001), ("GPU_VRAM_GB", 30.0), ("gpu_scores", score)):
            tables[table][CPU_MODEL] = value
        document["merkle_proof"] |= {"max_random_delay": 0.0, **proof}
        path = self.folder / f"config-{score}.yaml"
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        return path

    def wallet(self, name: str) -> Any:
        """A wallet that is on no subnet."""
        self.wallets[name] = make_wallet(name, "key", str(self.folder / "wallets"))
        return self.wallets[name]

    def join(self, name: str, *, stake: int = 0, at: tuple[str, int] | None = None, version: int = 0) -> str:
        """Register somebody new, with stake in alpha; it serves ``at``, or publishes a version; returns its hotkey."""
        wallet = self.wallet(name)
        hotkey = str(wallet.hotkey.ss58_address)
        self.node.client.faucet(str(wallet.coldkeypub.ss58_address), 1000 * RAO)
        response = self._subtensor.burned_register(wallet, netuid=NETUID)
        assert response.success, response.message
        if stake:
            self.node.client.stake(NETUID, hotkey, stake * RAO)
        if at is not None:
            extra = {"protocol": 4, "placeholder1": 0, "placeholder2": 0}
            self._submit(wallet, "serve_axon", at, version, extra)
        elif version:
            self._submit(wallet, "serve_prometheus", ("192.0.2.1", 8091), version, {})
        return hotkey

    def _submit(self, wallet: Any, function: str, at: tuple[str, int], version: int, extra: dict[str, int]) -> None:
        address = int.from_bytes(socket.inet_aton(at[0]), "big")
        parameters = {"netuid": NETUID, "version": version, "ip": address, "port": at[1], "ip_type": 4, **extra}
        call = self._subtensor.substrate.compose_call(
            call_module="SubtensorModule", call_function=function, call_params=parameters
        )
        response = self._subtensor.sign_and_send_extrinsic(
            call=call, wallet=wallet, sign_with="hotkey", wait_for_inclusion=True, wait_for_finalization=False
        )
        assert response.success, response.message

    def hotkey(self, name: str) -> str:
        return str(self.wallets[name].hotkey.ss58_address)

    def coldkey(self, name: str) -> str:
        return str(self.wallets[name].coldkeypub.ss58_address)

    def neuron(self, name: str) -> dict[str, Any]:
        """What the chain has of somebody."""
        subnet = self.node.client.snapshot(NETUID)["subnets"][str(NETUID)]
        return next(neuron for neuron in subnet["neurons"] if neuron["hotkey"] == self.hotkey(name))

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
def start(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts ``neurons/ROLE.py`` with the given words (``after`` a piece of Python), and ends it with the test.

    A test that claims to show an option (``@pytest.mark.shows``) has to have given it to a neuron of that role.
    """
    given: dict[str, set[str]] = defaultdict(set)
    with ExitStack() as stack:

        def begin(role: str, *words: str, after: str = "") -> Neuron:
            names = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
            given[role] |= {name.removeprefix("no-") for name in names} | {"explain"} & set(words[:1])
            program = ["-c", _AFTER, role, after] if after else [str(ROOT / "neurons" / f"{role}.py")]
            neuron = Neuron([sys.executable, *program, *words], tmp_path, f"{role}-{len(names)}-{id(words)}")
            stack.callback(neuron.end)
            return neuron

        yield begin
    for marker in request.node.iter_markers("shows"):
        role, *names = marker.args
        assert set(names) <= given[role], f"claimed and never given to a {role}"
