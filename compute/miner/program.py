"""Builds a miner from its options and runs it."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

from compute import __version__
from compute.base import logs, metrics
from compute.base.clock import SystemClock
from compute.base.process import load_wallet, run_neuron
from compute.base.reasons import ProofReason
from compute.base.store import Database, data_folder
from compute.base.tasks import beside, repeat
from compute.chain.subtensor import SubtensorChain
from compute.chain.versions import REFRESH_SECONDS, VersionFile
from compute.incentive.config import Config, load_config
from compute.incentive.scoring import ALLOCATION_MULTIPLIER, score
from compute.miner.access import AccessPolicy
from compute.miner.allocate_handler import AllocateService
from compute.miner.gate import MinerGate
from compute.miner.hardware import Hardware, docker_host, hardware_of
from compute.miner.leases.manager import LeaseManager
from compute.miner.leases.store import LeaseStore
from compute.miner.options import MinerOptions, RuntimeKind
from compute.miner.runtimes.base import Runtime
from compute.miner.runtimes.docker import DockerRuntime
from compute.miner.runtimes.docker_engine import DockerEngine
from compute.miner.runtimes.docker_options import DockerSettings
from compute.miner.runtimes.local import LocalRuntime
from compute.miner.service import MinerService
from compute.miner.telemetry import MinerCollector, miner_content
from compute.telemetry import wandb_run
from compute.update.self_update import SelfUpdate
from compute.wire import receipts
from compute.wire.keys import SecretBox
from compute.wire.lease_terms import LeaseKind
from compute.wire.receipts import Receipt
from compute.wire.server import AxonServer
from compute.wire.signing import SignerMemory, verify_signature
from compute.wire.specs import MachineSpecs, claim_of

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


def say_what_it_earns(machine: MachineSpecs, config: Config) -> None:
    """Log what a validator with this configuration would score, once the machine has proven what it claims."""
    claim = claim_of(machine, config.aliases)
    gpu, count = (claim.gpu, claim.count) if claim is not None else (None, 0)
    worth = score(gpu, count, gpu_scores=config.scores)
    details = {"gpu": gpu, "count": count, "free": worth.total, "rented": ALLOCATION_MULTIPLIER * worth.total}
    if worth.reason is ProofReason.OK:
        logger.info("what this machine scores if it proves itself", extra=details)
    else:
        logger.warning("validators pay nothing for this machine", extra={**details, "reason": worth.reason})
