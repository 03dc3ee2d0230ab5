"""``register.py`` before there is a machine: exit codes, streams, and an end that a dead chain does not hold up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import bittensor

from tests.waiting import DEADLINE_SECONDS

from .in_process import in_process

PROGRAM = Path(__file__).resolve().parents[3] / "neurons" / "register.py"


def test_listing_needs_neither_wallet_nor_chain_and_keeps_its_key_private(tmp_path: Path) -> None:
    ran = in_process(["list", "--json"], {"SQLITE_DB_PATH": str(tmp_path / "database.db")})
    assert (ran.returncode, ran.stdout) == (0, "[]\n"), ran.stderr
    assert (tmp_path / "database.db.key").stat().st_mode & 0o777 == 0o600


def test_without_a_wallet_it_says_how_to_make_one(tmp_path: Path) -> None:
    where = ["--database", str(tmp_path / "database.db"), "--wallet.path", str(tmp_path / "wallets")]
    ran = in_process(["offers", *where], {})
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "btcli wallet create" in ran.stderr


def test_without_a_chain_it_ends_with_three(tmp_path: Path, hold_port: Callable[..., int]) -> None:
    wallet = bittensor.Wallet(name="w", hotkey="h", path=str(tmp_path / "wallets"))
    wallet.create_new_coldkey(use_password=False, suppress=True)
    wallet.create_new_hotkey(use_password=False, suppress=True)
    nobody = f"ws://127.0.0.1:{hold_port()}"
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("BT_", "SQLITE_"))}
    ran = subprocess.run(
        [
            *(sys.executable, str(PROGRAM), "offers", "--subtensor.chain_endpoint", nobody),
            *("--wallet.path", str(tmp_path / "wallets"), "--wallet.name", "w", "--wallet.hotkey", "h"),
        ],
        cwd=tmp_path,
        env={**environ, "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (3, "")
    assert nobody in ran.stderr


def test_usage_errors_are_two() -> None:
    ran = in_process(["alocate"], {})
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "--help" in ran.stderr
