"""The two programs as processes: how they start, stop, and say what is wrong."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import pytest

from tests.waiting import DEADLINE_SECONDS, until

ROOT = Path(__file__).resolve().parents[2]


PATIENT = """
import functools, runpy, sys
import websockets.sync.client as client

client.connect = functools.partial(client.connect, open_timeout=None)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a program whose SDK would wait for a silent chain for ever, and not for ten seconds."""


def neuron(name: str, *options: str, cwd: Path, before: Sequence[str] = ()) -> subprocess.Popen[str]:
    """A process of the program; ``before`` is what Python gets first, such as ``-m`` with the module's name."""
    program = before if "-m" in before else [*before, str(ROOT / "neurons" / f"{name}.py")]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("BT_")}
    return subprocess.Popen(
        [sys.executable, *program, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        cwd=cwd,
        text=True,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )


def outcome(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    with process:
        try:
            stdout, stderr = process.communicate(timeout=DEADLINE_SECONDS)
        finally:
            process.kill()
    return process.returncode, stdout, stderr


Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """What a program's ``main`` ends with and says, in a working directory, without the seconds of a process."""

    def ask(name: str, *options: str, cwd: Path = tmp_path) -> tuple[int, str, str]:
        monkeypatch.chdir(cwd)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("BT_")}
        with mock.patch.dict(os.environ, inherited, clear=True):
            try:
                code = importlib.import_module(f"neurons.{name}").main(options)
            except SystemExit as leaving:
                code = int(leaving.code or 0)
        return (code, *capsys.readouterr())

    return ask


@pytest.mark.parametrize(("name", "before"), [("miner", ["-m", "neurons.miner"]), ("validator", [])])
def test_help_is_quick_and_teaches(name: str, before: list[str], tmp_path: Path) -> None:
    code, stdout, _ = outcome(neuron(name, "--help", cwd=tmp_path, before=before))
    assert code == 0
    assert f"python neurons/{name}.py" in stdout


@pytest.mark.parametrize("name", ["miner", "validator"])
def test_a_bad_option_is_exit_code_2_and_one_line(name: str, tmp_path: Path) -> None:
    code, _, stderr = outcome(neuron(name, "--netuid", "many", cwd=tmp_path))
    assert code == 2
    assert "'many'" in stderr
    assert "Traceback" not in stderr


def test_a_missing_wallet_says_how_to_make_one(tmp_path: Path) -> None:
    options = ["--wallet.path", str(tmp_path), "--no-auto_update", "--subtensor.chain_endpoint", "ws://127.0.0.1:9"]
    code, _, stderr = outcome(neuron("validator", *options, cwd=tmp_path))
    assert code == 2
    assert "btcli wallet create" in stderr
    assert "Traceback" not in stderr


def make_wallet(path: Path) -> list[str]:
    import bittensor

    wallet = bittensor.Wallet(name="w", hotkey="default", path=str(path))
    wallet.create_new_coldkey(use_password=False, overwrite=True, suppress=True)
    wallet.create_new_hotkey(use_password=False, overwrite=True, suppress=True)
    return ["--wallet.path", str(path), "--wallet.name", "w", "--no-auto_update"]


def test_no_chain_is_exit_code_3_and_says_what_to_do(tmp_path: Path) -> None:
    options = [*make_wallet(tmp_path), "--subtensor.chain_endpoint", "ws://127.0.0.1:9"]
    code, stdout, stderr = outcome(neuron("validator", *options, cwd=tmp_path))
    assert code == 3
    assert "python -m compute.localnet node" in stderr
    assert "Traceback" not in stderr
    assert stdout == ""


def test_without_an_engine_the_docker_runtime_says_what_else_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    options = [*make_wallet(tmp_path), "--subtensor.chain_endpoint", "ws://127.0.0.1:9"]
    code, _, stderr = outcome(neuron("miner", *options, cwd=tmp_path))
    # Not 2: the engine may only be later than the miner, after a boot.
    assert code == 1
    assert "no Docker engine answers" in stderr
    assert "--miner.runtime local" in stderr


def test_status_needs_no_chain(ask: Ask) -> None:
    code, stdout, stderr = ask("validator", "--status")
    assert (code, stdout) == (0, "")
    assert "has not finished a round" in stderr
    code, stdout, _ = ask("validator", "--status", "--json")
    assert (code, stdout.strip()) == (0, "[]")
    code, stdout, _ = ask("miner", "--status")
    assert code == 0
    assert "lease" in stdout


def test_the_file_env_of_the_working_directory_is_read_and_the_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    (tmp_path / ".env").write_text("SQLITE_DB_PATH=by-file.db\nWANDB_API_KEY=\n")
    monkeypatch.delenv("SQLITE_DB_PATH", raising=False)
    code, _, stderr = ask("validator", "--status")
    assert code == 0
    assert "by-file.db" in stderr
    monkeypatch.setenv("SQLITE_DB_PATH", "by-environment.db")
    _, _, stderr = ask("validator", "--status")
    assert "by-environment.db" in stderr
    # Not of a folder above: that is another project's.
    (tmp_path / "below").mkdir()
    monkeypatch.delenv("SQLITE_DB_PATH")
    _, _, stderr = ask("validator", "--status", cwd=tmp_path / "below")
    assert "by-file.db" not in stderr


@pytest.mark.parametrize("name", ["miner", "validator", "register"])
def test_a_file_env_that_is_no_text_is_exit_code_2(name: str, tmp_path: Path, ask: Ask) -> None:
    (tmp_path / ".env").write_bytes(b"WANDB_API_KEY=\xff\xfe")
    code, _, stderr = ask(name, "--help")
    assert code == 2
    assert f"{tmp_path}/.env cannot be read" in stderr
    assert "Traceback" not in stderr


@pytest.fixture
def silent() -> Iterator[str]:
    """A chain that takes connections and never says a word: the SDK waits ten seconds for one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"ws://127.0.0.1:{server.getsockname()[1]}"


def test_ctrl_c_at_the_very_start_leaves_no_traceback(tmp_path: Path, silent: str) -> None:
    process = neuron("validator", *make_wallet(tmp_path), "--subtensor.chain_endpoint", silent, cwd=tmp_path)
    mapped = Path(f"/proc/{process.pid}/maps")
    # NumPy is mapped in the middle of the SDK's imports, which take the time.
    until(lambda: process.poll() is not None or "numpy" in mapped.read_text(), "NumPy is mapped")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, stdout, stderr = outcome(process)
    # Where this process was held up, the other has come further, and stops as it does later.
    assert code == -signal.SIGINT or (code == 0 and "stopping" in stderr)
    assert (stdout, "Traceback" in stderr) == ("", False)


def test_sigterm_stops_cleanly_even_while_connecting(tmp_path: Path, silent: str) -> None:
    options = [*make_wallet(tmp_path), "--subtensor.chain_endpoint", silent]
    process = neuron("validator", *options, cwd=tmp_path, before=["-c", PATIENT])
    assert process.stderr is not None
    while "validator starts" not in (line := process.stderr.readline()):
        assert line, "it ended"
    # pm2 kills after 1.6 s by default. Whoever waited for the chain first would not end at all.
    process.send_signal(signal.SIGTERM)
    code, _, stderr = outcome(process)
    assert code == 0
    assert "stopping" in stderr
