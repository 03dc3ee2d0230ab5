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
from compute.miner.runtimes.base import LeaseOrder, MachineOrder, Phase, RuntimeStatus
from compute.miner.runtimes.docker import DockerRuntime
from compute.wire.keys import SessionKey, new_password
from compute.wire.terms import LeaseKind
from tests.waiting import DEADLINE_SECONDS

pytestmark = pytest.mark.docker


def container_of(client: Any, order: LeaseOrder) -> Any:
    (found,) = client.containers.list(all=True, filters={"label": f"compute.lease={order.lease_id}"})
    return found


Lasting = tuple[DockerRuntime, LeaseOrder]


@pytest.fixture(scope="module")
def started(make_runtime: Any, make_order: Any) -> Lasting:
    return make_runtime(), make_order(kind=LeaseKind.PROBE, password=new_password())


@pytest.fixture
def lasting(started: Lasting) -> Lasting:
    """One machine for all tests that do not end it. Each finds it running, with the keys of its order."""
    runtime, order = started
    runtime.start(order)
    runtime.set_keys(order.lease_id, order.authorized_keys)
    return started


async def test_start_is_idempotent(lasting: Lasting, login: Any) -> None:
    runtime, order = lasting
    endpoint = runtime.start(order)
    assert endpoint.host_key == SessionKey.from_private_openssh(order.host_key).fingerprint
    assert runtime.start(order) == endpoint
    assert list(runtime.list()) == [RuntimeStatus(order.lease_id, Phase.RUNNING, endpoint)]
    async with login(endpoint) as session:
        assert (await session.run("id -un")).stdout == b"root\n"


async def test_no_secret_is_shown_by_the_engine(lasting: Lasting, client: Any) -> None:
    _, order = lasting
    assert order.password
    shown = repr(container_of(client, order).attrs) + container_of(client, order).logs().decode()
    assert order.password not in shown
    assert order.host_key.splitlines()[2] not in shown


async def test_a_machine_that_stands_ready_is_nobodys(
    runtime: DockerRuntime, make_order: Any, client: Any, login: Any
) -> None:
    order = make_order(password=new_password())
    before = MachineOrder(order.lease_id, order.limits, order.ssh_port, order.host_key)
    assert runtime.prepare(before)
    container = container_of(client, order)
    (status,) = runtime.list()
    # Nothing listens, and nothing in it could tell a secret.
    with pytest.raises(SshUnreachable):
        async with login(status.endpoint):
            pass
    assert (
        container.exec_run(["sh", "-c", "ls /etc/ssh/compute_* /root/.ssh /run/sshd.pid"]).output.count(b"No such") == 3
    )
    assert container.exec_run(["pgrep", "sshd"]).exit_code == 1
    endpoint = runtime.start(order)
    assert endpoint == status.endpoint
    assert container_of(client, order).id == container.id
    for way in ({}, {"password": order.password}):
        async with login(endpoint, **way) as session:
            assert (await session.run("id -un; cut -d: -f1 /etc/shadow | sort | uniq -d")).stdout == b"root\n"
    listed = container.exec_run(["stat", "-c", "%n %U:%G %a", "/etc/shadow", "/etc/ssh/compute_host_key"]).output
    assert listed == b"/etc/shadow root:root 640\n/etc/ssh/compute_host_key root:root 600\n"
    assert container.exec_run(["test", "-e", "/etc/ssh/compute_login"]).exit_code == 1
    assert client.api.inspect_container(container.id)["Config"]["StdinOnce"] is True


@pytest.mark.parametrize("how", ["killed", "removed"])
async def test_a_machine_that_no_longer_stands_ready_costs_nobody_a_lease(
    runtime: DockerRuntime, order: LeaseOrder, client: Any, login: Any, how: str
) -> None:
    runtime.prepare(order)
    container = container_of(client, order)
    if how == "killed":
        container.kill()
    else:
        container.remove(force=True)
    async with login(runtime.start(order)) as session:
        assert (await session.run("true")).exit_code == 0
    assert container_of(client, order).id != container.id


async def test_stop_leaves_nothing(runtime: DockerRuntime, order: LeaseOrder, client: Any, login: Any) -> None:
    endpoint = runtime.start(order)
    async with login(endpoint) as session:
        await session.run("nohup sleep 1000 >/dev/null 2>&1 &")
        runtime.stop(order.lease_id)
        with pytest.raises(SshError):
            await session.run("true", timeout_seconds=DEADLINE_SECONDS)
    runtime.stop(order.lease_id)
    assert runtime.list() == []
    assert runtime.status(order.lease_id).phase is Phase.ABSENT
    assert client.containers.list(all=True, filters={"label": f"compute.lease={order.lease_id}"}) == []
    with pytest.raises(SshUnreachable):
        async with login(endpoint):
            pass


async def test_pause_freezes_and_unpause_thaws(lasting: Lasting, login: Any) -> None:
    runtime, order = lasting
    async with login(runtime.start(order)) as session:
        for _ in range(2):
            runtime.pause(order.lease_id)
        assert runtime.status(order.lease_id).phase is Phase.PAUSED
        with pytest.raises(SshTimeout):
            await session.run("true", timeout_seconds=0.3)
        for _ in range(2):
            runtime.unpause(order.lease_id)
        assert (await session.run("true")).exit_code == 0
        runtime.pause(order.lease_id)
        runtime.start(order)
        assert (await session.run("true")).exit_code == 0


@pytest.mark.parametrize("before", ["running", "paused", "dead", "absent"])
async def test_a_restart_keeps_files_port_and_host_key(lasting: Lasting, client: Any, login: Any, before: str) -> None:
    runtime, order = lasting
    endpoint = runtime.start(order)
    async with login(endpoint) as session:
        assert (await session.run("echo kept >/root/file; echo spoilt >/etc/ssh/compute_host_key")).exit_code == 0
        if before == "paused":
            runtime.pause(order.lease_id)
        elif before == "dead":
            container_of(client, order).kill()
        elif before == "absent":
            runtime.stop(order.lease_id)
        again = runtime.restart(order)
        with pytest.raises(SshError):
            await session.run("true", timeout_seconds=DEADLINE_SECONDS)
    assert again == endpoint or before == "absent"
    assert again.host_key == endpoint.host_key
    async with login(again) as session:
        kept = await session.run(["cat", "/root/file"])
        assert kept.stdout == (b"" if before == "absent" else b"kept\n")


@pytest.mark.parametrize("paused", [False, True])
async def test_after_an_exchange_the_old_key_is_dead(lasting: Lasting, login: Any, paused: bool) -> None:
    runtime, order = lasting
    endpoint = runtime.start(order)
    fresh = SessionKey.generate()
    async with login(endpoint) as open_session:
        if paused:
            runtime.pause(order.lease_id)
        runtime.set_keys(order.lease_id, ["", fresh.public_line])
        runtime.unpause(order.lease_id)
        with pytest.raises(SshUnreachable, match="refused"):
            async with login(endpoint):
                pass
        async with login(endpoint, fresh) as session:
            listed = await session.run(["stat", "-c", "%U %a", "/root/.ssh", "/root/.ssh/authorized_keys"])
            assert listed.stdout == b"root 700\nroot 600\n"
        assert (await open_session.run("true")).exit_code == 0
    runtime.restart(replace(order, authorized_keys=("", fresh.public_line)))
    with pytest.raises(SshUnreachable, match="refused"):
        async with login(endpoint):
            pass


async def test_a_renters_links_lead_nowhere(
    runtime: DockerRuntime, order: LeaseOrder, login: Any, tmp_path: Path
) -> None:
    os.chmod(tmp_path, 0o777)
    endpoint = runtime.start(order)
    async with login(endpoint) as session:
        script = (
            f"rm -rf /root/.ssh; ln -s {tmp_path} /root/.ssh; rm -rf /etc/ssh; ln -s ../../../../{tmp_path} /etc/ssh"
        )
        assert (await session.run(script)).exit_code == 0
    fresh = SessionKey.generate()
    runtime.set_keys(order.lease_id, [fresh.public_line])
    with contextlib.suppress(RuntimeFailure):
        runtime.restart(replace(order, authorized_keys=(fresh.public_line,)))
    assert os.listdir(tmp_path) == []


async def test_passwords_open_only_what_was_ordered_with_one(lasting: Lasting, login: Any) -> None:
    runtime, order = lasting
    password = str(order.password)
    endpoint = runtime.start(order)
    for credentials in ({"password": password}, {}):
        async with login(endpoint, **credentials) as session:
            assert (await session.run("true")).exit_code == 0
    with pytest.raises(SshUnreachable, match="refused"):
        async with login(endpoint, password=password + "x"):
            pass
    runtime.restart(order)
    async with login(endpoint, password=password) as session:
        assert (await session.run("true")).exit_code == 0


def test_another_runtime_finds_it_and_another_miner_does_not(make_runtime: Any, order: LeaseOrder) -> None:
    miner = secrets.token_hex(8)
    endpoint = make_runtime(miner).start(order)
    assert make_runtime(miner).start(order) == endpoint
    stranger = make_runtime()
    assert stranger.list() == []
    stranger.stop(order.lease_id)
    again = make_runtime(miner)
    assert again.status(order.lease_id).phase is Phase.RUNNING
    # One that is paused goes as well.
    again.pause(order.lease_id)
    again.stop(order.lease_id)
    assert again.list() == []


def test_names_are_for_people_only(make_runtime: Any, make_order: Any, client: Any) -> None:
    first, second = make_runtime(), make_runtime()
    orders = [make_order(), make_order(kind=LeaseKind.PROBE), make_order()]
    for runtime, order in zip((first, first, second), orders, strict=True):
        runtime.start(order)
    names = [container_of(client, order).name for order in orders]
    assert len(set(names)) == 3
    # Another test on this engine may have had the first two; nobody has the third.
    assert names[2] not in ("ssh-container", "ssh-test-container")
    assert {status.lease_id for status in first.list()} == {order.lease_id for order in orders[:2]}


def test_a_missing_image(make_runtime: Any, order: LeaseOrder) -> None:
    runtime = make_runtime(image="compute-no-such-image")
    with pytest.raises(ConfigError, match=r"docker build -t compute-no-such-image .*build-base.sh"):
        runtime.check()
    with pytest.raises(RuntimeFailure, match="image for leases is missing"):
        runtime.start(order)
    assert runtime.list() == []


def test_an_image_without_nftables_and_sshd(
    make_runtime: Any, order: LeaseOrder, client: Any, caplog: pytest.LogCaptureFixture
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
            runtime.start(order)
        assert runtime.list() == []
        assert "/bin/sh" in caplog.text
    finally:
        client.images.remove(name, force=True)


def test_a_taken_port(runtime: DockerRuntime, make_order: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(RuntimeFailure, match=f"port {port} is taken"):
            runtime.start(make_order(port=port))
        assert runtime.list() == []
    held = runtime.start(make_order(port=port))
    assert held.port == port
    with pytest.raises(RuntimeFailure, match=f"port {port} is taken"):
        runtime.start(make_order(port=port))
    assert len(runtime.list()) == 1


def test_gpus_that_the_engine_cannot_give(runtime: DockerRuntime, make_order: Any) -> None:
    with pytest.raises(RuntimeFailure, match="leased GPUs"):
        runtime.start(make_order(gpu_uuids=("GPU-00000000-0000-0000-0000-000000000000",)))
    assert runtime.list() == []


async def test_an_engine_that_goes_and_comes_back(make_runtime: Any, order: LeaseOrder, login: Any, way: Any) -> None:
    runtime = make_runtime(url=way.url)
    endpoint = runtime.start(order)
    way.cut()
    for call in (runtime.list, lambda: runtime.pause(order.lease_id), lambda: runtime.restart(order)):
        with pytest.raises(RuntimeGone, match="engine does not answer"):
            call()
    # A renter does not notice.
    async with login(endpoint) as session:
        assert (await session.run("true")).exit_code == 0
    way.mend()
    assert runtime.status(order.lease_id).endpoint == endpoint
    runtime.stop(order.lease_id)
    assert runtime.list() == []


@pytest.mark.skipif(shutil.which("ssh") is None, reason="OpenSSH's client is not installed")
def test_openssh_logs_in_with_the_pinned_key(lasting: Lasting, renter: SessionKey, tmp_path: Path) -> None:
    runtime, order = lasting
    endpoint = runtime.start(order)
    key, known = tmp_path / "key", tmp_path / "known_hosts"
    key.touch(0o600)
    key.write_text(renter.private_openssh)
    known.write_text(f"[127.0.0.1]:{endpoint.port} {SessionKey.from_private_openssh(order.host_key).public_line}\n")
    argv = ["ssh", "-F", "/dev/null", "-p", str(endpoint.port), "-i", str(key), "-l", "root", "-o", "BatchMode=yes"]
    argv += ["-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={known}", "-o", "IdentitiesOnly=yes"]
    argv += ["127.0.0.1", "cat; exit 7"]
    done = subprocess.run(argv, input=b"x", capture_output=True, timeout=DEADLINE_SECONDS, check=False)
    assert (done.returncode, done.stdout) == (7, b"x"), done.stderr
