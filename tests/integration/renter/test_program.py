"""``neurons/register.py`` as a process: exit codes, streams, and an end that a dead chain does not hold up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[3] / "neurons" / "register.py"


def register(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("BT_", "SQLITE_"))}
    return subprocess.run(
        [sys.executable, str(PROGRAM), *words],
        cwd=folder,
        env={**environ, "HOME": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_listing_needs_neither_wallet_nor_chain_and_keeps_its_key_private(tmp_path: Path) -> None:
    ran = register(tmp_path, "list", "--json")
    assert (ran.returncode, ran.stdout) == (0, "[]\n"), ran.stderr
    assert (tmp_path / "database.db.key").stat().st_mode & 0o777 == 0o600


def test_without_a_wallet_it_says_how_to_make_one(tmp_path: Path) -> None:
    ran = register(tmp_path, "offers", "--wallet.path", str(tmp_path / "wallets"))
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "btcli wallet create" in ran.stderr


def test_without_a_chain_it_ends_with_three(tmp_path: Path, hold_port: Callable[..., int]) -> None:
    bittensor = pytest.importorskip("bittensor")
    wallet = bittensor.Wallet(name="w", hotkey="h", path=str(tmp_path / "wallets"))
    wallet.create_new_coldkey(use_password=False, suppress=True)
    wallet.create_new_hotkey(use_password=False, suppress=True)
    nobody = f"ws://127.0.0.1:{hold_port()}"
    ran = register(
        tmp_path,
        *("offers", "--subtensor.chain_endpoint", nobody),
        *("--wallet.path", str(tmp_path / "wallets"), "--wallet.name", "w", "--wallet.hotkey", "h"),
    )
    assert (ran.returncode, ran.stdout) == (3, "")
    assert nobody in ran.stderr


def test_usage_errors_are_two(tmp_path: Path) -> None:
    ran = register(tmp_path, "alocate")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "--help" in ran.stderr
