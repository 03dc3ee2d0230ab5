"""The demo in containers, on a real engine: the engine's own record says what ran in them, and that nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from docker.client import DockerClient

from compute.base.errors import ConfigError
from compute.demo.stage import Stage
from compute.miner.hardware import docker_host

from .demos import demo

pytestmark = [pytest.mark.e2e, pytest.mark.docker]

_SECONDS = 280
HONEST = ("honest-1", "honest-2")


@pytest.fixture(scope="module", autouse=True)
def an_engine(tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        Stage(tmp_path_factory.mktemp("stage"), [], block_seconds=1).check_docker()
    except ConfigError as error:
        if os.environ.get("COMPUTE_REQUIRE_DOCKER") == "1":
            pytest.fail(f"COMPUTE_REQUIRE_DOCKER=1, but {error}")
        pytest.skip(f"{error}. docs/miner.md says how to make the image")


@pytest.fixture
def engine() -> Iterator[DockerClient]:
    with closing(DockerClient(base_url=docker_host())) as client:
        yield client


def until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + _SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.1)


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


def test_the_same_story_in_containers(engine: DockerClient, tmp_path: Path) -> None:
    begun = int(time.time())
    with demo(tmp_path, "--docker", "--json", "--keep") as process:
        assert process.stdout is not None
        text = ""
        while not text.endswith("\n}\n"):
            line = process.stdout.readline()
            assert line, process.communicate()
            text += line
        result = json.loads(text)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=_SECONDS)
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []

    one, two, liar, dying = result["miners"]
    assert [miner["verdict"]["reason"] for miner in (one, two)] == ["ok", "ok"]
    assert two["weight"] == pytest.approx(2 * one["weight"], rel=1e-3)
    assert liar["weight"] == dying["weight"] == 0.0
    assert result["rental"]["output"].startswith("Linux")
    assert result["chain"]["weights_match"] is True

    events = list(
        engine.events(since=begun, until=int(time.time()) + 1, filters={"label": "compute.lease"}, decode=True)
    )
    # Created for nobody in particular, and attached to when there is a renter.
    rented = [
        event["Actor"]["Attributes"]["compute.miner"]
        for event in events
        if event["Type"] == "container" and event["Action"] == "attach"
    ]
    assert rented.count(one["hotkey"]) >= 1, "a probe"
    assert rented.count(two["hotkey"]) >= 2, "a probe and a customer"
    assert not {liar["hotkey"], dying["hotkey"]} & {event["Actor"]["Attributes"]["compute.miner"] for event in events}
    assert containers_of(engine, {one["hotkey"], two["hotkey"]}) == []


def test_an_interrupted_demo_leaves_no_container(engine: DockerClient, tmp_path: Path) -> None:
    with demo(tmp_path, "--docker") as process:
        until(lambda: containers_of(engine, {hotkey_of(name, tmp_path) for name in HONEST}), process)
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
        _, said = process.communicate(timeout=_SECONDS)
    assert process.returncode == 1
    assert "no Docker engine answers" in said
    assert "leave out --docker" in said
    assert list(tmp_path.iterdir()) == []
