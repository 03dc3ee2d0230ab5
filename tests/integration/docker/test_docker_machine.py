"""One machine's life on a real engine."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shutil
import socket
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compute.base.errors import ConfigError, RuntimeFailure, RuntimeGone, SshError, SshTimeout, SshUnreachable
from compute.miner.runtimes.base import ContainerSpec, ContainerState, ContainerStatus
from compute.miner.runtimes.docker import DockerRuntime
from compute.wire.keys import SessionKey, new_password
from compute.wire.lease_terms import LeaseKind
from tests.waiting import DEADLINE_SECONDS

pytestmark = pytest.mark.docker


def container_of(client: Any, spec: ContainerSpec) -> Any:
    (found,) = client.containers.list(all=True, filters={"label": f"compute.lease={spec.lease_id}"})
    return found


Lasting = tuple[DockerRuntime, ContainerSpec]


@pytest.fixture(scope="module")
def started(make_runtime: Any, make_spec: Any) -> Lasting:
    return make_runtime(), make_spec(kind=LeaseKind.PROBE, password=new_password())


@pytest.fixture
def lasting(started: Lasting) -> Lasting:
    """One machine for all tests that do not end it. Each finds it running, with the keys of its spec."""
    runtime, spec = started
    runtime.start(spec)
    runtime.set_keys(spec.lease_id, spec.authorized_keys)
    return started


async def test_start_is_idempotent(lasting: Lasting, login: Any) -> None:
    runtime, spec = lasting
    endpoint = runtime.start(spec)
    assert endpoint.host_key == SessionKey.from_private_openssh(spec.host_key).fingerprint
    assert runtime.start(spec) == endpoint
    assert list(runtime.list()) == [ContainerStatus(spec.lease_id, ContainerState.RUNNING, endpoint)]
    async with login(endpoint) as session:
        assert (await session.run("id -un")).stdout == b"root\n"


async def test_no_secret_is_shown_by_the_engine(lasting: Lasting, client: Any) -> None:
    _, spec = lasting
    assert spec.password
    shown = repr(container_of(client, spec).attrs) + container_of(client, spec).logs().decode()
    assert spec.password not in shown
    assert spec.host_key.splitlines()[2] not in shown


async def test_a_machine_that_stands_ready_is_nobodys(
    runtime: DockerRuntime, make_spec: Any, client: Any, login: Any
) -> None:
    spec = make_spec(password=new_password())
    before = ContainerSpec(spec.lease_id, spec.limits, spec.ssh_port, spec.host_key)
    runtime.prewarm(before)
    container = container_of(client, spec)
    (status,) = runtime.list()
    # Nothing listens, and nothing in it could tell a secret.
    with pytest.raises(SshUnreachable):
        async with login(status.endpoint):
            pass
    assert (
        container.exec_run(["sh", "-c", "ls /etc/ssh/compute_* /root/.ssh /run/sshd.pid"]).output.count(b"No such") == 3
    )
    assert container.exec_run(["pgrep", "sshd"]).exit_code == 1
    endpoint = runtime.start(spec)
    assert endpoint == status.endpoint
    assert container_of(client, spec).id == container.id
    for way in ({}, {"password": spec.password}):
        async with login(endpoint, **way) as session:
            assert (await session.run("id -un; cut -d: -f1 /etc/shadow | sort | uniq -d")).stdout == b"root\n"
    listed = container.exec_run(["stat", "-c", "%n %U:%G %a", "/etc/shadow", "/etc/ssh/compute_host_key"]).output
    assert listed == b"/etc/shadow root:root 640\n/etc/ssh/compute_host_key root:root 600\n"
    assert container.exec_run(["test", "-e", "/etc/ssh/compute_login"]).exit_code == 1
    assert client.api.inspect_container(container.id)["Config"]["StdinOnce"] is True


@pytest.mark.parametrize("how", ["killed", "removed"])
async def test_a_machine_that_no_longer_stands_ready_costs_nobody_a_lease(
    runtime: DockerRuntime, spec: ContainerSpec, client: Any, login: Any, how: str
) -> None:
    runtime.prewarm(spec)
    container = container_of(client, spec)
    if how == "killed":
        container.kill()
    else:
        container.remove(force=True)
    async with login(runtime.start(spec)) as session:
        assert (await session.run("true")).exit_code == 0
    assert container_of(client, spec).id != container.id


async def test_stop_leaves_nothing(runtime: DockerRuntime, spec: ContainerSpec, client: Any, login: Any) -> None:
    endpoint = runtime.start(spec)
    async with login(endpoint) as session:
        await session.run("nohup sleep 1000 >/dev/null 2>&1 &")
        runtime.stop(spec.lease_id)
        with pytest.raises(SshError):
            await session.run("true", timeout_seconds=DEADLINE_SECONDS)
    runtime.stop(spec.lease_id)
    assert runtime.list() == []
    assert runtime.status(spec.lease_id).state is ContainerState.ABSENT
    assert client.containers.list(all=True, filters={"label": f"compute.lease={spec.lease_id}"}) == []
    with pytest.raises(SshUnreachable):
        async with login(endpoint):
            pass


async def test_pause_freezes_and_unpause_thaws(lasting: Lasting, login: Any) -> None:
    runtime, spec = lasting
    async with login(runtime.start(spec)) as session:
        for _ in range(2):
            runtime.pause(spec.lease_id)
        assert runtime.status(spec.lease_id).state is ContainerState.PAUSED
        with pytest.raises(SshTimeout):
            await session.run("true", timeout_seconds=0.3)
        for _ in range(2):
            runtime.unpause(spec.lease_id)
        assert (await session.run("true")).exit_code == 0
        runtime.pause(spec.lease_id)
        runtime.start(spec)
        assert (await session.run("true")).exit_code == 0


@pytest.mark.parametrize("before", ["running", "paused", "dead", "absent"])
async def test_a_restart_keeps_files_port_and_host_key(lasting: Lasting, client: Any, login: Any, before: str) -> None:
    runtime, spec = lasting
    endpoint = runtime.start(spec)
    async with login(endpoint) as session:
        assert (await session.run("echo kept >/root/file; echo spoilt >/etc/ssh/compute_host_key")).exit_code == 0
        if before == "paused":
            runtime.pause(spec.lease_id)
        elif before == "dead":
            container_of(client, spec).kill()
        elif before == "absent":
            runtime.stop(spec.lease_id)
        again = runtime.restart(spec)
        with pytest.raises(SshError):
            await session.run("true", timeout_seconds=DEADLINE_SECONDS)
    assert again == endpoint or before == "absent"
    assert again.host_key == endpoint.host_key
    async with login(again) as session:
        kept = await session.run(["cat", "/root/file"])
        assert kept.stdout == (b"" if before == "absent" else b"kept\n")


@pytest.mark.parametrize("paused", [False, True])
async def test_after_an_exchange_the_old_key_is_dead(lasting: Lasting, login: Any, paused: bool) -> None:
    runtime, spec = lasting
    endpoint = runtime.start(spec)
    fresh = SessionKey.generate()
    async with login(endpoint) as open_session:
        if paused:
            runtime.pause(spec.lease_id)
        runtime.set_keys(spec.lease_id, ["", fresh.public_line])
        runtime.unpause(spec.lease_id)
        with pytest.raises(SshUnreachable, match="refused"):
            async with login(endpoint):
                pass
        async with login(endpoint, fresh) as session:
            listed = await session.run(["stat", "-c", "%U %a", "/root/.ssh", "/root/.ssh/authorized_keys"])
            assert listed.stdout == b"root 700\nroot 600\n"
        assert (await open_session.run("true")).exit_code == 0
    runtime.restart(replace(spec, authorized_keys=("", fresh.public_line)))
    with pytest.raises(SshUnreachable, match="refused"):
        async with login(endpoint):
            pass


async def test_a_renters_links_lead_nowhere(
    runtime: DockerRuntime, spec: ContainerSpec, login: Any, tmp_path: Path
) -> None:
    os.chmod(tmp_path, 0o777)
    endpoint = runtime.start(spec)
    async with login(endpoint) as session:
        script = (
            f"rm -rf /root/.ssh; ln -s {tmp_path} /root/.ssh; rm -rf /etc/ssh; ln -s ../../../../{tmp_path} /etc/ssh"
        )
        assert (await session.run(script)).exit_code == 0
    fresh = SessionKey.generate()
    runtime.set_keys(spec.lease_id, [fresh.public_line])
    with contextlib.suppress(RuntimeFailure):
        runtime.restart(replace(spec, authorized_keys=(fresh.public_line,)))
    assert os.listdir(tmp_path) == []


async def test_passwords_open_only_what_was_ordered_with_one(lasting: Lasting, login: Any) -> None:
    runtime, spec = lasting
    password = str(spec.password)
    endpoint = runtime.start(spec)
    for credentials in ({"password": password}, {}):
        async with login(endpoint, **credentials) as session:
            assert (await session.run("true")).exit_code == 0
    with pytest.raises(SshUnreachable, match="refused"):
        async with login(endpoint, password=password + "x"):
            pass
    runtime.restart(spec)
    async with login(endpoint, password=password) as session:
        assert (await session.run("true")).exit_code == 0


def test_another_runtime_finds_it_and_another_miner_does_not(make_runtime: Any, spec: ContainerSpec) -> None:
    miner = secrets.token_hex(8)
    endpoint = make_runtime(miner).start(spec)
    assert make_runtime(miner).start(spec) == endpoint
    stranger = make_runtime()
    assert stranger.list() == []
    stranger.stop(spec.lease_id)
    again = make_runtime(miner)
    assert again.status(spec.lease_id).state is ContainerState.RUNNING
    # One that is paused goes as well.
    again.pause(spec.lease_id)
    again.stop(spec.lease_id)
    assert again.list() == []


def test_names_are_for_people_only(make_runtime: Any, make_spec: Any, client: Any) -> None:
    first, second = make_runtime(), make_runtime()
    specs = [make_spec(), make_spec(kind=LeaseKind.PROBE), make_spec()]
    for runtime, spec in zip((first, first, second), specs, strict=True):
        runtime.start(spec)
    names = [container_of(client, spec).name for spec in specs]
    assert len(set(names)) == 3
    # Another test on this engine may have had the first two; nobody has the third.
    assert names[2] not in ("ssh-container", "ssh-test-container")
    assert {status.lease_id for status in first.list()} == {spec.lease_id for spec in specs[:2]}


def test_a_missing_image(make_runtime: Any, spec: ContainerSpec) -> None:
    runtime = make_runtime(image="compute-no-such-image")
    with pytest.raises(ConfigError, match=r"docker build -t compute-no-such-image .*build-base.sh"):
        runtime.check()
    with pytest.raises(RuntimeFailure, match="image for leases is missing"):
        runtime.start(spec)
    assert runtime.list() == []


def test_an_image_without_nftables_and_sshd(
    make_runtime: Any, spec: ContainerSpec, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("nothing"))
    name = f"compute-test-empty-{os.getpid()}"
    client.api.import_image_from_data(buffer.getvalue(), repository=name)
    try:
        runtime = make_runtime(image=name)
        # Without the one, leases go on, and the operator is told.
        runtime.check()
        assert "LEASES REACH THIS HOST" in caplog.text
        assert f"image '{name}' has no nftables" in caplog.text
        with pytest.raises(RuntimeFailure, match=r"sshd ended|would not start|lacks a program"):
            runtime.start(spec)
        assert runtime.list() == []
        assert "/bin/sh" in caplog.text
    finally:
        client.images.remove(name, force=True)


def test_a_taken_port(runtime: DockerRuntime, make_spec: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(RuntimeFailure, match=f"port {port} is taken"):
            runtime.start(make_spec(port=port))
        assert runtime.list() == []
    held = runtime.start(make_spec(port=port))
    assert held.port == port
    with pytest.raises(RuntimeFailure, match=f"port {port} is taken"):
        runtime.start(make_spec(port=port))
    assert len(runtime.list()) == 1


def test_gpus_that_the_engine_cannot_give(runtime: DockerRuntime, make_spec: Any) -> None:
    with pytest.raises(RuntimeFailure, match="leased GPUs"):
        runtime.start(make_spec(gpu_uuids=("GPU-00000000-0000-0000-0000-000000000000",)))
    assert runtime.list() == []


async def test_an_engine_that_goes_and_comes_back(make_runtime: Any, spec: ContainerSpec, login: Any, way: Any) -> None:
    runtime = make_runtime(url=way.url)
    endpoint = runtime.start(spec)
    way.cut()
    for call in (runtime.list, lambda: runtime.pause(spec.lease_id), lambda: runtime.restart(spec)):
        with pytest.raises(RuntimeGone, match="engine does not answer"):
            call()
    # A renter does not notice.
    async with login(endpoint) as session:
        assert (await session.run("true")).exit_code == 0
    way.mend()
    assert runtime.status(spec.lease_id).endpoint == endpoint
    runtime.stop(spec.lease_id)
    assert runtime.list() == []


@pytest.mark.skipif(shutil.which("ssh") is None, reason="OpenSSH's client is not installed")
def test_openssh_logs_in_with_the_pinned_key(lasting: Lasting, renter: SessionKey, tmp_path: Path) -> None:
    runtime, spec = lasting
    endpoint = runtime.start(spec)
    key, known = tmp_path / "key", tmp_path / "known_hosts"
    key.touch(0o600)
    key.write_text(renter.private_openssh)
    known.write_text(f"[127.0.0.1]:{endpoint.port} {SessionKey.from_private_openssh(spec.host_key).public_line}\n")
    argv = ["ssh", "-F", "/dev/null", "-p", str(endpoint.port), "-i", str(key), "-l", "root", "-o", "BatchMode=yes"]
    argv += ["-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={known}", "-o", "IdentitiesOnly=yes"]
    argv += ["127.0.0.1", "cat; exit 7"]
    done = subprocess.run(argv, input=b"x", capture_output=True, timeout=DEADLINE_SECONDS, check=False)
    assert (done.returncode, done.stdout) == (7, b"x"), done.stderr
