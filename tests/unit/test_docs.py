"""The documentation and the program say the same: options, defaults, commands, scores, keys, reasons and links."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from compute.base.options.option import Option, OptionGroup, options_of
from compute.base.reasons import AccessReason, ProofReason, Reason, Refusal, UpdateReason
from compute.cli.parser import EXAMPLE_REQUIREMENT, build_parser, parse_renter
from compute.incentive.config import load_config
from compute.incentive.scoring import score
from compute.miner.options import GROUPS as MINER
from compute.miner.options import parse_miner
from compute.proof.models import ProofSettings
from compute.validator.options import GROUPS as VALIDATOR
from compute.validator.options import parse_validator

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
OPTIONS = TEXTS[ROOT / "docs" / "options.md"]

RENTING = TEXTS[ROOT / "docs" / "renting.md"]

# Options of other programs that the pages speak of.
OTHERS = {
    *("--index-url", "--help", "--name", "--interpreter", "--network", "--detach", "--version"),
    *("--now", "--rm", "--gpus", "--dearmor", "--runtime", "--port", "--block-time", "--stake"),
    *("--keep", "--miners", "--set"),
    *("--only", "--stop-exit-codes", "--exp-backoff-restart-delay", "--kill-timeout"),
    *("--oneline", "--rebase", "--set-upstream-to"),
}


def renter_commands() -> dict[str, argparse.ArgumentParser]:
    """The sub-commands of register.py."""
    for action in build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("register.py has no sub-commands")


def script_options(name: str) -> set[str]:
    """The options in the source of one of test-scripts."""
    source = (ROOT / "test-scripts" / name).read_text(encoding="utf-8")
    return set(re.findall(r"\"(--[a-z][\w.-]*)\"", source))


def renter_options() -> set[str]:
    return {
        name for command in renter_commands().values() for action in command._actions for name in action.option_strings
    }


PARSE: dict[str, Callable[[Sequence[str], Mapping[str, str]], object]] = {
    "miner": parse_miner,
    "validator": parse_validator,
    "register": parse_renter,
}


def rows(groups: Sequence[type[OptionGroup]]) -> list[str]:
    """One line of a Markdown table per option, as docs/options.md must have it."""
    return [row(option) for group in groups for option in options_of(group)]


def row(option: Option) -> str:
    value = "[BOOL]" if option.is_flag else option.metavar.replace("|", "\\|")
    names = f"`--{option.name} {value}`" + (f", `--{option.negation}`" if option.negation else "")
    variable = f"`${option.variable}`, else " if option.variable else ""
    help_text = option.help.replace("|", "\\|")
    return f"| {names} | {variable}{option.describe_default()} | {help_text} |"


def section(title: str) -> str:
    return OPTIONS.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize(("title", "groups"), [("Miner", MINER), ("Validator", VALIDATOR)])
def test_the_option_tables_are_the_parsers(title: str, groups: Sequence[type[OptionGroup]]) -> None:
    written = [line for line in section(title).splitlines() if line.startswith("| `--")]
    expected = rows(groups)
    assert sorted(set(expected) - set(written)) == [], "rows that docs/options.md lacks"
    assert sorted(set(written) - set(expected)) == [], "rows of docs/options.md that no parser knows"
    assert len(written) == len(expected)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_speaks_of_an_option_that_does_not_exist(page: Path) -> None:
    known = {f"--{name}" for group in (*MINER, *VALIDATOR) for option in options_of(group) for name in names(option)}
    found = re.findall(r"(?<![\w-])--[a-z][\w.*-]*", TEXTS[page])
    # "--wallet.*" is a family, and a full stop may follow a name.
    named = {name.rstrip(".") for name in found if not name.endswith(".*")}
    scripts = script_options("benchmark.py") | script_options("gpu_check.py")
    assert named - known - renter_options() - scripts - OTHERS == set()
    for family in {name.removesuffix("*") for name in found} - set(found):
        assert any(name.startswith(family) for name in known), family


def test_the_page_on_renting_has_every_command_and_option() -> None:
    for command in renter_commands():
        assert re.search(rf"^\|.*`{command}`", RENTING, flags=re.MULTILINE), command
    shared = {f"--{name}" for group in MINER for option in options_of(group) for name in names(option)}
    for name in renter_options() - shared - {"-h", "--help"}:
        assert re.search(rf"`{name}[ `]", RENTING), name
    assert EXAMPLE_REQUIREMENT in RENTING
    assert EXAMPLE_REQUIREMENT in TEXTS[ROOT / "README.md"]


def names(option: Option) -> list[str]:
    return [option.name, *([option.negation] if option.negation else [])]


def command_lines() -> list[tuple[str, str]]:
    """(neuron, arguments) of every command of the pages that starts a neuron or register.py."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash[ \w]*\n(.*?)```", TEXTS[page], flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                started = re.search(r"neurons/(miner|validator|register)\.py(.*)", line)
                if started:
                    arguments = started[2].split(" -- ", 1)[1] if "pm2 start" in line else started[2]
                    found.append((started[1], arguments))
    return found


@pytest.mark.parametrize(("neuron", "arguments"), command_lines())
def test_the_commands_of_the_pages_are_valid(neuron: str, arguments: str) -> None:
    PARSE[neuron](shlex.split(arguments, comments=True), {})


def test_there_are_commands_on_the_pages() -> None:
    assert {neuron for neuron, _ in command_lines()} == set(PARSE)
    assert len(command_lines()) >= 8


def test_the_table_of_scores_is_that_of_config_yaml() -> None:
    table = re.findall(r"^\| (NVIDIA [^|]+) \| ([\d.]+) \|$", TEXTS[ROOT / "README.md"], flags=re.MULTILINE)
    assert {name: float(base) for name, base in table} == dict(load_config().scores)


def test_the_examples_of_scores_are_what_the_program_computes() -> None:
    readme, scores = TEXTS[ROOT / "README.md"], load_config().scores
    assert "= **50**" in readme
    assert score("NVIDIA H200", 8, gpu_scores=scores).total == 50.0
    assert "**4.25**" in readme
    assert score("NVIDIA RTX 4090", 2, gpu_scores=scores, allocated=True).total == 4.25


def test_every_key_of_config_yaml_is_explained_and_none_else() -> None:
    page = TEXTS[ROOT / "docs" / "config.md"]
    document = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    settings = {field.name for field in dataclasses.fields(ProofSettings)}
    # Between the heading of one part and that of the next, the first column of the table.
    for title, keys in [
        ("gpu_performance", set(document["gpu_performance"])),
        ("merkle_proof", {*document["merkle_proof"], *settings}),
    ]:
        part = page.split(f"\n## {title}\n")[1].split("\n## ")[0]
        written = {
            key for row in re.findall(r"^\| (`[^|]*`) \|", part, flags=re.MULTILINE) for key in re.findall(r"\w+", row)
        }
        assert written == keys
    assert set(re.findall(r"^## (\w+)$", page, flags=re.MULTILINE)) == set(document)


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("Of a machine's proof", ProofReason),
        ("Of a refused lease", Refusal),
        ("Of a caller", AccessReason),
        ("Of an update", UpdateReason),
    ],
)
def test_every_reason_code_is_explained(title: str, kind: type[Reason]) -> None:
    page = TEXTS[ROOT / "docs" / "reasons.md"]
    part = page.split(f"## {title}\n")[1].split("\n## ")[0]
    written = re.findall(r"^\| `(\w+)` \|", part, flags=re.MULTILINE)
    assert sorted(written) == sorted(str(reason) for reason in kind)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_the_pages_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"(?<!!)\[[^\]]+\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", TEXTS[page]):
        there = (page.parent / target).resolve() if target else page
        assert there.is_file(), f"{page.name} links to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", TEXTS[there], flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in slugs, f"{page.name} links to #{anchor} of {there.name}"


def read_in(pattern: str, files: Iterable[Path]) -> set[str]:
    """What ``pattern`` finds in the text of any of ``files``."""
    return {
        name for file in files for name in re.findall(pattern, file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }


def variables_of_the_code() -> set[str]:
    """The variables that the code reads by name, besides those of options."""
    python = [*(ROOT / "compute").rglob("*.py"), *(ROOT / "neurons").glob("*.py")]
    found = read_in(r'^[A-Z_]*_VARIABLE = "([A-Z0-9_]+)"', python)
    found |= read_in(r'environ(?:\.get\(|\[)"([A-Z0-9_]+)"(?!\] =)', python)
    # Every program that starts Python knows this one.
    return found - {"PYTHONPATH"}


def variables_of(page: str, part: str = "") -> set[str]:
    """The variables in the tables of a page, under its title or under the heading ``part``."""
    text = TEXTS[ROOT / "docs" / page]
    text = text.split(f"\n## {part}\n")[1] if part else text
    return set(re.findall(r"^\| `([A-Z0-9_]+)` \|", text.partition("\n## ")[0], flags=re.MULTILINE))


OF_OPTIONS = {option.variable for group in (*MINER, *VALIDATOR) for option in options_of(group) if option.variable}


def test_every_variable_that_the_code_reads_is_in_the_documentation_and_none_else() -> None:
    assert variables_of("environment.md") == variables_of_the_code() | {"SQLITE_DB_PATH"}
    assert variables_of("running.md", "Under pm2") == read_in(r"process\.env\.(\w+)", [ROOT / "ecosystem.config.js"])
    of_tests = read_in(r'"(COMPUTE_[A-Z0-9_]+)"', (ROOT / "tests").rglob("*.py"))
    assert variables_of("developers.md", "Tests") == of_tests - {"COMPUTE_LEASE"}


def test_the_example_environment_names_every_variable_and_none_else() -> None:
    given = read_in(r"^#?([A-Z0-9_]+)=", [ROOT / ".env.example"])
    # Where the engine is and what wandb does belong to the machine, not to a neuron's secrets.
    assert given - OF_OPTIONS == variables_of("environment.md") - {"WANDB_MODE", "DOCKER_HOST"} - OF_OPTIONS
    assert given & OF_OPTIONS >= {"SQLITE_DB_PATH", "BT_WALLET_NAME", "BT_AXON_EXTERNAL_IP"}
