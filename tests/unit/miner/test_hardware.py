from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from compute import __version_as_int__
from compute.base.errors import ConfigError
from compute.miner.hardware import LOCALNET_CPU_CAPACITY_MIB, CpuDevices, FixedHardware, SystemHardware, engine_answers
from compute.proof.models import CPU_MODEL
from compute.wire.specs import Gpu, parse_specs
from tests.waiting import DEADLINE_SECONDS


class NVMLError(Exception):
    """The fake driver's own."""


class FakeNvml:
    """The part of ``pynvml`` that is used, over a list of cards; any call named in ``broken`` fails."""

    NVMLError = NVMLError
    NVML_CLOCK_GRAPHICS = 0
    NVML_CLOCK_MEM = 2

    def __init__(self, cards: int, *, broken: str | None = None) -> None:
        self.cards = cards
        self.broken = broken
        self.open = 0

    def _call(self, name: str, answer: Any) -> Any:
        if name == self.broken:
            raise NVMLError(f"{name} failed")
        return answer

    def nvmlInit(self) -> None:
        self._call("nvmlInit", None)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return str(self._call("nvmlSystemGetDriverVersion", "580.10"))

    def nvmlDeviceGetCount(self) -> int:
        return int(self._call("nvmlDeviceGetCount", self.cards))

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return int(self._call("nvmlDeviceGetHandleByIndex", index))

    def nvmlDeviceGetName(self, handle: int) -> str:
        return str(self._call("nvmlDeviceGetName", "NVIDIA H200"))

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(total=self._call("nvmlDeviceGetMemoryInfo", 143771 << 20))

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return str(self._call("nvmlDeviceGetUUID", f"GPU-{handle}"))

    def nvmlDeviceGetPciInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(busId=self._call("nvmlDeviceGetPciInfo", f"00000000:0{handle}:00.0"))

    def nvmlDeviceGetMaxClockInfo(self, handle: int, kind: int) -> int:
        return int(self._call("nvmlDeviceGetMaxClockInfo", 1980 + kind))


@pytest.fixture
def no_engine(tmp_path: Path) -> str:
    return f"unix://{tmp_path}/absent.sock"


def test_this_machine(tmp_path: Path, no_engine: str) -> None:
    specs = SystemHardware(tmp_path, docker_host=no_engine, nvml=FakeNvml(0)).specs()
    assert specs.cpu_count == os.cpu_count()
    assert specs.ram_total == psutil.virtual_memory().total
    assert 0 < specs.ram_available <= specs.ram_total
    assert specs.disk_total == psutil.disk_usage(str(tmp_path)).total
    assert 0 <= specs.disk_free <= specs.disk_total
    assert specs.cpu_frequency_mhz >= 0
    assert specs.version == __version_as_int__
    assert specs.gpus == ()
    assert specs.has_docker is False


def test_what_the_machine_says_passes_the_parser_of_hostile_specs(no_engine: str) -> None:
    specs = SystemHardware(docker_host=no_engine, nvml=FakeNvml(8)).specs()
    assert parse_specs(specs.to_json()) == specs


def test_gpus_by_nvml(no_engine: str) -> None:
    nvml = FakeNvml(2)
    specs = SystemHardware(docker_host=no_engine, nvml=nvml).specs()
    assert specs.gpus == (
        Gpu("NVIDIA H200", 143771, uuid="GPU-0", driver="580.10", pci="00000000:00:00.0"),
        Gpu("NVIDIA H200", 143771, uuid="GPU-1", driver="580.10", pci="00000000:01:00.0"),
    )
    assert (specs.graphics_speed_mhz, specs.memory_speed_mhz) == (1980, 1982)
    assert nvml.open == 0


def test_no_driver_is_no_error_and_said_once(no_engine: str, caplog: pytest.LogCaptureFixture) -> None:
    nvml = FakeNvml(2, broken="nvmlInit")
    hardware = SystemHardware(docker_host=no_engine, nvml=nvml)
    with caplog.at_level(logging.WARNING, "compute.miner.hardware"):
        assert [hardware.specs().gpus for _ in range(3)] == [(), (), ()]
        assert caplog.messages == ["no GPUs: nvmlInit failed"]
        nvml.broken = None
        assert len(hardware.specs().gpus) == 2
        nvml.broken = "nvmlInit"
        hardware.specs()
    assert caplog.messages == ["no GPUs: nvmlInit failed"] * 2


@pytest.mark.parametrize("call", [name for name in vars(FakeNvml) if name.startswith("nvmlDevice")])
def test_a_driver_that_fails_half_way_claims_nothing_and_is_closed(
    call: str, no_engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    nvml = FakeNvml(2, broken=call)
    specs = SystemHardware(docker_host=no_engine, nvml=nvml).specs()
    assert nvml.open == 0
    if call == "nvmlDeviceGetMaxClockInfo":
        assert (len(specs.gpus), specs.graphics_speed_mhz) == (2, 0)
    else:
        assert specs.gpus == ()
        assert caplog.messages == [f"no GPUs, since the driver failed: {call} failed"]


def test_the_real_nvml_module_has_every_name_that_is_used() -> None:
    import pynvml

    for name in vars(FakeNvml):
        if name.upper().startswith("NVML"):
            assert hasattr(pynvml, name)


def test_a_missing_disk_is_a_configuration_error(tmp_path: Path, no_engine: str) -> None:
    with pytest.raises(ConfigError, match="absent"):
        SystemHardware(tmp_path / "absent", docker_host=no_engine, nvml=FakeNvml(0)).specs()


def test_cores_as_devices(no_engine: str) -> None:
    inner = FixedHardware(SystemHardware(docker_host=no_engine, nvml=FakeNvml(1)).specs())
    specs = CpuDevices(inner, 2).specs()
    assert specs.gpus == (Gpu(CPU_MODEL, LOCALNET_CPU_CAPACITY_MIB),) * 2
    assert specs.with_gpus(()) == inner.specs().with_gpus(())
    with pytest.raises(ConfigError, match="0 CPU devices"):
        CpuDevices(inner, 0)


def test_fixed_hardware_can_change(no_engine: str) -> None:
    hardware = FixedHardware(SystemHardware(docker_host=no_engine, nvml=FakeNvml(1)).specs())
    assert len(hardware.specs().gpus) == 1
    hardware.current = hardware.current.with_gpus(())
    assert hardware.specs().gpus == ()


@contextmanager
def engine(server: socket.socket, answer: bytes) -> Iterator[list[bytes]]:
    """Answer one connection on ``server`` with ``answer``, keeping what was asked."""
    asked: list[bytes] = []

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            asked.append(connection.recv(1024))
            connection.sendall(answer)

    server.settimeout(DEADLINE_SECONDS)
    server.listen(1)
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield asked
    finally:
        thread.join()
        server.close()


def unix_server(folder: Path) -> tuple[socket.socket, str]:
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"{folder}/e.sock")
    return server, f"unix://{folder}/e.sock"


def tcp_server(folder: Path) -> tuple[socket.socket, str]:
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    return server, f"tcp://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("start", [unix_server, tcp_server])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.0 200 OK\r\nServer: Docker\r\n\r\nOK", True),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", False),
        (b"SSH-2.0-OpenSSH_9.6\r\n", False),
        (b"", False),
    ],
)
def test_the_engine_is_asked_at_its_socket(
    start: Callable[[Path], tuple[socket.socket, str]], answer: bytes, expected: bool, tmp_path: Path
) -> None:
    server, address = start(tmp_path)
    with engine(server, answer) as asked:
        assert engine_answers(address, timeout_seconds=DEADLINE_SECONDS) is expected
    assert asked[0].startswith(b"GET /_ping HTTP/1.0\r\n")


@pytest.mark.parametrize("address", ["", "unix://", "ssh://host", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "x"])
def test_no_engine_at_an_address_that_is_none(address: str) -> None:
    assert engine_answers(address) is False


def test_a_socket_that_nobody_answers_is_no_engine(tmp_path: Path) -> None:
    server, address = unix_server(tmp_path)
    server.listen(1)
    assert engine_answers(address, timeout_seconds=0.05) is False
    server.close()
    assert engine_answers(address) is False
