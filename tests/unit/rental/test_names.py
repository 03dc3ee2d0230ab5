"""Memorable names."""

from __future__ import annotations

import random

from compute.rental import names
from compute.rental.names import is_name, new_name

ALL = {f"{adjective}-{animal}" for adjective in names._ADJECTIVES.split() for animal in names._ANIMALS.split()}


def test_every_made_up_name_is_a_name() -> None:
    assert len(ALL) > 3000
    assert all(map(is_name, ALL))


def test_a_new_name_is_not_taken() -> None:
    (last,) = list(ALL)[:1]
    assert new_name(ALL - {last}, random.Random(1)) == last


def test_when_all_plain_names_are_taken_they_are_numbered() -> None:
    taken = set(ALL)
    for _ in range(3):
        name = new_name(taken, random.Random(2))
        assert is_name(name)
        assert name not in taken
        taken.add(name)
