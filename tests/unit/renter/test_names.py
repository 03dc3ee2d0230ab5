"""Memorable names."""

from __future__ import annotations

import random

from compute.renter.names import is_name, new_name


def test_a_new_name_is_a_name_and_not_taken() -> None:
    taken: set[str] = set()
    for _ in range(300):
        name = new_name(taken, random.Random(1))
        assert is_name(name)
        assert name not in taken
        taken.add(name)


def test_when_all_plain_names_are_taken_they_are_numbered() -> None:
    taken: set[str] = set()
    while (name := new_name(taken, random.Random(2))).count("-") == 1:
        taken.add(name)
    assert name.rsplit("-", 1)[1] == "2"
    assert is_name(name)
