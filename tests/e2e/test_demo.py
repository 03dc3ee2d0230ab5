"""The demo where it does not come to its end. Where it does, CI plays it, as processes and in containers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from docker.client import DockerClient

from compute.base.errors import ConfigError
from compute.demo.stage import Stage
from compute.miner.hardware import docker_host
from tests.waiting import DEADLINE_SECONDS, until

pytestmark = pytest.mark.e2e

HONEST = ("honest-1", "honest-2")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[DockerClient]:
    try:
        Stage(tmp_path, [], block_seconds=1).check_docker()
    except ConfigError as error:
        if os.environ.get("COMPUTE_REQUIRE_DOCKER") == "1":
            pytest.fail(f"COMPUTE_REQUIRE_DOCKER=1, but {error}")
        pytest.skip(f"{error}. docs/miner.md says how to make the image")
    with closing(DockerClient(base_url=docker_host())) as client:
        yield client


@contextmanager
def demo(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The demo, which keeps everything in ``folder``. Where it is left running it is told to end, with its subnet."""
    with subprocess.Popen(
        [sys.executable, "-m", "compute.demo", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(folder)},
        text=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


def hotkey_of(name: str, folder: Path) -> str:
    """A miner's hotkey, as soon as there is one."""
    for path in folder.glob(f"compute-demo-*/wallets/{name}/hotkeys/default"):
        with suppress(ValueError):
            return str(json.loads(path.read_text())["ss58Address"])
    return ""


def containers_of(engine: DockerClient, hotkeys: set[str]) -> list[Any]:
    return [
        container
        for container in engine.containers.list(all=True, filters={"label": "compute.miner"}, ignore_removed=True)
        if container.labels["compute.miner"] in hotkeys
    ]


@pytest.mark.long
@pytest.mark.docker
def test_an_interrupted_demo_leaves_no_container(engine: DockerClient, tmp_path: Path) -> None:
    with demo(tmp_path, "--docker") as process:
        until(
            lambda: process.poll() is not None or containers_of(engine, {hotkey_of(name, tmp_path) for name in HONEST}),
            "a container of the demo",
        )
        assert process.poll() is None, process.communicate()
        hotkeys = {hotkey_of(name, tmp_path) for name in HONEST}
        # The terminal is closed, by somebody who has been leaning on Ctrl-C.
        process.send_signal(signal.SIGHUP)
        said = None
        while said is None:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                _, said = process.communicate(timeout=0.2)
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert containers_of(engine, hotkeys) == []
    assert list(tmp_path.iterdir()) == []


def test_without_an_engine_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with demo(tmp_path, "--docker") as process:
        _, said = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 1
    assert "no Docker engine answers" in said
    assert "leave out --docker" in said
    assert list(tmp_path.iterdir()) == []
