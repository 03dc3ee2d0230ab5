"""Every command in the manual is run here, or its block says what it needs that is not here (docs/developers.md)."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import benchmark
import pytest

from compute.base.contention import EXIT_BUSY

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WORDS = {"", "outside", "gpu", "quiet", "ci"}
IN_ORDER = "localnet.md"
"""The page that test_manual.py follows from its beginning to its end."""
TYPED = {
    "python neurons/register.py": "exit\n",
    "python test-scripts/benchmark.py hashcat": "6\n1\n\n\n",
}
"""What a person types into those commands that ask."""
_SECONDS = 600


def blocks() -> list[tuple[str, str, list[str]]]:
    """(page, word, commands) of every block of shell commands; continued lines are one command, comments none."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for word, block in re.findall(r"^ *```(?:bash|sh)\b *(.*)\n((?:.*\n)*?) *```$", text, flags=re.MULTILINE):
            lines = [line.split("  #")[0].strip() for line in block.replace("\\\n", " ").splitlines()]
            found.append((page.name, word, [line for line in lines if line and not line.startswith("#")]))
    return found


BLOCKS = blocks()
HERE = sorted({line for page, word, lines in BLOCKS if not word and page != IN_ORDER for line in lines})

MEASURING = [line for line in HERE if line.startswith(("hashcat", "python test-scripts/"))]
"""Those that measure this machine, which takes seconds to a minute each."""


def test_every_block_is_run_or_says_why_not() -> None:
    assert {word for _, word, _ in BLOCKS} == WORDS
    fences = sum(len(re.findall(r"```(?:bash|sh|shell|console)\b", page.read_text(encoding="utf-8"))) for page in PAGES)
    assert len(BLOCKS) == fences
    assert {word for page, word, _ in BLOCKS if page == IN_ORDER} == {"", "ci"}


def test_what_is_left_to_ci_is_there() -> None:
    scripts = "".join(file.read_text(encoding="utf-8") for file in (ROOT / ".ci").iterdir())
    for _, word, lines in BLOCKS:
        for line in lines if word == "ci" else []:
            if line.startswith("python -m pytest "):
                # A part of `make test`.
                assert all((ROOT / word).is_file() for word in line.split()[3:] if not word.startswith("-"))
                continue
            program, target, *variables = shlex.split(line)
            assert program == "make"
            assert re.search(rf"^make (?:-\S+ )*{target}\b", scripts, flags=re.MULTILINE), line
            assert all(variable in scripts for variable in variables), line


def test_only_what_leaves_the_repository_alone_is_run_here() -> None:
    # The files of the clone are links into the repository, and every target of the Makefile begins by installing.
    assert {line.split()[0] for line in HERE} == {"python", "hashcat"}


def test_what_is_typed_is_typed_into_something() -> None:
    assert TYPED.keys() <= set(HERE)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder that looks like the repository; what a command writes there, stays there."""
    for entry in ROOT.iterdir():
        if not entry.name.startswith(".") and entry.name not in ("build", "database.db", "database.data"):
            (tmp_path / entry.name).symlink_to(entry)
    return tmp_path


@pytest.mark.parametrize("line", [line for line in MEASURING if line.startswith("python test-scripts/benchmark.py ")])
def test_the_benchmark_has_the_options_of_a_command_that_takes_long(line: str) -> None:
    benchmark._parser().parse_args(shlex.split(line)[2:])


@pytest.mark.e2e
@pytest.mark.parametrize(
    "line", [pytest.param(line, marks=pytest.mark.long if line in MEASURING else ()) for line in HERE]
)
def test_a_command(clone: Path, line: str) -> None:
    if "hashcat" in line and shutil.which("hashcat") is None:
        pytest.skip("there is no hashcat. Install it with: apt-get install -y hashcat pocl-opencl-icd")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("BT_")}
    with subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", line],
        cwd=clone,
        env={
            **inherited,
            "HOME": str(clone),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            _, errors = process.communicate(TYPED.get(line, ""), timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            _, errors = process.communicate()
    # A measurement says so where something else used the machine.
    assert process.returncode == 0 or (process.returncode == EXIT_BUSY and line in MEASURING), errors[-2000:]
