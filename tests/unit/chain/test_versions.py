from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import compute
from compute.base.store import Database
from compute.chain.versions import OWN, MinimalVersions, VersionFile, VersionFileError, is_url, parse_version_file
from compute.testing.clock import ManualClock

ROOT = Path(__file__).resolve().parents[3]


def text(version: str = "3.0.0", miner: str = "2.5.0", validator: str = "2.7.1") -> str:
    return (
        '"""Somebody else\'s release."""\n\n'
        f'__version__ = "{version}"\n'
        f"__minimal_miner_version__ = '{miner}'\n"
        f'__minimal_validator_version__="{validator}"  # since the quorum counts\n'
        "import os; os.abort()\n"
    )


def test_our_own_package_is_a_version_file() -> None:
    own = parse_version_file((ROOT / "compute" / "__init__.py").read_text(encoding="utf-8"))
    assert own == OWN
    assert max(own.miner, own.validator) <= compute.__version_as_int__


def test_the_literal_lines_are_read_and_nothing_is_run() -> None:
    assert parse_version_file(text()) == MinimalVersions(miner=250, validator=271)
    assert parse_version_file(text().replace("\n", "\r\n")) == MinimalVersions(250, 271)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "0 lines __version__"),
        ("<!doctype html><title>404</title>", "0 lines"),
        (text().replace("__minimal_miner_version__", "minimal"), "0 lines __minimal_miner_version__"),
        (text() + '__minimal_validator_version__ = "0.0.1"\n', "2 lines __minimal_validator_version__"),
        (text(miner="1.10.0"), "0 lines __minimal_miner_version__"),
        (text(miner="2.5"), "0 lines __minimal_miner_version__"),
        (text(miner="9" * 5000 + ".0.0"), "0 lines __minimal_miner_version__"),
        (text(miner="٢.٥.٠"), "0 lines __minimal_miner_version__"),
        (text().replace("__version__ =", "    __version__ ="), "0 lines __version__"),
        (text(validator="3.0.1"), "newer versions than its own"),
    ],
)
def test_what_is_no_version_file_says_why(content: str, problem: str) -> None:
    with pytest.raises(VersionFileError, match=problem):
        parse_version_file(content)


@given(st.text(max_size=300))
def test_any_text_is_a_version_file_or_an_error(content: str) -> None:
    with contextlib.suppress(VersionFileError):
        parse_version_file(content)


def test_what_is_an_address_and_what_a_path() -> None:
    assert is_url("https://example.org/__init__.py")
    assert not is_url("/etc/versions.py")


async def test_without_a_version_file_our_own_versions_hold() -> None:
    versions = VersionFile(None, Database(":memory:"), ManualClock())
    await versions.refresh()
    assert versions.of_miners() == (OWN.miner,)
    assert versions.of_validators() == (OWN.validator,)


async def test_a_path_is_read_again_and_kept_for_the_next_start(tmp_path: Path) -> None:
    file, database, clock = tmp_path / "versions.py", Database(tmp_path / "d.db"), ManualClock()
    file.write_text(text())
    versions = VersionFile(str(file), database, clock)
    assert versions.of_miners() == (OWN.miner,)
    await versions.refresh()
    assert versions.of_miners() == (OWN.miner, 250)
    file.write_text(text(miner="2.6.0"))
    await versions.refresh()
    assert versions.of_miners() == (OWN.miner, 260)
    assert VersionFile(str(file), database, clock).of_miners() == (OWN.miner, 260)
    assert VersionFile("elsewhere", database, clock).of_miners() == (OWN.miner,), "another file's versions are its own"
    (row,) = database.query("SELECT at FROM version_file")
    assert row["at"] == clock.now()


async def test_lower_versions_than_ours_change_nothing(tmp_path: Path) -> None:
    file = tmp_path / "versions.py"
    file.write_text(text(miner="1.0.0", validator="0.0.1"))
    versions = VersionFile(str(file), Database(":memory:"), ManualClock())
    await versions.refresh()
    assert (versions.of_miners(), versions.of_validators()) == ((OWN.miner,), (OWN.validator,))
