"""A requirement as a person types it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.base.errors import UsageError
from compute.cli.requirement_text import parse_requirement
from compute.wire.requirements import DeviceRequirement

DOCUMENTED = (
    "{'cpu':{'count':1}, 'gpu':{'count':1}, 'hard_disk':{'capacity':10737418240}, 'ram':{'capacity':1073741824}}"
)


def test_the_documented_one_works_as_typed() -> None:
    assert parse_requirement(DOCUMENTED) == DeviceRequirement(
        cpu_count=1, gpu_count=1, disk_bytes=10 << 30, ram_bytes=1 << 30
    )


def test_json_works_as_well() -> None:
    assert parse_requirement(DOCUMENTED.replace("'", '"')) == parse_requirement(DOCUMENTED)


def test_a_part_left_out_asks_for_nothing() -> None:
    assert parse_requirement("{'gpu': {'type': 'L4', 'capacity': 20000}}") == DeviceRequirement(
        gpu_type="L4", gpu_capacity_mib=20_000
    )


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("", "''"),
        ("{}", "dict"),
        ("[1]", "list"),
        ("17", "17"),
        ("{'cpus': {'count': 1}}", "'cpus'"),
        ("{'gpu': 1}", "gpu is 1"),
        ("{'gpu': {'counts': 1}}", "'counts'"),
        ("{'cpu': {'capacity': 1}}", "'capacity'"),
        ("{'gpu': {'count': -1}}", "-1"),
        ("{'gpu': {'count': 1.0}}", "1.0"),
        ("{'gpu': {'count': True}}", "True"),
        ("{'gpu': {'count': '1'}}", "'1'"),
        ("{'gpu': {'count': 65537}}", "65537"),
        ("{'ram': {'capacity': 1e400}}", "inf"),
        ("{'ram': {'capacity': " + "9" * 400 + "}}", "a huge number"),
        ("{'gpu': {'type': 4}}", "4"),
        ("{'gpu': {'type': '" + "x" * 65 + "'}}", "xxx"),
        ("{1: {'count': 1}}", "1"),
        ("{[]: 1}", "neither JSON"),
        ("{'cpu': {'count': 1}", "neither JSON"),
        ("__import__('os').system('true')", "neither JSON"),
        ("{'cpu': {'count': (lambda: 1)()}}", "neither JSON"),
        ("(" * 1500, "neither JSON"),
        ("[" * 1500, "neither JSON"),
        ("'" + "x" * 3000 + "'", "3002 characters"),
        ("\0", "neither JSON"),
    ],
)
def test_what_is_wrong_is_quoted(text: str, quoted: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_requirement(text)
    assert quoted in str(caught.value)
    assert len(str(caught.value)) < 400


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
_parts = st.dictionaries(
    st.sampled_from(["cpu", "gpu", "ram", "hard_disk", "disk"]),
    st.dictionaries(st.sampled_from(["count", "capacity", "type"]), _values, max_size=3) | _values,
    max_size=4,
)


@settings(max_examples=80)
@given(st.text(max_size=60) | _values.map(repr) | _parts.map(repr))
def test_any_text_is_a_requirement_or_a_usage_error(text: str) -> None:
    try:
        requirement = parse_requirement(text)
    except UsageError:
        return
    assert isinstance(requirement, DeviceRequirement)


@settings(max_examples=60)
@given(
    st.builds(
        DeviceRequirement,
        cpu_count=st.integers(0, 1 << 16),
        gpu_count=st.integers(0, 1 << 16),
        gpu_capacity_mib=st.integers(0, 1 << 60),
        gpu_type=st.text("abc L40-", max_size=64).map(str.strip),
        disk_bytes=st.integers(0, 1 << 60),
        ram_bytes=st.integers(0, 1 << 60),
    ),
    st.sampled_from([repr, json.dumps]),
)
def test_every_requirement_can_be_typed(requirement: DeviceRequirement, spelling: object) -> None:
    assert callable(spelling)
    assert parse_requirement(spelling(requirement.to_wire())) == requirement
