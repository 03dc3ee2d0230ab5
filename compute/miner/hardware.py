"""What this machine is: processor, memory, disk, GPUs, container engine. Asks libraries, never a shell."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import psutil
import pynvml

from compute import __version_as_int__
from compute.base.errors import ConfigError
from compute.miner.options import MinerOptions
from compute.proof.models import CPU_MODEL
from compute.wire.specs import Gpu, MachineSpecs

logger = logging.getLogger(__name__)

LOCALNET_CPU_CAPACITY_MIB = 1024

DEFAULT_DOCKER_HOST = "unix:///var/run/docker.sock"
_PING = b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n"
_PING_SECONDS = 1.0


class Hardware(Protocol):
    """Describes one machine. May block for up to a few seconds: call it in a thread."""

    def specs(self) -> MachineSpecs:
        """The machine as it is now.

        Raises:
            ConfigError: the path whose disk is to be described does not exist.
        """


class FixedHardware:
    """A machine that is what it is told to be: for tests, and wherever no real one is to be asked."""

    def __init__(self, specs: MachineSpecs) -> None:
        self.current = specs

    def specs(self) -> MachineSpecs:
        return self.current


class CpuDevices:
    """Another machine, offering ``count`` processor cores as devices in place of its GPUs. For a localnet only."""

    def __init__(self, hardware: Hardware, count: int) -> None:
        if count < 1:
            raise ConfigError(f"{count} CPU devices: there must be at least 1")
        self._hardware = hardware
        self._count = count

    def specs(self) -> MachineSpecs:
        # No uuid: all miners of a localnet share one machine, and one uuid under two hotkeys is a shared device.
        return self._hardware.specs().with_gpus((Gpu(CPU_MODEL, LOCALNET_CPU_CAPACITY_MIB),) * self._count)


class SystemHardware:
    """This machine, by psutil and NVML. Without an NVIDIA driver it has no GPUs, which is no error.

    Args:
        disk_path: the disk that holds this path is the one described.
        docker_host: address of the container engine, as in ``DOCKER_HOST``.
        nvml: the ``pynvml`` module, or one that behaves like it.
    """

    def __init__(
        self, disk_path: str | Path = "/", *, docker_host: str = DEFAULT_DOCKER_HOST, nvml: Any = pynvml
    ) -> None:
        self._disk_path = str(disk_path)
        self._docker_host = docker_host
        self._nvml = nvml
        self._said: str | None = None

    def specs(self) -> MachineSpecs:
        try:
            disk = psutil.disk_usage(self._disk_path)
        except OSError as error:
            raise ConfigError(f"no disk at {self._disk_path!r}: {error.strerror}") from error
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        gpus, graphics_mhz, memory_mhz = self._gpus()
        return MachineSpecs(
            cpu_count=psutil.cpu_count() or 1,
            cpu_frequency_mhz=_cpu_frequency_mhz(),
            ram_total=memory.total,
            ram_available=memory.available,
            ram_used=memory.used,
            ram_free=memory.free,
            swap_total=swap.total,
            swap_used=swap.used,
            swap_free=swap.free,
            disk_total=disk.total,
            disk_used=disk.used,
            disk_free=disk.free,
            gpus=gpus,
            graphics_speed_mhz=graphics_mhz,
            memory_speed_mhz=memory_mhz,
            has_docker=engine_answers(self._docker_host),
            version=__version_as_int__,
        )

    def _gpus(self) -> tuple[tuple[Gpu, ...], int, int]:
        """The GPUs, and the first one's highest graphics and memory clocks in MHz."""
        nvml = self._nvml
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            self._say_once(f"no GPUs: {error}")
            return (), 0, 0
        try:
            driver = nvml.nvmlSystemGetDriverVersion()
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
            gpus = tuple(self._gpu(handle, driver) for handle in handles)
            self._said = None
            return gpus, self._clock_mhz(handles, "GRAPHICS"), self._clock_mhz(handles, "MEM")
        except nvml.NVMLError as error:
            # One lost card makes the count wrong: better to claim nothing than a machine that is not there.
            self._say_once(f"no GPUs, since the driver failed: {error}")
            return (), 0, 0
        finally:
            nvml.nvmlShutdown()

    def _gpu(self, handle: Any, driver: str) -> Gpu:
        nvml = self._nvml
        return Gpu(
            name=nvml.nvmlDeviceGetName(handle),
            capacity_mib=nvml.nvmlDeviceGetMemoryInfo(handle).total >> 20,
            uuid=nvml.nvmlDeviceGetUUID(handle),
            driver=driver,
            pci=nvml.nvmlDeviceGetPciInfo(handle).busId,
        )

    def _clock_mhz(self, handles: list[Any], clock: str) -> int:
        """Highest clock of the first GPU; 0 where it has none or does not tell, as some virtual ones."""
        try:
            kind = getattr(self._nvml, f"NVML_CLOCK_{clock}")
            return int(self._nvml.nvmlDeviceGetMaxClockInfo(handles[0], kind)) if handles else 0
        except self._nvml.NVMLError:
            return 0

    def _say_once(self, message: str) -> None:
        if message != self._said:
            self._said = message
            logger.warning("%s", message)


def engine_answers(address: str, *, timeout_seconds: float = _PING_SECONDS) -> bool:
    """Whether a container engine answers at ``address`` (``unix:///path`` or ``tcp://host:port``) and lets us in."""
    try:
        with _connect(address, timeout_seconds) as connection:
            connection.sendall(_PING)
            status = connection.recv(64).split(b"\r\n")[0].split(b" ")
    except (OSError, ValueError):
        return False
    return len(status) > 1 and status[0].startswith(b"HTTP/1.") and status[1] == b"200"


def _connect(address: str, timeout_seconds: float) -> socket.socket:
    parts = urlsplit(address)
    if parts.scheme == "tcp" and parts.hostname and parts.port:
        return socket.create_connection((parts.hostname, parts.port), timeout_seconds)
    if parts.scheme != "unix":
        raise ValueError(f"{address!r} is neither unix:///path nor tcp://host:port")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_seconds)
        connection.connect(parts.path)
    except OSError:
        connection.close()
        raise
    return connection


def _cpu_frequency_mhz() -> float:
    """Highest frequency, or the current one, or 0 where the system does not tell, as in many containers."""
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError):
        return 0.0
    return round(float(frequency.max or frequency.current), 1) if frequency else 0.0


def docker_host() -> str:
    """Where every other program of Docker's would look too."""
    return os.environ.get("DOCKER_HOST") or DEFAULT_DOCKER_HOST


def hardware_of(options: MinerOptions) -> Hardware:
    """This machine, or processor cores of it as devices."""
    hardware = SystemHardware(docker_host=docker_host())
    return CpuDevices(hardware, options.cpu_devices) if options.cpu_devices else hardware
