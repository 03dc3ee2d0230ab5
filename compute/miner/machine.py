"""This machine, as a miner's options offer it."""

from __future__ import annotations

import os

from compute.hardware import DEFAULT_DOCKER_HOST, CpuDevices, Hardware, SystemHardware
from compute.options import MinerOptions


def hardware_of(options: MinerOptions) -> Hardware:
    """This machine, or processor cores of it as devices."""
    hardware = SystemHardware(docker_host=docker_host())
    return CpuDevices(hardware, options.cpu_devices) if options.cpu_devices else hardware


def docker_host() -> str:
    """Where every other program of Docker's would look too."""
    return os.environ.get("DOCKER_HOST") or DEFAULT_DOCKER_HOST
