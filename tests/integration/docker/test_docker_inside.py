"""What a renter, who is root in the container, can and cannot do there."""

from __future__ import annotations

import io
import secrets
import socket
from collections.abc import Callable
from typing import Any

import paramiko
import pytest

from compute.base.errors import SshUnreachable
from compute.base.ssh import CommandResult
from compute.miner.runtimes.base import ContainerSpec, Endpoint
from compute.wire.keys import SessionKey
from tests.waiting import DEADLINE_SECONDS

pytestmark = pytest.mark.docker

MIB = 1 << 20
DOCKERS_CAPABILITIES = 0xA80425FB
"""What Docker leaves to root where nobody says anything."""
OURS = 0x200400CB
"""CHOWN, DAC_OVERRIDE, FOWNER, SETGID, SETUID, SYS_CHROOT, AUDIT_WRITE."""


@pytest.fixture(scope="module")
def machine(make_runtime: Any, make_spec: Any) -> tuple[Endpoint, ContainerSpec]:
    """One container for all tests here, with 512 MiB of memory."""
    spec = make_spec(ram_bytes=512 * MIB)
    return make_runtime().start(spec), spec


Run = Callable[..., Any]


@pytest.fixture
def run(machine: tuple[Endpoint, ContainerSpec], login: Any) -> Run:
    async def run(command: list[str] | str, *, timeout_seconds: float = DEADLINE_SECONDS) -> CommandResult:
        async with login(machine[0]) as session:
            return await session.run(command, timeout_seconds=timeout_seconds)

    return run


def python(script: str) -> list[str]:
    return ["python3", "-c", script]


async def test_capabilities_privileges_and_system_calls(run: Run) -> None:
    text = (await run(["cat", "/proc/self/status"])).stdout.decode()
    status = dict(line.split(":\t", 1) for line in text.splitlines())
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Prm", "Eff", "Bnd")} == {OURS}
    assert OURS & ~DOCKERS_CAPABILITIES == 0
    assert status["NoNewPrivs"].strip() == "1"
    # 2: a filter, which is Docker's default profile.
    assert status["Seccomp"].strip() == "2"


async def test_what_needs_more_power_fails(machine: tuple[Endpoint, ContainerSpec], login: Any) -> None:
    async with login(machine[0]) as session:
        for command in (
            ["unshare", "--user", "--map-root-user", "true"],
            ["unshare", "--mount", "true"],
            ["mount", "-t", "tmpfs", "none", "/mnt"],
            ["mknod", "/tmp/disk", "b", "254", "0"],
            ["ip", "link", "set", "lo", "down"],
            ["ip", "route", "del", "default"],
            ["sh", "-c", "echo 1 >/proc/sys/kernel/sysrq"],
            ["sh", "-c", "echo x >/sys/kernel/uevent_helper"],
            ["dmesg"],
            ["nsenter", "--target", "1", "--mount", "true"],
        ):
            result = await session.run(command)
            assert result.exit_code not in (0, 127), (command, result)


async def test_no_program_gives_more_power_than_its_caller_has(run: Run) -> None:
    # Set-uid root, run by nobody.
    await run("cp /usr/bin/id /tmp/id && chmod 4755 /tmp/id")
    result = await run(["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "/tmp/id", "-u"])
    assert result.stdout == b"65534\n", result
    # A file's capabilities: CAP_SYS_ADMIN, permitted and effective.
    script = "import os; os.setxattr('/tmp/id', 'security.capability', bytes.fromhex('0100000200002000' + '00' * 12))"
    result = await run(python(script))
    assert b"PermissionError" in result.stderr, result


async def test_no_docker_socket_and_nothing_of_the_host_mounted(run: Run) -> None:
    assert (await run(["test", "-e", "/var/run/docker.sock"])).exit_code == 1
    assert (await run(["test", "-e", "/run/docker.sock"])).exit_code == 1
    text = (await run(["cat", "/proc/self/mountinfo"])).stdout.decode()
    virtual = {"proc", "tmpfs", "devpts", "sysfs", "cgroup", "cgroup2", "mqueue"}
    seen = {}
    for line in text.splitlines():
        before, after = line.split(" - ")
        if after.split()[0] not in virtual:
            seen[before.split()[4]] = before.split()[5].split(",")[0]
    # The root, and the engine's own: names, and an init that cannot be written.
    assert seen.pop("/sbin/docker-init", seen.pop("/usr/sbin/docker-init", None)) == "ro"
    assert set(seen) == {"/", "/etc/resolv.conf", "/etc/hostname", "/etc/hosts"}


async def test_no_devices_but_the_usual_ones(run: Run) -> None:
    names = set((await run(["ls", "/dev"])).stdout.decode().split())
    assert names <= {
        *("console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm"),
        *("stderr", "stdin", "stdout", "tty", "urandom", "zero"),
    }


async def test_a_fork_bomb_ends_at_the_limit(run: Run) -> None:
    script = """
import os, time
born = []
try:
    while len(born) < 2000:
        pid = os.fork()
        if not pid:
            time.sleep(100)
        born.append(pid)
except BlockingIOError:
    print(len(born))
finally:
    for pid in born:
        os.kill(pid, 9)
"""
    result = await run(python(script))
    assert result.exit_code == 0, result
    assert 200 < int(result.stdout) < 256
    assert (await run("echo alive")).stdout == b"alive\n"


async def test_memory_ends_at_the_limit_and_the_machine_lives_on(run: Run) -> None:
    fits = python(f"bytearray(b'x') * (300 * {MIB}); print('fits')")
    assert (await run(fits)).stdout == b"fits\n"
    too_much = python(f"bytearray(b'x') * (700 * {MIB}); print('fits')")
    result = await run(too_much)
    assert (result.exit_code, result.stdout) == (-1, b"")
    # Files in shared memory count as memory, and there is at most half of it.
    shared = await run(["df", "--output=size", "-B", str(MIB), "/dev/shm"])
    assert shared.stdout.split()[-1] == b"256"
    assert (await run("echo alive")).stdout == b"alive\n"


async def test_the_hosts_loopback_is_out_of_reach(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        script = f"""
import socket, subprocess
gateway = subprocess.check_output(["ip", "route"]).split()[2].decode()
for host in ("127.0.0.1", gateway):
    try:
        socket.create_connection((host, {port}), 3).close()
        print("reached", host)
    except OSError as error:
        print(type(error).__name__)
"""
        result = await run(python(script))
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert b"reached" not in result.stdout
    assert len(result.stdout.split()) == 2, result


async def test_two_containers_do_not_see_each_other(run: Run, make_runtime: Any, make_spec: Any, client: Any) -> None:
    neighbour = make_runtime()
    spec = make_spec()
    neighbour.start(spec)
    (found,) = client.containers.list(filters={"label": f"compute.lease={spec.lease_id}"})
    (network,) = found.attrs["NetworkSettings"]["Networks"].values()
    script = f"import socket; socket.create_connection(({network['IPAddress']!r}, 22), 3)"
    result = await run(python(script))
    neighbour.stop(spec.lease_id)
    assert result.exit_code == 1
    assert b"No route to host" in result.stderr, result


async def test_python_with_torch_where_validators_look_for_it(run: Run) -> None:
    # Importing it takes seconds, and is done once; a proof in test_docker_leases.py does it with the other.
    result = await run(["/opt/conda/bin/python", "-c", "import torch; print(int(torch.ones(3).sum()))"])
    assert result.stdout == b"3\n", result
    where = "import importlib.util; print(importlib.util.find_spec('torch').origin)"
    for path in ("python3", "/opt/conda/bin/python"):
        assert (await run([path, "-c", where])).stdout, path


async def test_a_terminal_and_files(machine: tuple[Endpoint, ContainerSpec], renter: SessionKey) -> None:
    transport = paramiko.Transport(("127.0.0.1", machine[0].port))
    try:
        transport.start_client(timeout=DEADLINE_SECONDS)
        transport.auth_publickey("root", paramiko.Ed25519Key.from_private_key(io.StringIO(renter.private_openssh)))
        channel = transport.open_session()
        channel.get_pty("vt100", width=101, height=37)
        channel.exec_command("stty size; tty")
        channel.settimeout(DEADLINE_SECONDS)
        assert channel.makefile().read().split() == [b"37", b"101", b"/dev/pts/0"]
        sftp = paramiko.SFTPClient.from_transport(transport)
        assert sftp is not None
        content = secrets.token_bytes(1 << 20)
        sftp.putfo(io.BytesIO(content), "/root/file")
        buffer = io.BytesIO()
        sftp.getfo("/root/file", buffer)
        assert buffer.getvalue() == content
    finally:
        transport.close()


async def test_no_password_opens_a_machine_that_was_ordered_with_a_key(
    machine: tuple[Endpoint, ContainerSpec], login: Any
) -> None:
    for password in ("", "*", "root"):
        with pytest.raises(SshUnreachable, match="refused"):
            async with login(machine[0], password=password):
                pass
