"""No option without a test that shows what it does to a running neuron."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

import pytest

from compute.base.options.option import OptionGroup, options_of
from compute.miner.options import GROUPS as MINER
from compute.validator.options import GROUPS as VALIDATOR


def shown(role: str) -> set[str]:
    """The options in the marks of the tests beside this one: ``@pytest.mark.shows(role, *("netuid", …), "json")``."""
    found: set[str] = set()
    for file in Path(__file__).parent.glob("test_*_options.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.shows":
                words = [word.value for word in ast.walk(node) if isinstance(word, ast.Constant)]
                found |= set(words[1:]) if words[0] == role else set()
    return found


@pytest.mark.parametrize(("role", "groups"), [("miner", MINER), ("validator", VALIDATOR)])
def test_every_option_is_shown_by_a_test(role: str, groups: Sequence[type[OptionGroup]]) -> None:
    options = {option.name for group in groups for option in options_of(group)}
    missing = options - shown(role)
    assert not missing, (
        f"no test shows what these options do to a running {role}: {', '.join(sorted(missing))}. Give them to a neuron "
        f"in tests/integration/options/test_{role}_options.py, assert what they change, and name them in that test's "
        "@pytest.mark.shows"
    )
    assert shown(role) <= options, "shown, and no option any more"
