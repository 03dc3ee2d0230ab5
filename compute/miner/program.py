"""Builds a miner from its options and runs it."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

from compute import __version__, receipts
from compute.access import AccessPolicy
from compute.allocation.docker_engine import DockerEngine
from compute.allocation.docker_options import DockerSettings
from compute.allocation.docker_runtime import DockerRuntime
from compute.allocation.keys import SecretBox
from compute.allocation.leases import LeaseStore
from compute.allocation.local import LocalRuntime
from compute.allocation.manager import LeaseManager
from compute.allocation.runtime import LeaseKind, Runtime
from compute.allocation.service import AllocateService
from compute.chain import SubtensorChain
from compute.clock import SystemClock
from compute.config import load_config
from compute.duty import beside, repeat
from compute.hardware import Hardware
from compute.keypairs import verify_signature
from compute.miner.gate import MinerGate
from compute.miner.machine import docker_host, hardware_of, say_what_it_earns
from compute.miner.service import MinerService
from compute.neuron import load_wallet, run_neuron
from compute.options import MinerOptions, RuntimeKind
from compute.receipts import Receipt
from compute.signing import SignerMemory
from compute.store import Database, data_folder
from compute.telemetry import logs, metrics, wandb_run
from compute.telemetry.collectors import MinerCollector
from compute.telemetry.content import miner_content
from compute.transport.server import AxonServer
from compute.update.self_update import SelfUpdate
from compute.versions import REFRESH_SECONDS, VersionFile

logger = logging.getLogger(__name__)

_POLL_SECONDS = 6.0
_LOCAL_POLL_SECONDS = 0.5


def run(options: MinerOptions) -> int:
    """Run until stopped; returns the exit code."""

    update = SelfUpdate("miner", options, SystemClock())

    async def main() -> None:
        logs.configure(options.logging, program="miner")
        # The engine may be slow to answer, and a signal must not wait for it.
        await serve(options, hardware_of(options), await asyncio.to_thread(runtime_of, options), update)

    return update.finish(run_neuron(main))


async def serve(options: MinerOptions, hardware: Hardware, runtime: Runtime, update: SelfUpdate | None = None) -> None:
    """Serve ``hardware`` through ``runtime`` until cancelled.

    Raises:
        ComputeError: the neuron cannot start; the message says what to do.
        StartAnew: ``update`` has found a new commit to run.
    """
    config = load_config(options.config_file)
    wallet = load_wallet(options.wallet)
    own_hotkey = str(wallet.hotkey.ss58_address)
    details = {"version": __version__, "hotkey": own_hotkey, "netuid": options.netuid}
    logger.info("miner starts", extra=details)
    clock = SystemClock()
    database = Database(options.database)
    chain = SubtensorChain(options.subtensor.endpoint, options.netuid, wallet)
    leases = LeaseStore(database, SecretBox.from_key_file(key_file_of(options)))
    manager = LeaseManager(
        store=leases,
        runtime=runtime,
        specs=hardware.specs,
        clock=clock,
        ssh_port=options.ssh_port,
        stand_ready=True,
    )
    versions = VersionFile(options.version_file, database, clock)
    gate = MinerGate(AccessPolicy.from_options(options), clock, versions.of_validators)

    def check_receipt(receipt: Receipt) -> None:
        receipts.check(receipt, netuid=options.netuid, miner=own_hotkey, now=clock.now(), verify=verify_signature)

    async def content() -> dict[str, Any]:
        machine, lease = await asyncio.to_thread(hardware.specs), await manager.current()
        allocated = lease is not None and lease.kind is LeaseKind.CUSTOMER
        return miner_content(own_hotkey, options, machine, allocated=allocated)

    try:
        server = AxonServer(
            wallet,
            gate,
            ip=options.axon.ip,
            port=options.axon.port,
            external_ip=options.axon.external_ip,
            external_port=options.axon.external_port,
            max_workers=options.axon.max_workers,
        )
        say_what_it_earns(await asyncio.to_thread(hardware.specs), config)
        await manager.start()
        service = MinerService(
            hotkey=wallet.hotkey,
            own_hotkey=own_hotkey,
            chain=chain,
            server=server,
            gate=gate,
            allocation=AllocateService(manager, check_receipt, allow_dockerfile=options.allow_dockerfile),
            hardware=hardware,
            signers=SignerMemory(database),
            clock=clock,
            require_signed=options.require_signed,
            poll_seconds=_LOCAL_POLL_SECONDS if options.subtensor.is_local else _POLL_SECONDS,
        )
        duties = [repeat("versions", versions.refresh, clock=clock, pause_seconds=REFRESH_SECONDS)]
        if wandb_run.is_on(os.environ):
            run = wandb_run.WandbRun("miner", own_hotkey, wallet.hotkey, data_folder(options.database))
            duties.append(wandb_run.publishing(run, content, clock))
        collector = MinerCollector(leases, own_hotkey, options.netuid)
        async with metrics.served(options.metrics, [collector], clock), beside(*duties):
            if update is None:
                await service.run()
            else:
                await update.beside(service.run(), up=service.up, safe=manager.at_rest)
    finally:
        await manager.close()
        await chain.close()
        database.close()


def runtime_of(options: MinerOptions) -> Runtime:
    """What leases run in. Blocks while it asks the Docker engine whether it is fit.

    Raises:
        ConfigError: there is no image or no wallet, or the local runtime is to serve a chain elsewhere.
        RuntimeFailure: no engine answers.
    """
    if options.runtime is RuntimeKind.LOCAL:
        return local_runtime(options)
    hotkey = str(load_wallet(options.wallet).hotkey.ss58_address)
    settings = DockerSettings(
        miner=hotkey,
        image=options.image,
        bind_address=options.ssh_host,
        close_network=options.network_close,
        allowed_ranges=options.network_allow,
    )
    runtime = DockerRuntime(settings, DockerEngine(docker_host()))
    runtime.check()
    return runtime


def local_runtime(options: MinerOptions, kind: type[LocalRuntime] = LocalRuntime) -> LocalRuntime:
    """The local runtime in the miner's data folder.

    Raises:
        ConfigError: the chain is not on this machine.
    """
    return kind(
        data_folder(options.database) / "leases",
        chain_endpoint=options.subtensor.endpoint,
        bind_address=options.ssh_host,
    )


def key_file_of(options: MinerOptions) -> Path:
    """The key (mode 0600) under which the database keeps connection data."""
    folder = data_folder(options.database)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / "lease.key"
