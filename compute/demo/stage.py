"""The processes of the demo, in a folder of their own, and everything that they need to know of each other."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from compute.base.errors import ConfigError, RuntimeFailure
from compute.demo.cast import Actor, Kind
from compute.localnet.newcomer import make_wallet, register
from compute.localnet.process import NodeProcess
from compute.miner.hardware import docker_host
from compute.miner.options import MinerOptions
from compute.miner.runtimes.base import Runtime
from compute.miner.runtimes.docker import DockerRuntime
from compute.miner.runtimes.docker_engine import DockerEngine
from compute.miner.runtimes.docker_options import DockerSettings
from compute.miner.runtimes.local import LocalRuntime

NETUID = 27
VALIDATOR = "validator"
_ROOT = Path(__file__).resolve().parents[2]
_STAKE_ALPHA = 10_000
_STOP_SECONDS = 40.0
"""As ``kill_timeout`` in ecosystem.config.js: a miner waits for what it starts or stops just now."""
_LOG_TAIL = 2000


class Stage:
    """Starts and stops the processes. Blocking; use in a thread. ``close`` ends everything that was begun.

    With ``docker`` the honest miners rent out containers. All share one engine: each knows its own by its hotkey.
    """

    def __init__(self, folder: Path, actors: Sequence[Actor], *, block_seconds: float, docker: bool = False) -> None:
        self.folder = folder
        self.actors = list(actors)
        self.docker = docker
        self.addresses = {actor.name: f"127.0.0.{2 + number}" for number, actor in enumerate(actors)}
        self.wallets: dict[str, Any] = {}
        self.node = NodeProcess(block_time_seconds=block_seconds, netuid=NETUID, state=folder / "chain.db")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def config_path(self) -> Path:
        """The configuration that the validator pays by."""
        return self.folder / "config.yaml"

    def database_path(self, name: str) -> Path:
        """The database of a neuron; the renter shares the validator's."""
        return self.folder / f"{name}.db"

    def log_path(self, name: str) -> Path:
        """What a neuron logs."""
        return self.folder / f"{name}.log"

    def hotkey(self, name: str) -> str:
        """The ss58 address of a neuron's hotkey."""
        return str(self.wallets[name].hotkey.ss58_address)

    def check_docker(self) -> None:
        """Return if containers can be started here.

        Raises:
            ConfigError: there is no engine, or no image; the message says what to do.
        """
        with contextlib.closing(_docker_runtime("nobody")) as runtime:
            try:
                runtime.check()
                runtime.remove_network()
            except RuntimeFailure as error:
                raise ConfigError(str(error)) from error

    def start_chain(self) -> None:
        """Start the chain.

        Raises:
            ChainUnreachable: it does not come up.
        """
        self.node.start()

    def register(self, name: str) -> None:
        """Make a throw-away wallet and register it; the validator gets stake as well.

        Raises:
            ComputeError: the chain refuses.
        """
        wallet = self.wallets[name] = make_wallet(name, "default", str(self.folder / "wallets"))
        register(self.node.endpoint, NETUID, wallet, stake_alpha=_STAKE_ALPHA if name == VALIDATOR else 0)

    def miner_options(self, actor: Actor) -> list[str]:
        """The command line of a miner, at an address of its own and at ports that are free now."""
        address = self.addresses[actor.name]
        return [
            *self._shared_options(actor.name),
            *("--axon.ip", address, "--axon.external_ip", address, "--axon.port", str(_free_port(address))),
            *("--miner.runtime", "docker" if self._in_containers(actor) else "local"),
            *("--miner.cpu.devices", str(actor.devices)),
            *("--ssh.port", str(_free_port(address))),
        ]

    def start_miner(self, actor: Actor) -> None:
        """Start a miner as a process of its own."""
        options = self.miner_options(actor)
        if actor.kind is Kind.HONEST:
            self._start(actor.name, [sys.executable, str(_ROOT / "neurons" / "miner.py"), *options])
        else:
            program = [sys.executable, "-m", "compute.demo.dishonest", actor.kind.value]
            self._start(actor.name, [*program, *options])

    def start_validator(self) -> None:
        """Start the validator as a process of its own."""
        options = [
            *self._shared_options(VALIDATOR),
            *("--config.file", str(self.config_path), "--axon.external_ip", "127.0.0.1"),
            *("--validator.specs.interval", "10", "--validator.proof.interval", "240"),
        ]
        self._start(VALIDATOR, [sys.executable, str(_ROOT / "neurons" / "validator.py"), *options])

    def fallen(self) -> str | None:
        """The name of a process that ended and was not meant to, or None."""
        mortal = {actor.name for actor in self.actors if actor.kind is Kind.DYING}
        for name, process in self.processes.items():
            if process.poll() is not None and name not in mortal:
                return name
        return None

    def log_tail(self, name: str) -> str:
        """The end of a neuron's log."""
        with open(self.log_path(name), "rb") as log:
            log.seek(max(0, os.path.getsize(self.log_path(name)) - _LOG_TAIL))
            return log.read().decode(errors="replace")

    def close(self) -> None:
        """End every process that was started, leases included. Idempotent.

        Raises:
            RuntimeFailure: containers are left, since the engine has gone; all the rest has ended.
        """
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.node.close()
        # A miner leaves its lease running when it ends; on a stage that is struck, nobody comes back for it.
        with contextlib.ExitStack() as all_of_them:
            for runtime in self._runtimes():
                all_of_them.callback(_clear, runtime)

    def _in_containers(self, actor: Actor) -> bool:
        return self.docker and actor.kind is Kind.HONEST

    def _runtimes(self) -> Iterator[Runtime]:
        """What leases may still run in, of every miner that has a wallet."""
        for actor in self.actors:
            if actor.name not in self.wallets:
                continue
            if self._in_containers(actor):
                yield _docker_runtime(self.hotkey(actor.name))
            else:
                leases = self.database_path(actor.name).with_suffix(".data") / "leases"
                yield LocalRuntime(leases, chain_endpoint="ws://127.0.0.1")

    def _shared_options(self, name: str) -> list[str]:
        return [
            *("--netuid", str(NETUID), "--subtensor.chain_endpoint", self.node.endpoint),
            *("--wallet.path", str(self.folder / "wallets"), "--wallet.name", name, "--wallet.hotkey", "default"),
            *("--database", str(self.database_path(name)), "--no-auto_update"),
        ]

    def _start(self, name: str, command: list[str]) -> None:
        with open(self.log_path(name), "wb") as log:
            self.processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,  # Ctrl-C is for the demo, which ends its processes in its own order
            )


def _docker_runtime(miner: str) -> DockerRuntime:
    return DockerRuntime(DockerSettings(miner=miner, image=MinerOptions.image), DockerEngine(docker_host()))


def _clear(runtime: Runtime) -> None:
    try:
        for status in runtime.list():
            runtime.stop(status.lease_id)
        if isinstance(runtime, DockerRuntime):
            runtime.remove_network()
    finally:
        if isinstance(runtime, DockerRuntime):
            runtime.close()


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
