"""The house: rooms below rooms, no circles, no heap; and what docs/developers.md says of it exists."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "developers.md").read_text(encoding="utf-8")
SOURCES = sorted([*(ROOT / "compute").rglob("*.py"), *(ROOT / "neurons").glob("*.py")])
PURE = (
    "incentive.scoring",
    "incentive.weights",
    "rental.selection",
    "chain.access_lists",
    "miner.access",
    "validator.eligibility",
    "proof.verifier",
    "proof.fingerprint",
)
OUTSIDE = {"bittensor", "docker", "paramiko", "socket", "sqlite3", "subprocess", "asyncio", "requests", "aiohttp"}


def module_of(source: Path) -> str:
    name = ".".join(source.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_of(source): source for source in SOURCES}


def imports(source: Path) -> set[str]:
    """The modules that a file imports, at its top or anywhere else."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{name.name}" for name in node.names} & MODULES.keys()
            found |= submodules or {node.module}
    return found


def room_of(module: str) -> str:
    """``compute.base.ssh`` → ``base``; ``neurons`` is a room too."""
    parts = module.split(".")
    return parts[1] if parts[0] == "compute" and len(parts) > 1 else parts[0]


def test_no_two_rooms_import_each_other_nor_round_a_corner() -> None:
    rooms: dict[str, set[str]] = defaultdict(set)
    for module, source in MODULES.items():
        ours = {room_of(name) for name in imports(source) if name.split(".")[0] in ("compute", "neurons")}
        rooms[room_of(module)] |= ours - {room_of(module), "compute"}
    # Raises CycleError, which names the circle.
    order = tuple(TopologicalSorter(rooms).static_order())
    assert order.index("base") < order.index("wire") < order.index("miner") < order.index("neurons")


def test_every_module_of_compute_is_in_a_room_but_the_protocol() -> None:
    assert {file.name for file in (ROOT / "compute").glob("*.py")} == {"__init__.py", "protocol.py"}


def test_decisions_are_made_without_io() -> None:
    for module in PURE:
        outside = {name.split(".")[0] for name in imports(MODULES[f"compute.{module}"])} & OUTSIDE
        assert outside == set(), module


def test_the_library_does_not_import_the_programs() -> None:
    for module, source in MODULES.items():
        if room_of(module) != "neurons":
            assert not {name for name in imports(source) if name.split(".")[0] == "neurons"}, module


def test_every_module_and_file_that_the_page_names_exists() -> None:
    for name in re.findall(r"`(compute(?:\.\w+)+)`", PAGE):
        assert name in MODULES, name
    for name in re.findall(r"`((?:neurons|tests|compute|docs|test-scripts|\.ci)/[\w/.-]+)`", PAGE):
        assert (ROOT / name).exists(), name


def test_the_names_in_the_instructions_are_in_the_modules() -> None:
    for name, module in re.findall(r"`(\w+)` in `(compute(?:\.\w+)+)`", PAGE):
        assert re.search(rf"^(class|def) {name}\b", MODULES[module].read_text(encoding="utf-8"), flags=re.MULTILINE), (
            name
        )
