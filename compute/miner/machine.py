"""This machine, as a miner's options offer it."""

from __future__ import annotations

import logging
import os

from compute.config import Config
from compute.hardware import DEFAULT_DOCKER_HOST, CpuDevices, Hardware, SystemHardware
from compute.options import MinerOptions
from compute.reasons import ProofReason
from compute.scoring import ALLOCATION_MULTIPLIER, score
from compute.specs import MachineSpecs
from compute.validator.standing import claim_of

logger = logging.getLogger(__name__)


def hardware_of(options: MinerOptions) -> Hardware:
    """This machine, or processor cores of it as devices."""
    hardware = SystemHardware(docker_host=docker_host())
    return CpuDevices(hardware, options.cpu_devices) if options.cpu_devices else hardware


def docker_host() -> str:
    """Where every other program of Docker's would look too."""
    return os.environ.get("DOCKER_HOST") or DEFAULT_DOCKER_HOST


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
