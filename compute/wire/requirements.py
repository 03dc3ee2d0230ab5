"""What a renter asks of a machine, and whether a machine has it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compute.base.errors import LeaseError
from compute.base.reasons import Refusal
from compute.wire.lease_terms import GIB
from compute.wire.specs import Gpu, MachineSpecs

MAX_COUNT = 1 << 16
MAX_CAPACITY = 1 << 60
MAX_TYPE_CHARACTERS = 64


@dataclass(frozen=True)
class Shortfall:
    """What a machine lacks: the reason for the wire, and a text for people with both numbers."""

    reason: Refusal
    text: str


@dataclass(frozen=True)
class DeviceRequirement:
    """The least that a machine must have free; 0 and ``""`` ask for nothing.

    ``gpu_capacity_mib`` is the memory of each GPU; ``gpu_type`` is a part of the GPU's name in any case.
    """

    cpu_count: int = 0
    gpu_count: int = 0
    gpu_capacity_mib: int = 0
    gpu_type: str = ""
    disk_bytes: int = 0
    ram_bytes: int = 0

    @classmethod
    def from_wire(cls, wire: object) -> DeviceRequirement:
        """Parse ``device_requirement`` of an ``Allocate``.

        Missing and null parts ask for nothing; unknown keys are ignored.

        Raises:
            LeaseError: ``bad_request``: a part has the wrong type, is negative, or is absurdly large.
        """
        whole = _mapping(wire, "device_requirement")
        cpu, gpu, disk, ram = (_mapping(whole.get(part), part) for part in ("cpu", "gpu", "hard_disk", "ram"))
        return cls(
            cpu_count=_number(cpu, "cpu", "count", MAX_COUNT),
            gpu_count=_number(gpu, "gpu", "count", MAX_COUNT),
            gpu_capacity_mib=_number(gpu, "gpu", "capacity", MAX_CAPACITY),
            gpu_type=_gpu_type(gpu),
            disk_bytes=_number(disk, "hard_disk", "capacity", MAX_CAPACITY),
            ram_bytes=_number(ram, "ram", "capacity", MAX_CAPACITY),
        )

    def to_wire(self) -> dict[str, object]:
        """The wire's dictionary; ``from_wire`` of it is equal to ``self``."""
        return {
            "cpu": {"count": self.cpu_count},
            "gpu": {"count": self.gpu_count, "capacity": self.gpu_capacity_mib, "type": self.gpu_type},
            "hard_disk": {"capacity": self.disk_bytes},
            "ram": {"capacity": self.ram_bytes},
        }


def wants_probe(wire: object) -> bool:
    """Whether ``device_requirement`` asks for a probe's lease (``testing``).

    Raises:
        LeaseError: ``bad_request``: ``testing`` is no boolean.
    """
    testing = _mapping(wire, "device_requirement").get("testing")
    if testing is not None and not isinstance(testing, bool):
        raise _bad("testing", testing, "true or false")
    return bool(testing)


def shortfall(requirement: DeviceRequirement, machine: MachineSpecs) -> Shortfall | None:
    """The first thing that ``machine`` lacks of its free resources, or None where it has all."""
    if machine.cpu_count < requirement.cpu_count:
        return Shortfall(Refusal.CPU_COUNT, f"{requirement.cpu_count} CPUs asked, {machine.cpu_count} present")
    if machine.ram_available < requirement.ram_bytes:
        return Shortfall(Refusal.RAM, f"{_gib(requirement.ram_bytes)} of RAM asked, {_gib(machine.ram_available)} free")
    if machine.disk_free < requirement.disk_bytes:
        return Shortfall(Refusal.DISK, f"{_gib(requirement.disk_bytes)} of disk asked, {_gib(machine.disk_free)} free")
    return _gpu_shortfall(requirement, machine)


def _gpu_shortfall(requirement: DeviceRequirement, machine: MachineSpecs) -> Shortfall | None:
    wanted = requirement.gpu_count
    if len(machine.gpus) < wanted:
        return Shortfall(Refusal.GPU_COUNT, f"{wanted} GPUs asked, {len(machine.gpus)} present")
    # A type or a size without a count asks for one such GPU.
    if not wanted and (requirement.gpu_type or requirement.gpu_capacity_mib):
        wanted = 1
    of_type = [gpu for gpu in machine.gpus if _is_of_type(gpu, requirement)]
    if len(of_type) < wanted:
        names = ", ".join(sorted({gpu.name for gpu in machine.gpus})) or "none"
        return Shortfall(Refusal.GPU_TYPE, f"{wanted} × {requirement.gpu_type!r} GPUs asked, present are: {names}")
    large = [gpu for gpu in of_type if gpu.capacity_mib >= requirement.gpu_capacity_mib]
    if len(large) < wanted:
        largest = max((gpu.capacity_mib for gpu in of_type), default=0)
        text = f"{wanted} GPUs of {requirement.gpu_capacity_mib} MiB asked, the largest present has {largest} MiB"
        return Shortfall(Refusal.GPU_MEMORY, text)
    return None


def leased_gpus(requirement: DeviceRequirement, machine: MachineSpecs) -> tuple[Gpu, ...]:
    """The GPUs of ``machine`` that a lease for ``requirement`` gets: as many as asked, of the type and size asked."""
    fitting = [
        gpu
        for gpu in machine.gpus
        if _is_of_type(gpu, requirement) and gpu.capacity_mib >= requirement.gpu_capacity_mib
    ]
    unnamed = int(bool(requirement.gpu_type or requirement.gpu_capacity_mib))
    return tuple(fitting[: requirement.gpu_count or unnamed])


def _is_of_type(gpu: Gpu, requirement: DeviceRequirement) -> bool:
    return requirement.gpu_type.lower() in gpu.name.lower()


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"


def _mapping(value: object, name: str) -> Mapping[str, object]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _bad(name, value, "a dictionary")
    return value


def _number(part: Mapping[str, object], name: str, key: str, most: int) -> int:
    value = part.get(key)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise _bad(f"{name}.{key}", value, f"a whole number from 0 to {most}")
    return value


def _gpu_type(part: Mapping[str, object]) -> str:
    value = part.get("type")
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > MAX_TYPE_CHARACTERS or not value.isprintable():
        raise _bad("gpu.type", value, f"printable text of at most {MAX_TYPE_CHARACTERS} characters")
    return value.strip()


def _bad(name: str, value: object, right: str) -> LeaseError:
    # A huge integer cannot even be printed, and a peer's nesting may have no end.
    shown = f"{value!r:.60}" if isinstance(value, str | float | bool) else f"a {type(value).__name__}"
    if isinstance(value, int) and not isinstance(value, bool):
        shown = str(value) if abs(value) <= MAX_CAPACITY else "a huge number"
    return LeaseError(Refusal.BAD_REQUEST, f"{name} is {shown}, not {right}")
