"""What a machine says that it is: typed, to and from the wire's JSON. Pure; every byte parsed here is hostile."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compute.base.errors import ComputeError
from compute.proof.models import Claim
from compute.wire.lease_terms import GIB
from compute.wire.peer import MAX_PARTS, has_many_parts
from compute.wire.receipts import Receipt, ReceiptError

MAX_SPECS_CHARACTERS = 64 * 1024
MAX_GPUS = 64
_MAX_BYTES = 1 << 60
# A validator parses what it has stored of all of its 256 miners again and again: 20 ms of the event loop each time.
_REMEMBERED = 512
_MEMORY_TOLERANCE = 0.05


class SpecsError(ComputeError):
    """A peer's specs are not what the protocol says: the message says where."""


@dataclass(frozen=True)
class Gpu:
    """One GPU as its machine describes it: a claim until proven."""

    name: str
    capacity_mib: int
    uuid: str | None = None
    driver: str | None = None
    pci: str | None = None


@dataclass(frozen=True)
class MachineSpecs:
    """A machine as it describes itself. Memory and disk in bytes, GPU memory in MiB, frequencies in MHz.

    ``receipt``: that it is rented, as the validator that rents it says; well-formed, and no more is known of it.
    """

    cpu_count: int
    cpu_frequency_mhz: float
    ram_total: int
    ram_available: int
    ram_used: int
    ram_free: int
    disk_total: int
    disk_used: int
    disk_free: int
    gpus: tuple[Gpu, ...] = ()
    swap_total: int = 0
    swap_used: int = 0
    swap_free: int = 0
    graphics_speed_mhz: int = 0
    memory_speed_mhz: int = 0
    has_docker: bool = False
    version: int = 0
    receipt: Receipt | None = None

    def with_gpus(self, gpus: tuple[Gpu, ...]) -> MachineSpecs:
        """The same machine with other GPUs."""
        return replace(self, gpus=gpus)

    def to_json(self) -> str:
        """The wire's JSON. ``gpu.capacity`` is the sum over the GPUs, in MiB."""
        receipt = {} if self.receipt is None else {"receipt": self.receipt.to_wire()}
        return json.dumps(
            {
                "cpu": {"count": self.cpu_count, "frequency": self.cpu_frequency_mhz},
                "gpu": {
                    "count": len(self.gpus),
                    "capacity": sum(gpu.capacity_mib for gpu in self.gpus),
                    "details": [_gpu_to_wire(gpu) for gpu in self.gpus],
                    "graphics_speed": self.graphics_speed_mhz,
                    "memory_speed": self.memory_speed_mhz,
                },
                "hard_disk": {"total": self.disk_total, "used": self.disk_used, "free": self.disk_free},
                "ram": {
                    "total": self.ram_total,
                    "available": self.ram_available,
                    "used": self.ram_used,
                    "free": self.ram_free,
                    "swap_total": self.swap_total,
                    "swap_used": self.swap_used,
                    "swap_free": self.swap_free,
                },
                "has_docker": self.has_docker,
                "version": self.version,
                **receipt,
            },
            separators=(",", ":"),
        )


def _gpu_to_wire(gpu: Gpu) -> dict[str, object]:
    wire = {key: value for key, value in asdict(gpu).items() if value is not None and key != "capacity_mib"}
    return {**wire, "capacity": gpu.capacity_mib}


class _Wire(BaseModel):
    # Unknown fields from peers are ignored; numbers given as text are not numbers.
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class _WireCpu(_Wire):
    count: int = Field(0, ge=0, le=1 << 16)
    frequency: float = Field(0, ge=0, le=1e6)


class _WireGpu(_Wire):
    name: str = Field(min_length=1, max_length=128, pattern=r"^[ -~]+$")
    capacity: float = Field(ge=0, le=1 << 24)
    uuid: str | None = Field(None, max_length=128, pattern=r"^[!-~]*$")
    driver: str | None = Field(None, max_length=64, pattern=r"^[ -~]*$")
    pci: str | None = Field(None, max_length=64, pattern=r"^[ -~]*$")


class _WireGpus(_Wire):
    count: int = Field(0, ge=0, le=MAX_GPUS)
    details: list[_WireGpu] = Field(default_factory=list, max_length=MAX_GPUS)
    graphics_speed: float = Field(0, ge=0, le=1e6)
    memory_speed: float = Field(0, ge=0, le=1e6)


class _WireDisk(_Wire):
    total: int = Field(0, ge=0, le=_MAX_BYTES)
    used: int = Field(0, ge=0, le=_MAX_BYTES)
    free: int = Field(0, ge=0, le=_MAX_BYTES)


class _WireRam(_WireDisk):
    available: int = Field(0, ge=0, le=_MAX_BYTES)
    swap_total: int = Field(0, ge=0, le=_MAX_BYTES)
    swap_used: int = Field(0, ge=0, le=_MAX_BYTES)
    swap_free: int = Field(0, ge=0, le=_MAX_BYTES)


class _WireSpecs(_Wire):
    cpu: _WireCpu
    gpu: _WireGpus
    hard_disk: _WireDisk
    ram: _WireRam
    has_docker: bool = False
    version: int = Field(0, ge=0, le=1 << 20)
    receipt: Any = None


@functools.lru_cache(_REMEMBERED)
def parse_specs(text: str) -> MachineSpecs:
    """Parse a peer's ``specs_output``.

    Raises:
        SpecsError: too long, not JSON, or a field is missing, mistyped or out of bounds.
    """
    if len(text) > MAX_SPECS_CHARACTERS:
        raise SpecsError(f"specs are {len(text)} characters long; at most {MAX_SPECS_CHARACTERS} are read")
    try:
        wire = _WireSpecs.model_validate(_strict_json(text))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise SpecsError(f"specs: {where}: {first['msg']}") from None
    if wire.gpu.count != len(wire.gpu.details):
        raise SpecsError(f"specs: gpu.count is {wire.gpu.count}, but gpu.details lists {len(wire.gpu.details)}")
    return MachineSpecs(
        cpu_count=wire.cpu.count,
        cpu_frequency_mhz=wire.cpu.frequency,
        ram_total=wire.ram.total,
        ram_available=wire.ram.available,
        ram_used=wire.ram.used,
        ram_free=wire.ram.free,
        swap_total=wire.ram.swap_total,
        swap_used=wire.ram.swap_used,
        swap_free=wire.ram.swap_free,
        disk_total=wire.hard_disk.total,
        disk_used=wire.hard_disk.used,
        disk_free=wire.hard_disk.free,
        gpus=tuple(
            Gpu(name=gpu.name, capacity_mib=int(gpu.capacity), uuid=gpu.uuid, driver=gpu.driver, pci=gpu.pci)
            for gpu in wire.gpu.details
        ),
        graphics_speed_mhz=int(wire.gpu.graphics_speed),
        memory_speed_mhz=int(wire.gpu.memory_speed),
        has_docker=wire.has_docker,
        version=wire.version,
        receipt=_receipt(wire.receipt),
    )


def _receipt(wire: object) -> Receipt | None:
    """A malformed receipt proves nothing, and takes nothing away from the rest."""
    try:
        return None if wire is None else Receipt.from_wire(wire)
    except ReceiptError:
        return None


def hardware_changes(before: MachineSpecs, after: MachineSpecs) -> str | None:
    """What has changed of what must not change during a lease, in words: GPUs, number of CPUs, memory; None if nothing.

    A new driver or kernel reports a little more or less memory: up to 5 % is no change. Uuids are compared where both
    sides name them.
    """
    changes = []
    if _gpus_differ(before.gpus, after.gpus):
        old, new = _describe(before.gpus), _describe(after.gpus)
        changes.append(f"GPUs were {old}, now {new}" if old != new else f"other GPUs of the same kind: {new}")
    if before.cpu_count != after.cpu_count:
        changes.append(f"CPUs were {before.cpu_count}, now {after.cpu_count}")
    if not _nearly(before.ram_total, after.ram_total):
        changes.append(f"RAM was {before.ram_total / GIB:.1f} GiB, now {after.ram_total / GIB:.1f} GiB")
    return "; ".join(changes) or None


def _gpus_differ(before: tuple[Gpu, ...], after: tuple[Gpu, ...]) -> bool:
    old, new = (sorted(gpus, key=lambda gpu: (gpu.name, gpu.uuid or "", gpu.capacity_mib)) for gpus in (before, after))
    return len(old) != len(new) or any(
        was.name != now.name
        or not _nearly(was.capacity_mib, now.capacity_mib)
        or (was.uuid is not None and now.uuid is not None and was.uuid != now.uuid)
        for was, now in zip(old, new, strict=True)
    )


def _nearly(before: int, after: int) -> bool:
    return abs(before - after) <= _MEMORY_TOLERANCE * max(before, after)


def _describe(gpus: tuple[Gpu, ...]) -> str:
    counts = Counter(gpu.name for gpu in gpus)
    return ", ".join(f"{count} x {name}" for name, count in sorted(counts.items())) or "none"


def _strict_json(text: str) -> Any:
    def refuse_constant(name: str) -> NoReturn:
        raise SpecsError(f"specs: {name} is not a number")

    # Escaped in the answer that it came in, it had no parts to count.
    if has_many_parts(text):
        raise SpecsError(f"specs have more than {MAX_PARTS} parts")
    try:
        return json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise SpecsError(f"specs are not JSON: {type(error).__name__}") from None


def claim_of(specs: MachineSpecs, aliases: Mapping[str, str]) -> Claim | None:
    """What a machine's specs claim, by the table's name for it; None without a GPU.

    ``aliases`` are names that drivers use. Mixed models claim the first: the count then falls short.
    """
    names = [aliases.get(gpu.name, gpu.name) for gpu in specs.gpus]
    return Claim(gpu=names[0], count=names.count(names[0])) if names else None


def machine_of(specs: str | None) -> MachineSpecs | None:
    """The parsed text of a ``SpecsFact``; None where there is none, or an older version has let it through."""
    if specs is None:
        return None
    try:
        return parse_specs(specs)
    except SpecsError:
        return None
