from __future__ import annotations

from enum import Enum
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.base.options import kinds

ALICE = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
BOB = "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty"


@pytest.mark.parametrize("word", ["true", "True", "TRUE", "yes", "on", "1", "t", "y", " true "])
def test_words_for_true(word: str) -> None:
    assert kinds.boolean(word) is True


@pytest.mark.parametrize("word", ["false", "False", "FALSE", "no", "off", "0", "f", "n"])
def test_words_for_false(word: str) -> None:
    assert kinds.boolean(word) is False


@pytest.mark.parametrize("word", ["", "maybe", "2", "None", "-1"])
def test_other_words_are_no_booleans(word: str) -> None:
    with pytest.raises(ValueError, match="neither true"):
        kinds.boolean(word)


def test_integer_bounds_are_inclusive() -> None:
    parse = kinds.integer(1, 64)
    assert (parse("1"), parse("64"), parse("+7")) == (1, 64, 7)
    for bad in ("0", "65", "-1", "1.0", "1_0", " 1", "٣", "", "1e3", "9" * 40):
        with pytest.raises(ValueError) as caught:
            parse(bad)
        assert str(caught.value) == f"{bad!r} is not a whole number from 1 to 64"


@given(st.text(max_size=8))
@settings(max_examples=60)
def test_integer_never_raises_anything_but_value_error(word: str) -> None:
    try:
        value = kinds.integer(0, 100)(word)
    except ValueError:
        return
    assert 0 <= value <= 100


def test_ip_address() -> None:
    assert kinds.ip_address("127.0.0.2") == "127.0.0.2"
    assert kinds.ip_address("::1") == "::1"
    for bad in ("localhost", "300.1.1.1", "1.2.3", ""):
        with pytest.raises(ValueError, match="is not an IP address"):
            kinds.ip_address(bad)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("", False),
    ],
)
def test_is_loopback(host: str, expected: bool) -> None:
    assert kinds.is_loopback(host) is expected


def test_keys() -> None:
    assert kinds.keys("") == kinds.keys("[]") == ()
    assert kinds.keys(ALICE) == (ALICE,)
    assert kinds.keys(f"{ALICE}, {BOB},{ALICE}") == (ALICE, BOB)


@pytest.mark.parametrize(
    "bad",
    [
        ALICE[:-1],
        ALICE[:-1] + "Z",
        ALICE.replace("w", "W"),
        f"{ALICE},",
        f"{ALICE};{BOB}",
        "miner",
        "0" * 48,
        "z" * 48,
        "1" * 48,
    ],
)
def test_a_mistyped_key_is_an_error(bad: str) -> None:
    with pytest.raises(ValueError, match="is not an ss58 address"):
        kinds.keys(bad)


def test_the_checksum_finds_one_wrong_letter() -> None:
    for position in range(1, len(ALICE)):
        for letter in BASE58.replace(ALICE[position], ""):
            with pytest.raises(ValueError):
                kinds.keys(ALICE[:position] + letter + ALICE[position + 1 :])


def test_text_and_path() -> None:
    assert kinds.text("a b") == "a b"
    assert kinds.anything("") == ""
    assert kinds.path("~/x.db") == Path.home() / "x.db"
    with pytest.raises(ValueError, match="is empty"):
        kinds.path(" ")


def test_choice_names_what_there_is() -> None:
    class Colour(Enum):
        RED = "red"
        BLUE = "blue"

    assert kinds.choice(Colour)("blue") is Colour.BLUE
    with pytest.raises(ValueError, match=r"'Red' is not one of red, blue"):
        kinds.choice(Colour)("Red")
