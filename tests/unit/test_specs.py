import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.specs import MAX_SPECS_CHARACTERS, Gpu, MachineSpecs, SpecsError, parse_specs

GPU = Gpu(name="NVIDIA H100 80GB HBM3", capacity_mib=81559, uuid="GPU-1", driver="570.1", pci="0000:01:00.0")
MACHINE = MachineSpecs(
    cpu_count=32,
    cpu_frequency_mhz=2600.0,
    ram_total=256 << 30,
    ram_available=200 << 30,
    ram_used=56 << 30,
    ram_free=100 << 30,
    disk_total=2 << 40,
    disk_used=1 << 40,
    disk_free=1 << 40,
    gpus=(GPU, replace(GPU, uuid="GPU-2")),
    has_docker=True,
    version=200,
)


def wire() -> dict[str, object]:
    return json.loads(MACHINE.to_json())


def test_round_trip() -> None:
    assert parse_specs(MACHINE.to_json()) == MACHINE


def test_the_wires_names() -> None:
    body = wire()
    assert body["gpu"]["count"] == 2
    assert body["gpu"]["capacity"] == 2 * 81559
    assert body["gpu"]["details"][0]["name"] == "NVIDIA H100 80GB HBM3"
    assert body["cpu"] == {"count": 32, "frequency": 2600.0}
    assert set(body["ram"]) >= {"total", "available", "used", "free", "swap_total", "swap_used", "swap_free"}


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (("cpu", "count"), -1, "cpu.count"),
        (("cpu", "count"), "many", "cpu.count"),
        (("gpu", "count"), 3, "gpu.count is 3"),
        (("gpu", "count"), 10**9, "gpu.count"),
        (("gpu", "details"), [{"name": "x" * 200, "capacity": 1}] * 2, "gpu.details.0.name"),
        (("gpu", "details"), [{"name": "a\nb", "capacity": 1}] * 2, "gpu.details.0.name"),
        (("gpu", "details"), "none", "gpu.details"),
        (("ram", "total"), 1 << 80, "ram.total"),
        (("hard_disk",), None, "hard_disk"),
    ],
)
def test_bad_fields_say_where(path: tuple[str, ...], value: object, where: str) -> None:
    body = wire()
    target = body
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(SpecsError, match=where):
        parse_specs(json.dumps(body))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "[" * 20_000, "9" * 5_000, '{"cpu": NaN}', "{" * 100, " " * (MAX_SPECS_CHARACTERS + 1)],
)
def test_hostile_text_is_an_error_of_ours(text: str) -> None:
    with pytest.raises(SpecsError):
        parse_specs(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["cpu", "gpu", "ram", "hard_disk", "version", "has_docker"]), JSON)
def test_any_section_may_be_anything(section: str, value: object) -> None:
    body = {**wire(), section: value}
    try:
        parsed = parse_specs(json.dumps(body))
    except SpecsError:
        return
    assert len(parsed.gpus) <= 64


def test_hardware_key_sees_what_matters() -> None:
    assert replace(MACHINE, ram_free=0, disk_free=0).hardware_key() == MACHINE.hardware_key()
    assert MACHINE.with_gpus((GPU,)).hardware_key() != MACHINE.hardware_key()
    assert replace(MACHINE, cpu_count=16).hardware_key() != MACHINE.hardware_key()
