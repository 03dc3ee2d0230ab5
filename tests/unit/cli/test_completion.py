"""The completion scripts, read and asked by the shells themselves."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from compute.cli.completion import completion
from compute.cli.parser import build_parser
from tests.waiting import DEADLINE_SECONDS

# What `register.py list` prints in a pipe.
LIST = "NAME MACHINE\n----\nbrisk-otter L4\ncalm-lark H100\n"


def completed(folder: Path, *words: str) -> list[str]:
    """What bash offers for the last of ``words``."""
    program = folder / "register.py"
    program.write_text(f"#!/bin/sh\nprintf '%s' '{LIST}'\n")
    program.chmod(0o755)
    script = completion(build_parser(), "bash") + (
        '\nCOMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()\n'
        "function=$(complete -p register.py | sed 's/.* -F \\([^ ]*\\) .*/\\1/')\n"
        '"$function" register.py "${COMP_WORDS[COMP_CWORD]}" ""\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    ran = subprocess.run(
        ["bash", "-s", "--", "register.py", *words],
        input=script,
        env={"PATH": f"{folder}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=True,
    )
    return ran.stdout.split()


def test_bash_completes_commands_options_choices_and_names(tmp_path: Path) -> None:
    assert completed(tmp_path, "deal") == ["deallocate"]
    assert completed(tmp_path, "offers", "--min-v") == ["--min-vram"]
    assert completed(tmp_path, "offers", "--sort", "u") == ["uid"]
    assert completed(tmp_path, "list", "--subtensor.n") == ["--subtensor.network"]
    for command in ("show", "ssh", "exec", "deallocate", "pause", "extend"):
        assert completed(tmp_path, command, "b") == ["brisk-otter"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_reads_its_script() -> None:
    script = completion(build_parser(), "zsh")
    assert "compadd -a names" in script
    ran = subprocess.run(
        ["zsh", "-fc", 'autoload -Uz compinit && compinit -u -D; eval "$1"; print $_comps[register.py]', "-", script],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=True,
    )
    assert ran.stdout.strip() == "_shtab_register_py", ran.stderr
