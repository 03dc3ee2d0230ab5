from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.base.errors import LeaseError
from compute.base.reasons import Refusal
from compute.wire.requirements import MAX_CAPACITY, MAX_COUNT, DeviceRequirement, leased_gpus, shortfall, wants_probe
from compute.wire.specs import Gpu, MachineSpecs

MACHINE = MachineSpecs(
    cpu_count=8,
    cpu_frequency_mhz=3000.0,
    ram_total=64 << 30,
    ram_available=32 << 30,
    ram_used=0,
    ram_free=1 << 30,
    disk_total=1 << 40,
    disk_used=0,
    disk_free=1 << 39,
    gpus=(Gpu("NVIDIA L4", 23_034, uuid="a"), Gpu("NVIDIA A100-SXM4-80GB", 81_920, uuid="b")),
)

requirements = st.builds(
    DeviceRequirement,
    cpu_count=st.integers(0, MAX_COUNT),
    gpu_count=st.integers(0, MAX_COUNT),
    gpu_capacity_mib=st.integers(0, MAX_CAPACITY),
    gpu_type=st.text("ABCdef 0123456789-", max_size=20).map(str.strip),
    disk_bytes=st.integers(0, MAX_CAPACITY),
    ram_bytes=st.integers(0, MAX_CAPACITY),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(requirements)
def test_wire_and_back(requirement: DeviceRequirement) -> None:
    assert DeviceRequirement.from_wire(requirement.to_wire()) == requirement


@pytest.mark.parametrize(
    "wire",
    [
        None,
        {},
        {"cpu": None, "gpu": {}, "hard_disk": {"capacity": None}},
        {"unknown": [1], "testing": True, "cpu": {"x": 1}},
    ],
)
def test_what_is_missing_asks_for_nothing(wire: Any) -> None:
    assert DeviceRequirement.from_wire(wire) == DeviceRequirement()


def test_the_example_of_the_documentation() -> None:
    wire = {
        "cpu": {"count": 1},
        "gpu": {"count": 1},
        "hard_disk": {"capacity": 10737418240},
        "ram": {"capacity": 1073741824},
    }
    wanted = DeviceRequirement(cpu_count=1, gpu_count=1, disk_bytes=10 << 30, ram_bytes=1 << 30)
    assert DeviceRequirement.from_wire(wire) == wanted


@pytest.mark.parametrize(
    "value", [-1, True, 1.5, 1.0, "1", [1], {}, MAX_CAPACITY + 1, pytest.param(10**5000, id="huge")]
)
@pytest.mark.parametrize(
    ("part", "key"),
    [("cpu", "count"), ("gpu", "count"), ("gpu", "capacity"), ("hard_disk", "capacity"), ("ram", "capacity")],
)
def test_wrong_numbers_are_refused_with_a_short_text(part: str, key: str, value: object) -> None:
    with pytest.raises(LeaseError, match=f"{part}.{key}") as refused:
        DeviceRequirement.from_wire({part: {key: value}})
    assert refused.value.reason is Refusal.BAD_REQUEST
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize(
    ("part", "key", "most"),
    [
        ("cpu", "count", 65_536),
        ("gpu", "count", 65_536),
        ("gpu", "capacity", 1 << 60),
        ("hard_disk", "capacity", 1 << 60),
        ("ram", "capacity", 1 << 60),
    ],
)
def test_a_number_is_taken_up_to_its_bound(part: str, key: str, most: int) -> None:
    wire: Any = DeviceRequirement.from_wire({part: {key: most}}).to_wire()
    assert wire[part][key] == most
    with pytest.raises(LeaseError, match=f"not a whole number from 0 to {most}"):
        DeviceRequirement.from_wire({part: {key: most + 1}})


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (-1, "-1"),
        (1 << 60, str(1 << 60)),
        ((1 << 60) + 1, "a huge number"),
        (True, "True"),
        (1.5, "1.5"),
        ([1], "a list"),
    ],
)
def test_a_refusal_shows_what_came(value: object, shown: str) -> None:
    with pytest.raises(LeaseError) as refused:
        DeviceRequirement.from_wire({"cpu": {"count": value}})
    assert str(refused.value) == f"cpu.count is {shown}, not a whole number from 0 to 65536"


def test_a_gpu_s_type_is_printable_text_of_64_characters() -> None:
    assert DeviceRequirement.from_wire({"gpu": {"type": " L4 ".ljust(64)}}).gpu_type == "L4"
    for bad in ("x" * 65, "L4\n"):
        with pytest.raises(LeaseError, match=r"gpu\.type is .*, not printable text of at most 64 characters"):
            DeviceRequirement.from_wire({"gpu": {"type": bad}})


@pytest.mark.parametrize(
    "wire", [[], "x", 3, {"cpu": []}, {"gpu": 1}, {"ram": "x"}, {"gpu": {"type": 5}}, {"gpu": {"type": "x" * 65}}]
)
def test_wrong_shapes_are_refused(wire: Any) -> None:
    with pytest.raises(LeaseError) as refused:
        DeviceRequirement.from_wire(wire)
    assert refused.value.reason is Refusal.BAD_REQUEST


@settings(max_examples=150)
@given(
    st.dictionaries(st.sampled_from(["cpu", "gpu", "hard_disk", "ram", "testing", "x"]), json_values, max_size=6)
    | json_values
)
def test_any_json_is_a_requirement_or_a_bad_request(wire: Any) -> None:
    try:
        assert isinstance(DeviceRequirement.from_wire(wire), DeviceRequirement)
        assert isinstance(wants_probe(wire), bool)
    except LeaseError as error:
        reason = error.reason
    else:
        reason = Refusal.BAD_REQUEST
    assert reason is Refusal.BAD_REQUEST


def test_testing_asks_for_a_probe() -> None:
    assert wants_probe({"testing": True})
    assert not wants_probe({"testing": False})
    assert not wants_probe({})
    with pytest.raises(LeaseError):
        wants_probe({"testing": "yes"})


@pytest.mark.parametrize(
    ("requirement", "reason"),
    [
        (DeviceRequirement(cpu_count=9), Refusal.CPU_COUNT),
        (DeviceRequirement(ram_bytes=33 << 30), Refusal.RAM),
        (DeviceRequirement(disk_bytes=1 << 40), Refusal.DISK),
        (DeviceRequirement(gpu_count=3), Refusal.GPU_COUNT),
        (DeviceRequirement(gpu_count=1, gpu_type="H100"), Refusal.GPU_TYPE),
        (DeviceRequirement(gpu_type="H100"), Refusal.GPU_TYPE),
        (DeviceRequirement(gpu_count=2, gpu_type="a100"), Refusal.GPU_TYPE),
        (DeviceRequirement(gpu_count=1, gpu_type="l4", gpu_capacity_mib=23_035), Refusal.GPU_MEMORY),
        (DeviceRequirement(gpu_count=2, gpu_capacity_mib=80_000), Refusal.GPU_MEMORY),
        (DeviceRequirement(gpu_capacity_mib=81_921), Refusal.GPU_MEMORY),
        (DeviceRequirement(cpu_count=8, ram_bytes=32 << 30, disk_bytes=1 << 39, gpu_count=2), None),
        (DeviceRequirement(gpu_count=1, gpu_type="a100", gpu_capacity_mib=81_920), None),
        (DeviceRequirement(gpu_count=1, gpu_type="nvidia l4", gpu_capacity_mib=23_034), None),
        (DeviceRequirement(), None),
    ],
)
def test_what_falls_short(requirement: DeviceRequirement, reason: Refusal | None) -> None:
    missing = shortfall(requirement, MACHINE)
    assert (None if missing is None else missing.reason) is reason


@pytest.mark.parametrize(
    ("requirement", "text"),
    [
        (DeviceRequirement(cpu_count=9), "9 CPUs asked, 8 present"),
        (DeviceRequirement(ram_bytes=33 << 30), "33.00 GiB of RAM asked, 32.00 GiB free"),
        (DeviceRequirement(disk_bytes=1 << 40), "1024.00 GiB of disk asked, 512.00 GiB free"),
        (DeviceRequirement(gpu_count=3), "3 GPUs asked, 2 present"),
        (
            DeviceRequirement(gpu_type="H100"),
            "1 × 'H100' GPUs asked, present are: NVIDIA A100-SXM4-80GB, NVIDIA L4",
        ),
        (
            DeviceRequirement(gpu_count=2, gpu_capacity_mib=81_921),
            "2 GPUs of 81921 MiB asked, the largest present has 81920 MiB",
        ),
    ],
)
def test_what_falls_short_is_said_with_both_numbers(requirement: DeviceRequirement, text: str) -> None:
    missing = shortfall(requirement, MACHINE)
    assert missing is not None
    assert missing.text == text


def test_a_machine_without_gpus_serves_who_wants_none() -> None:
    bare = replace(MACHINE, gpus=())
    assert shortfall(DeviceRequirement(cpu_count=1), bare) is None
    missing = shortfall(DeviceRequirement(gpu_type="L4"), bare)
    assert missing is not None
    assert missing.reason is Refusal.GPU_TYPE
    assert missing.text == "1 × 'L4' GPUs asked, present are: none"


@given(requirements)
def test_what_does_not_fall_short_gets_its_gpus(requirement: DeviceRequirement) -> None:
    if shortfall(requirement, MACHINE) is None:
        gpus = leased_gpus(requirement, MACHINE)
        assert len(gpus) >= requirement.gpu_count
        assert all(gpu.capacity_mib >= requirement.gpu_capacity_mib for gpu in gpus)


def test_the_gpus_of_a_lease() -> None:
    assert [gpu.uuid for gpu in leased_gpus(DeviceRequirement(gpu_count=1, gpu_type="a100"), MACHINE)] == ["b"]
    assert [gpu.uuid for gpu in leased_gpus(DeviceRequirement(gpu_type="a100"), MACHINE)] == ["b"]
    assert [gpu.uuid for gpu in leased_gpus(DeviceRequirement(gpu_capacity_mib=81_920), MACHINE)] == ["b"]
    assert [gpu.uuid for gpu in leased_gpus(DeviceRequirement(gpu_count=2), MACHINE)] == ["a", "b"]
    assert leased_gpus(DeviceRequirement(cpu_count=1), MACHINE) == ()
