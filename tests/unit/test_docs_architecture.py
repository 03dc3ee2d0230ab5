"""What docs/developers.md says of the code's structure: every module it names exists, every arrow is an import."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "developers.md").read_text(encoding="utf-8")
ARROWS = re.findall(r"^ +([a-z_.]+) --> ([a-z_.]+)$", PAGE, flags=re.MULTILINE)
MODULES = sorted(
    set(re.findall(r"`(compute(?:\.\w+)+)`", PAGE)) | {f"compute.{end}" for arrow in ARROWS for end in arrow}
)
FILES = sorted(set(re.findall(r"[\"`]((?:neurons|tests|compute|docs)/[\w/.]+)[\"`]", PAGE)))


def source_of(module: str) -> Path:
    base = ROOT.joinpath(*module.split("."))
    return base.with_suffix(".py") if base.with_suffix(".py").exists() else base / "__init__.py"


def imports(module: str) -> set[str]:
    """The modules that ``module`` imports at its top or anywhere else."""
    found = set()
    for node in ast.walk(ast.parse(source_of(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_module_that_is_named_exists(module: str) -> None:
    assert source_of(module).is_file()


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_named_exists(file: str) -> None:
    assert (ROOT / file).exists()


@pytest.mark.parametrize(("importer", "imported"), ARROWS)
def test_an_arrow_is_an_import(importer: str, imported: str) -> None:
    assert f"compute.{imported}" in imports(f"compute.{importer}")


def test_the_diagram_is_there_and_goes_one_way() -> None:
    assert len(ARROWS) > 30
    pure = ("scoring", "weights", "selection", "access", "proof.verifier", "proof.fingerprint")
    outside = {"bittensor", "docker", "paramiko", "socket", "sqlite3", "subprocess", "asyncio", "requests", "aiohttp"}
    for module in pure:
        assert {name.split(".")[0] for name in imports(f"compute.{module}")} & outside == set()


def test_the_library_does_not_import_the_programs() -> None:
    for file in (ROOT / "compute").rglob("*.py"):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        assert not {name for name in imports(module) if name.split(".")[0] == "neurons"}, module


def test_the_names_in_the_instructions_are_in_the_modules() -> None:
    for name, module in re.findall(r"`(\w+)` in `(compute(?:\.\w+)+)`", PAGE):
        assert re.search(
            rf"^(class|def) {name}\b", source_of(module).read_text(encoding="utf-8"), flags=re.MULTILINE
        ), name
