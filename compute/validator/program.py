"""Builds a validator from its options and runs it."""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

from compute import __version__, __version_as_int__
from compute.base import logs, metrics
from compute.base.clock import SystemClock
from compute.base.errors import ExtrinsicRefused, StoreError
from compute.base.process import load_wallet, run_neuron, settled
from compute.base.store import Database, data_folder, key_file_beside
from compute.base.tasks import beside, repeat
from compute.chain.access_lists import AccessLists
from compute.chain.metagraph_process import SubnetReader
from compute.chain.subtensor import SubtensorChain
from compute.chain.versions import REFRESH_SECONDS, VersionFile
from compute.incentive.config import load_config
from compute.notices.delivery import Delivery
from compute.notices.notice import urls_from
from compute.notices.outbox import Outbox
from compute.rental.evidence import RentalEvidence
from compute.rental.keeper import RentalKeeper
from compute.rental.records import RenterStore
from compute.rental.remote import SshRemote
from compute.rental.service import RenterService
from compute.telemetry import wandb_run
from compute.update.self_update import SelfUpdate
from compute.validator.eligibility import QueryPolicy
from compute.validator.options import ValidatorOptions
from compute.validator.rented import OwnRentals
from compute.validator.service import ValidatorService, ValidatorSettings
from compute.validator.show import miner_rows
from compute.validator.store import FactStore
from compute.validator.telemetry import ValidatorCollector, validator_content
from compute.wire.answers import SignedAnswers
from compute.wire.client import DendriteCaller
from compute.wire.keys import SecretBox
from compute.wire.lease_client import AllocationClient
from compute.wire.receipts import Issuer
from compute.wire.signing import SignerMemory, verify_signature

logger = logging.getLogger(__name__)

_POLL_SECONDS = 6.0
_LOCAL_POLL_SECONDS = 0.5
_DELIVERY_SECONDS = 5.0
NOWHERE = "192.0.2.1"


def run(options: ValidatorOptions, *, chain_type: type[SubtensorChain] = SubtensorChain) -> int:
    """Run until stopped; returns the exit code. ``chain_type`` is for programs that try what a validator survives."""
    update = SelfUpdate("validator", options, SystemClock())

    async def main() -> None:
        logs.configure(options.logging, program="validator")
        config = load_config(options.config_file)
        urls = urls_from(os.environ)
        wallet = load_wallet(options.wallet)
        own_hotkey = str(wallet.hotkey.ss58_address)
        database = Database(options.database)
        # The first, so that a database with other tables and without these is none of a validator.
        facts = FactStore(database)
        evidence = RentalEvidence(database)
        clock = SystemClock()
        outbox = Outbox(database)
        versions = VersionFile(options.version_file, database, clock)

        async def content() -> dict[str, Any]:
            return validator_content(own_hotkey, options, miner_rows(facts), evidence.penalized())

        endpoint, netuid = options.subtensor.endpoint, options.netuid
        chain = chain_type(endpoint, netuid, wallet, reader=SubnetReader(endpoint, netuid))
        caller = DendriteCaller(wallet.hotkey, external_ip=options.axon.external_ip)
        details = {"version": __version__, "hotkey": own_hotkey, "netuid": options.netuid}
        logger.info("validator starts", extra=details)
        signatures = SignedAnswers(verify_signature, SignerMemory(database), clock)
        issuer = Issuer(wallet.hotkey, own_hotkey, options.netuid, clock)

        def renter() -> RenterService:
            return RenterService(
                metagraph=chain.metagraph,
                caller=caller,
                store=_renter_store(database, options),
                remote=SshRemote(),
                clock=clock,
                gpu_scores=config.scores,
                signatures=signatures,
                issuer=lambda: issuer,
            )

        service = ValidatorService(
            own_hotkey=own_hotkey,
            chain=chain,
            caller=caller,
            client=AllocationClient(caller, clock, signatures=signatures),
            facts=facts,
            own_rentals=OwnRentals(
                rentals=lambda: evidence.rentals(clock.now()),
                penalized=evidence.penalized,
                host_keys=SshRemote(),
                verify=verify_signature,
                notify=functools.partial(outbox.put, topics=urls),
                keeper=RentalKeeper(renter, clock),
            ),
            config=config,
            settings=settings_of(options, versions),
            clock=clock,
        )
        duties = [repeat("versions", versions.refresh, clock=clock, pause_seconds=REFRESH_SECONDS)]
        if urls:
            delivery = Delivery(outbox, urls, clock)
            duties.append(repeat("notices", delivery.deliver_due, clock=clock, pause_seconds=_DELIVERY_SECONDS))
        if wandb_run.is_on(os.environ):
            folder = data_folder(options.database)
            run = wandb_run.WandbRun("validator", own_hotkey, wallet.hotkey, folder)
            duties.append(wandb_run.publishing(run, content, clock))
        try:
            collector = ValidatorCollector(facts, own_hotkey, options.netuid)
            async with metrics.served(options.metrics, [collector], clock), beside(*duties, settled(service.up)):
                await _announce_version(chain, options)
                await update.beside(service.run(), up=service.up, safe=service.between_proofs.acquire)
        finally:
            await caller.close()
            await chain.close()
            database.close()

    return update.finish(run_neuron(main))


def _renter_store(database: Database, options: ValidatorOptions) -> RenterStore:
    """The renter's tables with their secrets, for which the key file has to be where ``register.py`` puts it.

    Raises:
        StoreError: it is not.
    """
    key_file = key_file_beside(options.database)
    if not key_file.exists():
        raise StoreError(
            f"there is no key file {key_file}: without it this validator can neither renew the receipts of its rentals "
            "nor end one whose hardware has changed; put a copy there if register.py uses --key.file"
        )
    return RenterStore(database, SecretBox.from_key_file(key_file))


def settings_of(options: ValidatorOptions, versions: VersionFile) -> ValidatorSettings:
    """What the service is told of the command line."""
    return ValidatorSettings(
        policy=QueryPolicy(
            lists=AccessLists.from_options(options.lists),
            allow_unrecognized=options.whitelist_unrecognized,
            updated_threshold_percent=options.updated_threshold_percent,
            minimal_versions=versions.of_miners,
        ),
        specs_batch_size=options.specs_batch_size,
        specs_interval_blocks=options.specs_interval_blocks,
        proof_interval_blocks=options.proof_interval_blocks,
        perform_hardware_query=options.perform_hardware_query,
        rounds=options.rounds,
        poll_seconds=_LOCAL_POLL_SECONDS if options.subtensor.is_local else _POLL_SECONDS,
    )


async def _announce_version(chain: SubtensorChain, options: ValidatorOptions) -> None:
    # A validator serves nothing: without options, an address of the documentation range stands for none.
    ip, port = options.axon.external_ip or NOWHERE, options.axon.external_port or options.axon.port
    force = options.force_update_prometheus
    try:
        if await chain.announce_version(__version_as_int__, ip, port, force=force):
            logger.info("version published", extra={"version": __version_as_int__})
    except ExtrinsicRefused as error:
        # Miners then see the version that was published last: no reason not to validate.
        logger.warning("the chain does not take our version now: %s", error)
