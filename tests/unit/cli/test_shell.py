"""The interactive shell."""

from __future__ import annotations

from typing import Any

import pytest

DOCUMENTED = (
    "{'cpu':{'count':1}, 'gpu':{'count':1}, 'hard_disk':{'capacity':10737418240}, 'ram':{'capacity':1073741824}}"
)
WORDS = (
    "a", "a_hotkey", "d", "list_a", "list_ah", "list_r", "p_hotkey", "dp_hotkey", "list_p", "help", "exit",
)  # fmt: skip


def days_left(world: Any) -> float:
    (record,) = world.service.allocations()
    return float((record.ends_at - world.clock.now()) / 86_400)


def test_help_lists_every_word(world: Any) -> None:
    ran = world.type("help")
    assert [line.split()[0] for line in ran.stdout.splitlines()] == list(WORDS)
    assert "90 days" in ran.stdout
    assert "30 days" in ran.stdout


def test_a_asks_for_requirement_and_days(world: Any) -> None:
    ran = world.type("a", DOCUMENTED, "7", "exit", "never read")
    assert ran.code == 0
    assert world.keyboard.questions == [
        "register> ",
        "requirement, empty for one GPU of any kind: ",
        "days [90]: ",
        "register> ",
    ]
    assert days_left(world) == 7
    assert "1 × NVIDIA L4" in ran.stdout


@pytest.mark.parametrize("line", ["a", f"a {DOCUMENTED}"])
def test_a_lasts_ninety_days_by_default(world: Any, line: str) -> None:
    world.type(*[line, "", ""] if line == "a" else [line, ""])
    assert days_left(world) == 90


@pytest.mark.parametrize("inline", [True, False])
def test_a_hotkey_lasts_thirty_days_by_default(world: Any, inline: bool) -> None:
    hotkey = world.large.peer.hotkey
    world.type(*([f"a_hotkey {hotkey}", ""] if inline else ["a_hotkey", hotkey, ""]))
    assert days_left(world) == 30
    assert world.large.owner is not None


def test_the_lists(world: Any) -> None:
    ran = world.type("a", "", "", "list_a", "list_ah", "list_r")
    (record,) = world.service.allocations()
    assert record.name in ran.stdout
    assert record.hotkey in ran.stdout.splitlines()
    assert "NVIDIA H200" in ran.stdout


def test_d_shows_what_there_is_and_asks(world: Any) -> None:
    world.type("a", "", "")
    (record,) = world.service.allocations()
    world.keyboard.is_interactive = True
    ran = world.type("d", record.name, "y")
    assert record.name in ran.stdout
    assert world.service.allocations() == []
    assert world.small.owner is None


def test_d_in_a_pipe_is_refused_with_the_line_to_run(world: Any) -> None:
    world.type("a", "", "")
    (record,) = world.service.allocations()
    ran = world.type(f"d {record.name}")
    assert f"register.py deallocate {record.name} --yes" in ran.stderr
    assert world.service.allocations() == [record]


def test_penalties(world: Any) -> None:
    hotkey = world.small.peer.hotkey
    assert hotkey in world.type(f"p_hotkey {hotkey}", "list_p").stdout
    world.type("dp_hotkey", hotkey)
    assert world.service.penalized() == []


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["frobnicate"], "unknown word 'frobnicate'"),
        (["a nonsense", ""], "neither JSON nor a dictionary"),
        (["a", "", "many"], "'many' is not a number of days"),
        (["a", "", "9999"], "9999 days"),
        (["a_hotkey xyz", ""], "not a hotkey"),
        (["d nobody"], "no allocation 'nobody'"),
        (["d 'x"], "No closing quotation"),
        (["d", ""], "nothing named"),
    ],
)
def test_a_mistake_is_explained_and_the_shell_goes_on(world: Any, lines: list[str], said: str) -> None:
    ran = world.type(*lines, "list_p")
    assert ran.code == 0
    assert said in ran.stderr
    assert "nobody is penalized" in ran.stderr


def test_an_empty_line_does_nothing(world: Any) -> None:
    world.type("a", "", "", "", "  ", "list_a")
    assert world.keyboard.questions[3:] == ["register> "] * 4
    assert len(world.service.allocations()) == 1


def test_the_end_of_input_in_a_question_ends_it(world: Any) -> None:
    ran = world.type("a")
    assert ran.code == 0
    assert world.service.allocations() == []
