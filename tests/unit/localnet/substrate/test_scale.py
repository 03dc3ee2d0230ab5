from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compute.localnet.substrate.scale import (
    Enum,
    Struct,
    TypeRegistry,
    Variant,
    compact,
    option,
    read_compact,
    split_types,
    text,
    vector,
)


@pytest.mark.parametrize(
    ("number", "encoded"),
    [  # the examples of the SCALE specification
        (0, "00"),
        (1, "04"),
        (42, "a8"),
        (63, "fc"),
        (64, "0101"),
        (69, "1501"),
        (16383, "fdff"),
        (16384, "02000100"),
        (65535, "feff0300"),
        (2**30 - 1, "feffffff"),
        (2**30, "0300000040"),
        (100_000_000_000_000, "0b00407a10f35a"),
        (2**64 - 1, "13ffffffffffffffff"),
    ],
)
def test_compact_numbers(number: int, encoded: str) -> None:
    assert compact(number).hex() == encoded
    assert read_compact(bytes.fromhex(encoded), 0) == (number, len(encoded) // 2)


@given(st.integers(0, 2**128 - 1), st.binary(max_size=4))
def test_a_compact_number_is_read_back_and_leaves_the_rest(number: int, rest: bytes) -> None:
    encoded = compact(number)
    assert read_compact(encoded + rest, 0) == (number, len(encoded))


@given(st.binary(max_size=8))
def test_reading_any_bytes_gives_a_canonical_number_or_a_value_error(data: bytes) -> None:
    try:
        number, end = read_compact(data, 0)
    except ValueError:
        return
    assert compact(number) == data[:end]


@pytest.mark.parametrize("data", ["", "01", "0200", "03ff", "0100", "02000000", "0300000000"])
def test_truncated_and_oversized_forms_are_refused(data: str) -> None:
    with pytest.raises(ValueError, match="compact integer"):
        read_compact(bytes.fromhex(data), 0)


def test_text_vector_and_option() -> None:
    assert text("λ") == b"\x08\xce\xbb"
    assert vector([b"a", b"bc"]) == b"\x08abc"
    assert option(None) == b"\x00"
    assert option(b"x") == b"\x01x"


def test_splitting_respects_brackets() -> None:
    assert split_types("u8,(u16,Vec<(u8,u8)>),[u8;32]") == ["u8", "(u16,Vec<(u8,u8)>)", "[u8;32]"]
    assert split_types("") == []


def test_a_type_is_numbered_once_and_may_refer_to_itself() -> None:
    registry = TypeRegistry({"Tree": Struct("a::Tree", (("children", "Vec<Tree>"),))})
    first = registry.id("Tree")
    assert registry.id("Tree") == first
    assert registry.id("Vec<Tree>") == first + 1
    assert registry.encode()[0] == 2 << 2


def test_enum_variants_carry_their_own_index() -> None:
    registry = TypeRegistry({"E": Enum("E", (Variant("A", 3), Variant("B", 7, (("x", "u8"),), ("why",))))})
    registry.id("E")
    assert b"\x04B" in registry.encode()
    assert text("why") in registry.encode()


@pytest.mark.parametrize("name", ["Nothing", "u7", "Vec<Nothing>"])
def test_unknown_types_are_named(name: str) -> None:
    with pytest.raises(KeyError, match="unknown type"):
        TypeRegistry({}).id(name)
