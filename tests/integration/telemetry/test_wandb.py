"""The real wandb package: on this machine alone, in front of a dead network, and on a full disk."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from bittensor_wallet import Keypair

from compute.base.tasks import beside
from compute.telemetry.wandb_run import WandbRun, is_genuine, is_on, publishing
from compute.testing.clock import ManualClock
from compute.wire.signing import verify_signature
from tests.waiting import DEADLINE_SECONDS, until, until_async

KEY = Keypair.create_from_uri("//publisher")
CONTENT = {"hotkey": KEY.ss58_address, "role": "miner", "specs": {"gpu": {"count": 2}, "list": [1, 2.5, "é"]}}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., WandbRun]]:
    runs: list[WandbRun] = []

    def make(folder: Path = tmp_path, **options: Any) -> WandbRun:
        runs.append(WandbRun("miner", KEY.ss58_address, KEY, folder, **options))
        return runs[-1]

    yield make
    for run in runs:
        run.close(DEADLINE_SECONDS)
    # The package reads the environment once a process.
    wandb.teardown()


def end(run: WandbRun) -> None:
    """End the run and the package's own process, which writes the last of the file as it ends."""
    assert run.close(DEADLINE_SECONDS)
    wandb.teardown()


def records(file: Path) -> Iterator[Any]:
    """The records of a run's file: LevelDB's log format (blocks of 32 KiB, headers of 7 bytes) after 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (1 << 15) - at % (1 << 15) < 7:
            at += (1 << 15) - at % (1 << 15)
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def config_of(folder: Path) -> tuple[str, dict[str, Any]]:
    """The id of the run that was kept below ``folder``, and its config as a reader would get it."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    run_id, config = "", {}
    for record in records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run_id = record.run.run_id
            assert (record.run.entity, record.run.project) == ("neuralinternet", "opencompute")
            assert record.run.display_name == f"miner-{KEY.ss58_address}"
        elif kind == "config":
            config.update({item.key: json.loads(item.value_json) for item in record.config.update})
    return run_id, config


def test_what_is_kept_is_signed_and_says_what_was_published_last(
    offline: None, begin: Callable[..., WandbRun], tmp_path: Path
) -> None:
    run = begin()
    run.publish({**CONTENT, "allocated": False})
    until(lambda: run.published == 1, "it is published")
    run.publish({**CONTENT, "allocated": True})
    until(lambda: run.published == 2, "it is published again")
    end(run)
    run_id, config = config_of(tmp_path)
    assert config["allocated"] is True
    assert is_genuine(config, run_id, verify_signature)
    assert not is_genuine({**config, "allocated": False}, run_id, verify_signature)


def test_what_the_package_adds_tells_nothing_of_the_machine(
    offline: None, begin: Callable[..., WandbRun], tmp_path: Path
) -> None:
    run = begin()
    run.publish(CONTENT)
    until(lambda: run.published == 1, "it is published")
    end(run)
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    kinds = {record.WhichOneof("record_type"): record for record in records(file)}
    assert kinds["run"].run.host == "-"
    assert "environment" not in kinds
    assert "stats" not in kinds
    assert not list(tmp_path.glob("wandb/offline-run-*/files/*"))


def test_a_dead_network_is_a_line_in_the_log_and_nobody_waits(
    monkeypatch: pytest.MonkeyPatch, begin: Callable[..., WandbRun], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    # A server that takes connections and never says a word is worse than one that is not there.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        callers, init = set(), wandb.init
        monkeypatch.setattr(
            wandb, "init", lambda *words, **named: callers.add(threading.current_thread()) or init(*words, **named)
        )
        run = begin(init_seconds=1.0)
        for _ in range(100):
            run.publish(CONTENT)
        until(lambda: run.failures > 0, "it fails")
        # The caller of publish has not been to the package, so it has waited for nobody.
        assert {thread.name for thread in callers} == {"wandb"}
        assert run.published == 0
        assert "next try in 60 s" in caplog.text
        assert "0" * 40 not in caplog.text
        assert run.close(DEADLINE_SECONDS)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a disk that can be filled needs root, and the right to mount")
    try:
        filler = os.open(folder / "filler", os.O_CREAT | os.O_WRONLY)
        with contextlib.suppress(OSError):
            while os.write(filler, bytes(4096)):
                pass
        os.close(filler)
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_a_line_in_the_log(
    offline: None, full_disk: Path, begin: Callable[..., WandbRun], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run = begin(full_disk, init_seconds=2.0)
    run.publish(CONTENT)
    until(lambda: run.failures + run.published > 0, "it is over")
    assert run.close(DEADLINE_SECONDS)


def test_a_folder_that_cannot_be_made_is_a_line_in_the_log(
    offline: None, begin: Callable[..., WandbRun], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    run = begin(tmp_path / "file" / "folder")
    run.publish(CONTENT)
    until(lambda: run.failures == 1, "it fails")
    assert "wandb:" in caplog.text


async def test_the_duty_publishes_at_its_interval_and_ends_the_run(
    offline: None, begin: Callable[..., WandbRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compute.telemetry.wandb_run._CLOSE_SECONDS", DEADLINE_SECONDS)
    run, clock, made = begin(), ManualClock(), 0

    async def content() -> dict[str, Any]:
        nonlocal made
        made += 1
        if made == 1:
            raise OSError("the machine cannot be looked at")
        return {**CONTENT, "made": made}

    async with beside(publishing(run, content, clock, interval_seconds=600.0)):
        for _ in range(1300):
            await asyncio.sleep(0)
            clock.advance(1.0)
        assert made >= 2
        await until_async(lambda: run.published, "it is published")
    assert run.close(0.0), "the thread has ended with the duty"


@pytest.mark.parametrize(
    ("environ", "on", "line"),
    [
        ({}, False, "there is no WANDB_API_KEY"),
        ({"WANDB_API_KEY": "  "}, False, "there is no WANDB_API_KEY"),
        ({"WANDB_API_KEY": "k"}, True, ""),
        ({"WANDB_MODE": "offline"}, True, ""),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, False, "WANDB_MODE is disabled"),
    ],
)
def test_it_is_off_with_one_clear_line(
    environ: dict[str, str], on: bool, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert is_on(environ) is on
    assert len(caplog.records) == (0 if on else 1)
    assert line in caplog.text
