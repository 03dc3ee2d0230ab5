"""The typed nouns of the proof: what is claimed, what is asked, what was measured, what was decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from compute.base.errors import ConfigError
from compute.base.reasons import ProofReason

DeviceKind = Literal["cuda", "cpu"]

CPU_MODEL = "Localnet CPU core"
"""A processor core as a device: what a localnet's miner offers, and no shipped configuration pays."""

MAX_DEVICES = 16
"""More devices than this in one machine are not proven: a bound on what one claim can make a validator do."""


@dataclass(frozen=True)
class GpuModel:
    """One model of the table, in numbers as this proof measures them on a healthy card.

    ``tflops16`` is in 10^12 operations per second, ``vram_gb`` in 10^9 bytes as the driver reports the card's total,
    ``bandwidth_gbs`` in 10^9 bytes per second of one rehash pass: what a healthy card reaches at least (``None``: not
    known, not judged).
    ``tflops32`` is shown to people and never judged. ``score`` is what the model is paid for, 0 for nothing: a device
    that looks like another model than its claim is worth the lesser of the two.
    """

    name: str
    tflops16: float
    vram_gb: float
    bandwidth_gbs: float | None
    tflops32: float | None = None
    score: float = 0.0

    def __post_init__(self) -> None:
        positive = {"tflops16": self.tflops16, "vram_gb": self.vram_gb, "bandwidth_gbs": self.bandwidth_gbs}
        for key, value in positive.items():
            if value is not None and not 0 < value < 1e9:
                raise ConfigError(f"{self.name}: {key} is {value!r}; it must be a positive number")


@dataclass(frozen=True)
class ProofSettings:
    """How the proof is run. The defaults are for data-centre and workstation GPUs.

    ``rows`` and ``k`` are the M and K of every statement when given; left at ``None``, they follow from the claimed
    model's memory and rate. The CPU device needs both: it has no memory size of its own.
    """

    device: DeviceKind = "cuda"
    columns: int = 32768
    max_k: int = 32768
    rows: int | None = None
    k: int | None = None
    compute_seconds: float = 8.0
    rehash_seconds: float = 2.0
    opened_rows: int = 24
    opened_passes: int = 3
    min_passes: int = 8
    max_passes: int = 512
    time_tolerance: float = 0.25
    """How far below its model a rate may fall, as a fraction. Two claims on one device measure one half each."""
    tile_rows: int = 8192
    reserved_gb: float = 1.5
    """Device memory left to the driver, the context and the libraries, in 10^9 bytes."""
    connect_seconds: float = 180.0
    hello_seconds: float = 90.0
    prepare_seconds: float = 90.0
    open_seconds: float = 60.0
    phase_deadline_factor: float = 3.0
    """A timed phase may take this many times what the claimed model needs, so that a slow machine learns its rate."""
    phase_deadline_floor_seconds: float = 20.0

    def __post_init__(self) -> None:
        if self.device not in ("cuda", "cpu"):
            raise ConfigError(f"device is {self.device!r}; it must be 'cuda' or 'cpu'")
        if self.device == "cpu" and (self.rows is None or self.k is None):
            raise ConfigError("device is 'cpu': rows and k must be given, a CPU has no device memory to fill")
        # 32768 is the bound up to which every partial sum stays below 2^24 and U below 2^53: exact in fp32 and fp64.
        _require_even("columns", self.columns, 2, 32768)
        _require_even("max_k", self.max_k, 2, 32768)
        if self.k is not None:
            _require_even("k", self.k, 2, 32768)
        _require("rows", self.rows, 1, 2**31 - 1)
        _require("tile_rows", self.tile_rows, 1, 2**20)
        _require("opened_rows", self.opened_rows, 1, 1024)
        _require("opened_passes", self.opened_passes, 1, 64)
        _require("min_passes", self.min_passes, self.opened_passes, 4096)
        _require("max_passes", self.max_passes, self.min_passes, 4096)
        _require("time_tolerance", self.time_tolerance, 0.0, 0.49)
        _require("phase_deadline_factor", self.phase_deadline_factor, 1.0, 100.0)
        for key in ("compute_seconds", "rehash_seconds", "connect_seconds", "hello_seconds", "prepare_seconds"):
            _require(key, getattr(self, key), 0.001, 3600.0)
        _require("open_seconds", self.open_seconds, 0.001, 3600.0)
        _require("phase_deadline_floor_seconds", self.phase_deadline_floor_seconds, 0.001, 3600.0)
        _require("reserved_gb", self.reserved_gb, 0.0, 64.0)


@dataclass(frozen=True)
class Claim:
    """What a miner says it has: ``count`` devices of the model ``gpu``."""

    gpu: str
    count: int


@dataclass(frozen=True)
class DeviceInfo:
    """What a worker says about one device. Advisory: nothing is paid for it."""

    name: str
    uuid: str | None
    memory_bytes: int


@dataclass(frozen=True)
class DeviceMeasurement:
    """What the validator's clock and arithmetic say about one device.

    A rate is ``None`` where its phase did not end. ``reason`` is ``OK`` only if the device proved the claim.
    """

    index: int
    reason: ProofReason
    tflops16: float | None = None
    vram_bytes: int = 0
    bandwidth_gbs: float | None = None
    compute_seconds: float | None = None
    rehash_seconds: float | None = None
    nearest: str | None = None
    """The model of the table that the numbers look most like."""
    uuid: str | None = None
    """As the worker says it; see ``fingerprint.shared_devices``."""


@dataclass(frozen=True)
class MachineVerdict:
    """The outcome of one machine's proof.

    ``gpu`` is the model that the machine is worth: the claim, or a lesser model if its numbers look like that one;
    the lowest of them on a mixed machine; ``None`` if no device proved itself. ``count`` is the number of devices
    that did.
    """

    reason: ProofReason
    claim: Claim
    gpu: str | None = None
    count: int = 0
    devices: tuple[DeviceMeasurement, ...] = ()
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.reason is ProofReason.OK


TolerancePairs = Sequence[tuple[str, str]]
"""Models that no fingerprint separates, in either order."""


def _require(key: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise ConfigError(f"{key} is {value!r}; it must be from {low:g} to {high:g}")


def _require_even(key: str, value: int, low: int, high: int) -> None:
    _require(key, value, low, high)
    if value % 2:
        raise ConfigError(f"{key} is {value!r}; it must be even, two entries come from one hash")
