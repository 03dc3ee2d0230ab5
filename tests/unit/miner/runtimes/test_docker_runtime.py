"""What the runtime makes of an engine's answers, step by step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compute.base.errors import ConfigError, RuntimeFailure
from compute.miner.runtimes.base import ContainerSpec, ContainerState
from compute.miner.runtimes.docker import DockerRuntime
from compute.miner.runtimes.docker_engine import DockerEngine, EngineGone
from compute.miner.runtimes.docker_options import DockerSettings
from compute.wire.keys import SessionKey
from tests.waiting import DEADLINE_SECONDS


def test_starting_is_create_start_files(runtime: DockerRuntime, stub: Any, check: Any, spec: ContainerSpec) -> None:
    endpoint = runtime.start(spec)
    fingerprint = SessionKey.from_private_openssh(spec.host_key).fingerprint
    assert (endpoint.port, endpoint.host_key, endpoint.username) == (4444, fingerprint, "root")
    assert stub.calls == ["create networks", "rules", "create", "start", "rename", "attach"]
    assert check.seen == [("127.0.0.1", 4444, fingerprint)]
    assert stub.only()["Name"] == "ssh-container"
    assert stub.only()["HostConfig"]["CapDrop"] == ["ALL"]
    assert stub.only()["HostConfig"]["StorageOpt"] == {"size": str(1 << 30)}
    status = runtime.status(spec.lease_id)
    assert (status.state, status.endpoint) == (ContainerState.RUNNING, endpoint)
    assert list(runtime.list()) == [status]


def test_starting_again_changes_nothing(runtime: DockerRuntime, stub: Any, spec: ContainerSpec) -> None:
    first = runtime.start(spec)
    stub.calls.clear()
    assert runtime.start(spec) == first
    runtime.pause(spec.lease_id)
    assert runtime.start(spec) == first
    assert stub.calls == ["pause", "unpause"]


@pytest.mark.parametrize("status", ["created", "exited", "dead"])
def test_starting_replaces_what_a_crash_left(
    runtime: DockerRuntime, stub: Any, status: str, spec: ContainerSpec
) -> None:
    runtime.start(spec)
    stub.only()["State"]["Status"] = status
    assert runtime.status(spec.lease_id).state is ContainerState.DEAD
    assert runtime.status(spec.lease_id).endpoint is None
    stub.calls.clear()
    runtime.start(spec)
    assert stub.calls == ["remove", "create", "start", "rename", "attach"]
    assert runtime.status(spec.lease_id).state is ContainerState.RUNNING


def test_a_taken_name_is_left_to_whoever_has_it(runtime: DockerRuntime, stub: Any, spec: ContainerSpec) -> None:
    stub.containers["other"] = {"Id": "other", "Name": "ssh-container", "Config": {"Labels": {}}}
    runtime.start(spec)
    (name,) = {each["Name"] for each in stub.containers.values()} - {"ssh-container"}
    assert name == "compute-abababababab"
    assert [status.lease_id for status in runtime.list()] == [spec.lease_id]
    runtime.stop(spec.lease_id)
    assert list(stub.containers) == ["other"]


def test_another_miners_containers_are_not_seen(
    runtime: DockerRuntime, engine: DockerEngine, stub: Any, spec: ContainerSpec, settings: DockerSettings
) -> None:
    runtime.start(spec)
    neighbour = DockerRuntime(replace(settings, miner="5Neighbour"), engine)
    assert neighbour.list() == []
    assert neighbour.status(spec.lease_id).state is ContainerState.ABSENT
    neighbour.stop(spec.lease_id)
    assert stub.only()["State"]["Status"] == "running"


def test_a_driver_without_quotas_is_asked_once(
    runtime: DockerRuntime, stub: Any, caplog: pytest.LogCaptureFixture, spec: ContainerSpec
) -> None:
    refusal = "--storage-opt is supported only for overlay over xfs with 'pquota' mount option"
    stub.fail["create"] = [(500, refusal)]
    runtime.start(spec)
    assert "StorageOpt" not in stub.only()["HostConfig"] or not stub.only()["HostConfig"]["StorageOpt"]
    runtime.start(replace(spec, lease_id="cd" * 16))
    assert [record.message for record in caplog.records if "quota" in record.message] == [
        "the engine's storage driver has no disk quota: leases share the whole disk"
    ]


PORT = "driver failed programming external connectivity: Bind for 0.0.0.0:4444 failed: port is already allocated"


@pytest.mark.parametrize(
    ("call", "status", "message", "told"),
    [
        ("create", 404, "No such image: compute-machine:latest", "image for leases is missing"),
        ("create", 500, "mkdir /var/lib/docker/overlay2/x: no space left on device", "disk is full"),
        ("attach", 500, "write /var/lib/docker/x: no space left on device", "disk is full"),
        ("start", 500, PORT, "port 4444 is taken"),
        ("start", 500, 'could not select device driver "" with capabilities: [[gpu]]', "leased GPUs"),
        ("start", 400, "OCI runtime create failed: /run/docker/x: nonsense", r"would not start the container \(status"),
        ("create networks", 403, "no", "would not create the network"),
    ],
)
def test_a_failed_start_says_why_and_leaves_nothing(
    runtime: DockerRuntime, stub: Any, call: str, status: int, message: str, told: str, spec: ContainerSpec
) -> None:
    stub.fail[call] = [(status, message)]
    with pytest.raises(RuntimeFailure, match=told) as caught:
        runtime.start(spec)
    assert "/" not in str(caught.value)
    assert stub.containers == {}
    runtime.start(spec)


def test_a_port_of_its_own_choice_is_chosen_anew(runtime: DockerRuntime, stub: Any, spec: ContainerSpec) -> None:
    stub.fail["start"] = [(500, PORT)] * 2
    endpoint = runtime.start(replace(spec, ssh_port=0))
    assert endpoint.port > 0
    assert len(stub.containers) == 1
    stub.fail["start"] = [(500, PORT)] * 3
    with pytest.raises(RuntimeFailure, match="taken by another program"):
        runtime.start(replace(spec, lease_id="cd" * 16, ssh_port=0))
    assert len(stub.containers) == 1


def test_a_machine_whose_sshd_does_not_answer_is_removed(
    runtime: DockerRuntime, stub: Any, check: Any, spec: ContainerSpec
) -> None:
    check.failure = RuntimeFailure("silence")
    with pytest.raises(RuntimeFailure, match="silence"):
        runtime.start(spec)
    assert stub.containers == {}
    check.failure = None
    runtime.start(spec)
    check.failure = RuntimeFailure("silence")
    with pytest.raises(RuntimeFailure, match="silence"):
        runtime.start(spec)
    assert stub.containers == {}


def test_a_restart_keeps_the_container(runtime: DockerRuntime, stub: Any, check: Any, spec: ContainerSpec) -> None:
    endpoint = runtime.start(spec)
    before = stub.only()["Id"]
    runtime.pause(spec.lease_id)
    stub.calls.clear()
    assert runtime.restart(spec) == endpoint
    assert stub.calls == ["unpause", "stop", "put", "start"]
    check.failure = RuntimeFailure("silence")
    with pytest.raises(RuntimeFailure):
        runtime.restart(spec)
    assert runtime.status(spec.lease_id).state is ContainerState.DEAD
    check.failure = None
    assert runtime.restart(spec) == endpoint
    assert stub.only()["Id"] == before


@pytest.mark.parametrize("status", [None, "created", "dead", "removing"])
def test_a_restart_of_nothing_worth_keeping_starts_anew(
    runtime: DockerRuntime, stub: Any, status: str | None, spec: ContainerSpec
) -> None:
    if status is not None:
        runtime.start(spec)
        stub.only()["State"]["Status"] = status
    runtime.restart(spec)
    assert runtime.status(spec.lease_id).state is ContainerState.RUNNING
    assert stub.calls[-4:] == ["create", "start", "rename", "attach"]


@pytest.mark.parametrize("status", [None, "exited", "restarting", "created"])
def test_what_does_not_run_is_not_changed(
    runtime: DockerRuntime, stub: Any, status: str | None, spec: ContainerSpec
) -> None:
    if status is not None:
        runtime.start(spec)
        stub.only()["State"]["Status"] = status
    stub.calls.clear()
    with pytest.raises(RuntimeFailure, match="absent" if status is None else "dead"):
        runtime.pause(spec.lease_id)
    with pytest.raises(RuntimeFailure):
        runtime.unpause(spec.lease_id)
    with pytest.raises(RuntimeFailure):
        runtime.set_keys(spec.lease_id, ["a"])
    assert stub.calls == []


def test_pausing_and_stopping_twice(runtime: DockerRuntime, stub: Any, spec: ContainerSpec) -> None:
    runtime.start(spec)
    stub.calls.clear()
    for change in (runtime.pause, runtime.unpause, runtime.stop):
        change(spec.lease_id)
        change(spec.lease_id)
    assert stub.calls == ["pause", "unpause", "remove"]


def test_a_removal_that_goes_on_is_waited_for(runtime: DockerRuntime, stub: Any, spec: ContainerSpec) -> None:
    runtime.start(spec)
    stub.fail["remove"] = [(409, "removal of container abc is already in progress")] * 2
    runtime.stop(spec.lease_id)
    assert stub.containers == {}


def test_keys_can_be_exchanged_while_paused(runtime: DockerRuntime, stub: Any, spec: ContainerSpec) -> None:
    runtime.start(spec)
    runtime.pause(spec.lease_id)
    stub.calls.clear()
    runtime.set_keys(spec.lease_id, ["ssh-ed25519 B"])
    assert stub.calls == ["put"]


def test_the_check_at_the_start(runtime: DockerRuntime, stub: Any) -> None:
    runtime.check()
    stub.images.clear()
    with pytest.raises(ConfigError, match="docker build -t compute-machine docker/"):
        runtime.check()
    stub.api = "1.40"
    with pytest.raises(ConfigError, match="too old"):
        runtime.check()


def test_no_engine(tmp_path: Path, spec: ContainerSpec, settings: DockerSettings) -> None:
    runtime = DockerRuntime(settings, DockerEngine(f"unix://{tmp_path}/none.sock"))
    with pytest.raises(EngineGone, match=r"no Docker engine answers .* --miner.runtime local"):
        runtime.check()
    for call in (runtime.list, lambda: runtime.start(spec), lambda: runtime.stop(spec.lease_id)):
        with pytest.raises(EngineGone, match="does not answer") as caught:
            call()
        assert str(tmp_path) not in str(caught.value)


def test_a_silent_engine_is_not_waited_for(
    stub: Any, settings: DockerSettings, make_engine: Callable[..., DockerEngine]
) -> None:
    runtime, hasty = (DockerRuntime(settings, make_engine(call_seconds=seconds)) for seconds in (30, 1))
    assert runtime.list() == []
    stub.silent = threading.Event()
    with pytest.raises(EngineGone, match="in time"):
        hasty.list()
    stub.silent.set()
    assert runtime.list() == []


def test_a_renters_full_disk_costs_no_restart(runtime: DockerRuntime, stub: Any, spec: ContainerSpec) -> None:
    endpoint = runtime.start(spec)
    stub.fail["put"] = [(500, "Error setting up pivot dir: mkdir /x: disk quota exceeded")]
    assert runtime.restart(spec) == endpoint
    assert runtime.status(spec.lease_id).state is ContainerState.RUNNING
    stub.fail["put"] = [(500, "nonsense")]
    with pytest.raises(RuntimeFailure, match="would not put files"):
        runtime.restart(spec)


@pytest.mark.parametrize("answer", ["what", [], {"ApiVersion": None}, {"ApiVersion": "x"}])
def test_an_engine_that_talks_nonsense(runtime: DockerRuntime, stub: Any, answer: Any) -> None:
    stub.nonsense = answer
    with pytest.raises(EngineGone, match="nonsense"):
        runtime.list()
    with pytest.raises(EngineGone):
        runtime.check()


@pytest.mark.parametrize(
    ("image", "accepted"),
    [
        ("", True),
        ("ubuntu", True),
        ("ubuntu:22.04", True),
        ("compute-machine", True),
        ("pytorch/pytorch:2.7.0-cuda12.6-cudnn9-runtime", True),
        ("evil/pytorch:latest", False),
        ("ubuntu2", False),
        ("pytorch/pytorch-evil", False),
        ("*", False),
        ("\n", False),
    ],
)
def test_which_images_a_renter_may_name(runtime: DockerRuntime, image: str, accepted: bool) -> None:
    assert runtime.accepts_image(image) is accepted


def test_a_machine_that_stands_ready_gets_its_files_when_it_gets_its_renter(
    runtime: DockerRuntime, stub: Any, check: Any, spec: ContainerSpec
) -> None:
    runtime.prewarm(spec)
    assert stub.calls == ["create networks", "rules", "create", "start"]
    assert stub.fed.empty()
    assert check.seen == []
    assert stub.only()["Name"] == "compute-abababababab"
    (status,) = runtime.list()
    assert (status.lease_id, status.state) == (spec.lease_id, ContainerState.RUNNING)
    stub.calls.clear()
    endpoint = runtime.start(spec)
    assert stub.calls == ["rename", "attach"]
    assert stub.only()["Name"] == "ssh-container"
    assert spec.host_key.encode() in stub.fed.get(timeout=DEADLINE_SECONDS)
    # From now on it is one like all others.
    assert runtime.start(spec) == endpoint
    assert stub.calls == ["rename", "attach"]


@pytest.mark.parametrize("why", ["it went down", "it is gone", "its image was built anew", "it was stopped"])
def test_a_machine_that_no_longer_stands_ready_is_made_anew(
    runtime: DockerRuntime, stub: Any, spec: ContainerSpec, why: str
) -> None:
    runtime.prewarm(spec)
    before = stub.only()["Id"]
    if why == "it went down":
        stub.only()["State"]["Status"] = "exited"
    elif why == "it is gone":
        stub.containers.clear()
    elif why == "its image was built anew":
        stub.image_id = "sha256:1"
    else:
        runtime.stop(spec.lease_id)
        assert not runtime._prewarmed
    stub.calls.clear()
    runtime.start(spec)
    assert [call for call in stub.calls if call != "remove"] == ["create", "start", "rename", "attach"]
    assert stub.only()["Id"] != before
    assert runtime.status(spec.lease_id).state is ContainerState.RUNNING


@pytest.mark.parametrize("call", ["create", "start"])
def test_a_machine_that_cannot_stand_ready_leaves_nothing(
    runtime: DockerRuntime, stub: Any, spec: ContainerSpec, call: str
) -> None:
    stub.fail[call] = [(500, "nonsense")]
    with pytest.raises(RuntimeFailure, match="would not"):
        runtime.prewarm(spec)
    assert stub.containers == {}
    runtime.start(spec)
    assert stub.calls[-2:] == ["rename", "attach"]


def test_a_handing_over_that_fails_leaves_nothing(runtime: DockerRuntime, stub: Any, spec: ContainerSpec) -> None:
    runtime.prewarm(spec)
    stub.fail["attach"] = [(500, "nonsense")]
    with pytest.raises(RuntimeFailure, match="would not put files"):
        runtime.start(spec)
    assert stub.containers == {}
    runtime.start(spec)
