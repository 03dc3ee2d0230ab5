import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.wire.receipts import Receipt
from compute.wire.specs import Gpu, MachineSpecs, SpecsError, hardware_changes, machine_of, parse_specs

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


def changed(path: str, value: object) -> str:
    """The machine's JSON with one field changed: keys and indices, with dots between."""
    body = wire()
    *outer, last = path.split(".")
    target: Any = body
    for key in outer:
        target = target[int(key) if key.isdigit() else key]
    target[last] = value
    return json.dumps(body)


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
    with pytest.raises(SpecsError, match=where):
        parse_specs(changed(".".join(path), value))


_SIZES = {"total": 1 << 60, "used": 1 << 60, "free": 1 << 60}
MOST: dict[str, float] = {
    "cpu.count": 1 << 16,
    "cpu.frequency": 1e6,
    "gpu.graphics_speed": 1e6,
    "gpu.memory_speed": 1e6,
    "gpu.details.0.capacity": 1 << 24,
    **{f"hard_disk.{name}": most for name, most in _SIZES.items()},
    **{f"ram.{name}": 1 << 60 for name in (*_SIZES, "available", "swap_total", "swap_used", "swap_free")},
    "version": 1 << 20,
}


@pytest.mark.parametrize("path", MOST)
def test_a_number_is_read_up_to_its_bounds(path: str) -> None:
    for good in (0, MOST[path]):
        assert isinstance(parse_specs(changed(path, good)), MachineSpecs)
    for bad in (-1, MOST[path] + 1):
        with pytest.raises(SpecsError, match=f"specs: {path}: "):
            parse_specs(changed(path, bad))


@pytest.mark.parametrize(("field", "most"), [("name", 128), ("uuid", 128), ("driver", 64), ("pci", 64)])
def test_a_text_is_read_up_to_its_length(field: str, most: int) -> None:
    path = f"gpu.details.0.{field}"
    for good in ("x", "x" * most):
        assert getattr(parse_specs(changed(path, good)).gpus[0], field) == good
    for bad in ("x" * (most + 1), *([""] if field == "name" else [])):
        with pytest.raises(SpecsError, match=f"specs: {path}: "):
            parse_specs(changed(path, bad))


def test_sixty_four_gpus_are_read_and_no_more() -> None:
    assert len(parse_specs(MACHINE.with_gpus((GPU,) * 64).to_json()).gpus) == 64
    for bad in (MACHINE.with_gpus((GPU,) * 65).to_json(), changed("gpu.count", -1)):
        with pytest.raises(SpecsError, match=r"specs: gpu\.count: "):
            parse_specs(bad)


def test_what_is_missing_is_nothing() -> None:
    assert parse_specs('{"cpu":{},"gpu":{},"hard_disk":{},"ram":{}}') == MachineSpecs(*([0] * 9))


def test_a_text_of_64_KiB_is_read_and_a_longer_one_is_not() -> None:
    text = MACHINE.to_json()
    assert parse_specs(text.ljust(65_536)) == MACHINE
    with pytest.raises(SpecsError, match="65537 characters long"):
        parse_specs(text.ljust(65_537))


def test_specs_that_were_kept_may_have_gone_or_be_unreadable() -> None:
    assert machine_of(MACHINE.to_json()) == MACHINE
    assert machine_of(None) is None
    assert machine_of("{}") is None


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "[" * 20_000, "9" * 5_000, '{"cpu": NaN}', "{" * 100, " " * 65_537],
)
def test_hostile_text_is_an_error_of_ours(text: str) -> None:
    with pytest.raises(SpecsError):
        parse_specs(text)


def test_text_that_is_not_json_is_said_to_be_none() -> None:
    with pytest.raises(SpecsError, match="not JSON"):
        parse_specs("{")


def documents(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[object]:
    return st.recursive(
        st.none() | st.booleans() | st.integers() | numbers | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=12,
    )


JSON = documents(st.floats(allow_nan=False, allow_infinity=False))
ALMOST_JSON = documents(st.floats())
"""As Python writes and reads it: with NaN and Infinity."""


@settings(max_examples=150)
@given(st.sampled_from(["cpu", "gpu", "ram", "hard_disk", "version", "has_docker"]), ALMOST_JSON)
def test_any_section_may_be_anything(section: str, value: object) -> None:
    body = {**wire(), section: value}
    try:
        parsed = parse_specs(json.dumps(body))
    except SpecsError:
        return
    assert len(parsed.gpus) <= 64


def test_what_costs_more_than_its_bytes_is_not_read() -> None:
    assert parse_specs(json.dumps({**wire(), "more": [0] * 1000})) == MACHINE
    with pytest.raises(SpecsError, match="more than 4096 parts"):
        parse_specs(json.dumps({**wire(), "more": [0] * 4096}))


def test_what_changes_by_itself_is_no_change_of_hardware() -> None:
    busy = replace(
        MACHINE, ram_free=0, ram_available=0, disk_free=0, disk_total=1, cpu_frequency_mhz=800.0, version=201
    )
    assert hardware_changes(MACHINE, busy) is None
    # A new kernel and a new driver keep a little more, or less, for themselves; cards are listed in any order.
    updated = MACHINE.with_gpus(
        tuple(replace(gpu, driver="575.2", capacity_mib=gpu.capacity_mib - 300) for gpu in reversed(MACHINE.gpus))
    )
    assert hardware_changes(MACHINE, replace(updated, ram_total=MACHINE.ram_total - (1 << 30))) is None
    assert hardware_changes(MACHINE, MACHINE.with_gpus((replace(GPU, uuid=None),) * 2)) is None


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (MACHINE.with_gpus((GPU,)), "GPUs were 2 x NVIDIA H100 80GB HBM3, now 1 x NVIDIA H100 80GB HBM3"),
        (MACHINE.with_gpus(()), "GPUs were 2 x NVIDIA H100 80GB HBM3, now none"),
        (MACHINE.with_gpus((GPU, replace(GPU, name="NVIDIA L4"))), "now 1 x NVIDIA H100 80GB HBM3, 1 x NVIDIA L4"),
        (MACHINE.with_gpus((GPU, replace(GPU, uuid="GPU-3"))), "other GPUs of the same kind"),
        (MACHINE.with_gpus((GPU, replace(GPU, uuid="GPU-2", capacity_mib=40_960))), "other GPUs of the same kind"),
        (replace(MACHINE, cpu_count=16), "CPUs were 32, now 16"),
        (replace(MACHINE, ram_total=128 << 30), "RAM was 256.0 GiB, now 128.0 GiB"),
    ],
)
def test_changed_hardware_is_said_in_words(machine: MachineSpecs, words: str) -> None:
    assert words in (hardware_changes(MACHINE, machine) or "")


def test_a_receipt_goes_with_the_specs() -> None:
    receipt = Receipt("5Validator", "5Miner", "SHA256:" + "A" * 43, 4444, 1_700_000_000, "0x" + "ab" * 64)
    rented = replace(MACHINE, receipt=receipt)
    assert parse_specs(rented.to_json()) == rented
    assert "receipt" not in wire()


@settings(max_examples=150)
@given(JSON)
def test_a_malformed_receipt_takes_nothing_away(value: object) -> None:
    assert parse_specs(json.dumps({**wire(), "receipt": value})) == MACHINE
