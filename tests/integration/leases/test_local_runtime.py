from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import paramiko
import psutil
import pytest

from compute.base import ssh
from compute.base.errors import ConfigError, RuntimeFailure, SshError, SshTimeout, SshUnreachable
from compute.base.ssh import SshSession
from compute.miner.runtimes import local_processes
from compute.miner.runtimes.base import ContainerSpec, ContainerState, ContainerStatus, Endpoint
from compute.miner.runtimes.local import LocalRuntime
from compute.wire.keys import SessionKey
from tests.waiting import DEADLINE_SECONDS, until

Start = Callable[[LocalRuntime, ContainerSpec], Endpoint]


@pytest.fixture(params=["in the foreground", "with nohup, behind a script's &"])
def start(request: pytest.FixtureRequest) -> Start:
    """Start a machine as a miner does that was itself started so."""
    handler = signal.SIG_IGN if "nohup" in request.param else signal.SIG_DFL

    def begin(runtime: LocalRuntime, spec: ContainerSpec) -> Endpoint:
        before = {number: signal.signal(number, handler) for number in (signal.SIGHUP, signal.SIGINT)}
        try:
            return runtime.start(spec)
        finally:
            for number, kept in before.items():
                signal.signal(number, kept)

    return begin


def server_of(runtime: LocalRuntime, spec: ContainerSpec) -> psutil.Process:
    state = json.loads((runtime._folder / spec.lease_id / "state.json").read_text())
    return psutil.Process(state["pid"])


def runs(pid: int) -> bool:
    try:
        return local_processes.is_alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


async def start_in_background(session: SshSession, script: str = "sleep 1000") -> int:
    result = await session.run(f"nohup {script} >/dev/null 2>&1 & echo $!")
    return int(result.stdout)


@pytest.mark.parametrize(
    ("chain", "bind"),
    [
        ("wss://entrypoint-finney.opentensor.ai:443", "127.0.0.1"),
        ("ws://10.0.0.1:9944", "127.0.0.1"),
        ("ws://127.0.0.1.example.org:9944", "127.0.0.1"),
        ("", "127.0.0.1"),
        ("ws://127.0.0.1:9944", "0.0.0.0"),
        ("ws://127.0.0.1:9944", "::"),
        ("ws://127.0.0.1:9944", "localhost"),
    ],
)
def test_it_exists_on_a_local_chain_and_on_loopback_only(tmp_path: Path, chain: str, bind: str) -> None:
    with pytest.raises(ConfigError):
        LocalRuntime(tmp_path, chain_endpoint=chain, bind_address=bind)


@pytest.mark.parametrize("chain", ["ws://127.0.0.1:9944", "ws://localhost:1", "ws://[::1]:9944"])
def test_local_chains(tmp_path: Path, chain: str) -> None:
    assert LocalRuntime(tmp_path, chain_endpoint=chain).list() == []


async def test_commands_with_their_streams_and_exit_codes(session: SshSession) -> None:
    result = await session.run("cat; echo oops >&2; exit 3", input=b"in\0put")
    assert (result.exit_code, result.stdout, result.stderr) == (3, b"in\0put", b"oops\n")
    result = await session.run(["printf", "%s|", "a b", "$HOME", "'", "*"])
    assert result.stdout == b"a b|$HOME|'|*|"
    assert (await session.run("kill -9 $$")).exit_code == 128 + 9
    assert (await session.run("true")).exit_code == 0
    assert (await session.run(["no-such-program"])).exit_code == 127


async def test_many_commands_at_once(session: SshSession) -> None:
    results = await asyncio.gather(*(session.run(["echo", str(number)]) for number in range(20)))
    assert [int(result.stdout) for result in results] == list(range(20))


async def test_large_streams_both_ways(session: SshSession) -> None:
    size = 8 << 20
    data = os.urandom(size)
    result = await session.run(["cat"], input=data, max_output_bytes=size)
    assert result.stdout == data


async def test_a_reader_that_waits_makes_the_program_wait(
    session: SshSession, runtime: LocalRuntime, spec: ContainerSpec
) -> None:
    channel = await session.open(["head", "-c", "1000000000", "/dev/zero"])
    await channel.read_exactly(1, timeout_seconds=DEADLINE_SECONDS)
    (program,) = [child for child in server_of(runtime, spec).children(recursive=True) if child.name() == "head"]
    written = -1
    while written != (written := program.io_counters().write_chars):
        await asyncio.sleep(0.1)
    assert 0 < written < 8 << 20
    await channel.close()


async def test_the_environment_is_clean_and_python_is_ours(
    runtime: LocalRuntime, spec: ContainerSpec, login: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret-of-the-miner")
    spec = replace(spec, password="password-of-the-renter")
    async with login(runtime.start(spec)) as session:
        environment = (await session.run("env; pwd")).stdout.decode()
        python = (await session.run(["python3", "-c", "import sys; print(sys.prefix)"])).stdout.decode().strip()
    home = runtime._folder / spec.lease_id / "home"
    assert f"HOME={home}\n" in environment
    assert environment.endswith(f"\n{home}\n")
    assert "CUDA_VISIBLE_DEVICES=GPU-0,GPU-1\n" in environment
    assert python == sys.prefix
    server = server_of(runtime, spec)
    visible = environment + " ".join(server.cmdline()) + str(server.environ())
    for secret in ("secret-of-the-miner", "password-of-the-renter", "PRIVATE KEY"):
        assert secret not in visible
    folder = runtime._folder / spec.lease_id
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not any("PRIVATE" in path.read_text() for path in folder.iterdir() if path.is_file())


async def test_start_is_idempotent_and_quick(runtime: LocalRuntime, spec: ContainerSpec) -> None:
    before = time.process_time()
    endpoint = runtime.start(spec)
    assert runtime.start(spec) == endpoint
    assert time.process_time() - before < 1
    assert endpoint.host_key == SessionKey.from_private_openssh(spec.host_key).fingerprint
    assert runtime.list() == [ContainerStatus(spec.lease_id, ContainerState.RUNNING, endpoint)]
    # Another miner on the same folder finds it.
    other = LocalRuntime(runtime._folder, chain_endpoint="ws://127.0.0.1:9944")
    assert other.start(spec) == endpoint
    assert other.status(spec.lease_id) == runtime.status(spec.lease_id)


async def test_stop_leaves_nothing(runtime: LocalRuntime, spec: ContainerSpec, login: Any, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    endpoint = runtime.start(spec)
    async with login(endpoint) as session:
        await session.run(f"mkdir -p a/b && touch a/b/c && chmod 0 a/b a && ln -s {outside} link")
        child = await start_in_background(session)
        orphan = int((await session.run("(setsid sleep 1000 >/dev/null 2>&1 & echo $!)")).stdout)
        server = server_of(runtime, spec)
        runtime.stop(spec.lease_id)
        with pytest.raises(SshError):
            await session.run("true", timeout_seconds=DEADLINE_SECONDS)
    assert not any(runs(pid) for pid in (child, orphan, server.pid))
    assert runtime.list() == []
    assert outside.stat().st_mode & 0o777 == 0o755
    with pytest.raises(SshUnreachable):
        async with login(endpoint):
            pass
    runtime.stop(spec.lease_id)
    assert runtime.status(spec.lease_id).state is ContainerState.ABSENT


async def test_the_server_descends_from_nobody_here(runtime: LocalRuntime, spec: ContainerSpec) -> None:
    runtime.start(spec)
    server = server_of(runtime, spec)
    assert server not in psutil.Process().children(recursive=True)
    assert [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE] == []


async def test_pause_freezes_connections_and_programs_and_unpause_lets_them_go_on(
    runtime: LocalRuntime, spec: ContainerSpec, session: SshSession, login: Any
) -> None:
    child = await start_in_background(session)
    channel = await session.open(["cat"])
    runtime.pause(spec.lease_id)
    runtime.pause(spec.lease_id)
    status = runtime.status(spec.lease_id)
    assert status.state is ContainerState.PAUSED
    assert psutil.Process(child).status() == psutil.STATUS_STOPPED
    with pytest.raises(SshTimeout):
        async with ssh.connect("127.0.0.1", status.endpoint.port, username="root", pinned=None, timeout_seconds=0.2):
            pass
    await channel.write(b"while frozen", timeout_seconds=DEADLINE_SECONDS)
    runtime.unpause(spec.lease_id)
    runtime.unpause(spec.lease_id)
    assert await channel.read_exactly(12, timeout_seconds=DEADLINE_SECONDS) == b"while frozen"
    assert runtime.status(spec.lease_id).state is ContainerState.RUNNING
    async with login(status.endpoint) as other:
        assert (await other.run("echo back")).stdout == b"back\n"


async def test_set_keys_shuts_the_old_key_out(
    runtime: LocalRuntime, spec: ContainerSpec, renter: SessionKey, login: Any
) -> None:
    endpoint = runtime.start(spec)
    new = SessionKey.generate()
    async with login(endpoint, renter):
        runtime.set_keys(spec.lease_id, ["", new.public_line])
    with pytest.raises(SshUnreachable, match="refused"):
        async with login(endpoint, renter):
            pass
    async with login(endpoint, new) as session:
        assert (await session.run("true")).exit_code == 0


@pytest.mark.parametrize("password", [None, "correct horse battery"])
async def test_passwords_only_where_ordered(runtime: LocalRuntime, spec: ContainerSpec, password: str | None) -> None:
    port = runtime.start(replace(spec, password=password, authorized_keys=())).port
    for tried, works in [("", False), ("wrong", False), ("correct horse battery", password is not None)]:
        attempt = ssh.connect("127.0.0.1", port, username="root", pinned=None, password=tried)
        if works:
            async with attempt as session:
                assert (await session.run("true")).exit_code == 0
        else:
            with pytest.raises(SshUnreachable, match="refused"):
                async with attempt:
                    pass


async def test_another_user_is_refused(runtime: LocalRuntime, spec: ContainerSpec, renter: SessionKey) -> None:
    port = runtime.start(spec).port
    with pytest.raises(SshUnreachable, match="refused"):
        async with ssh.connect("127.0.0.1", port, username="admin", pinned=None, private_key=renter.private_openssh):
            pass


async def test_a_killed_server_is_dead_and_restart_keeps_its_files(
    runtime: LocalRuntime, spec: ContainerSpec, login: Any, hold_port: Callable[..., int]
) -> None:
    spec = replace(spec, ssh_port=hold_port())
    endpoint = runtime.start(spec)
    async with login(endpoint) as session:
        await session.run("echo kept > file")
        orphan = await start_in_background(session)
        server_of(runtime, spec).kill()
    until(lambda: runtime.status(spec.lease_id).state is ContainerState.DEAD, "the server is dead")
    for change in (runtime.pause, runtime.unpause):
        with pytest.raises(RuntimeFailure, match="dead"):
            change(spec.lease_id)
    with pytest.raises(RuntimeFailure, match="dead"):
        runtime.set_keys(spec.lease_id, [])
    assert runtime.restart(spec) == endpoint
    assert not runs(orphan)
    async with login(endpoint) as session:
        assert (await session.run("cat file")).stdout == b"kept\n"
    server_of(runtime, spec).kill()
    until(lambda: runtime.status(spec.lease_id).state is ContainerState.DEAD, "the server is dead")
    async with login(runtime.start(spec)) as session:
        assert (await session.run("cat file")).exit_code != 0


async def test_restart_wakes_a_paused_machine(
    runtime: LocalRuntime, spec: ContainerSpec, login: Any, hold_port: Callable[..., int]
) -> None:
    spec = replace(spec, ssh_port=hold_port())
    runtime.start(spec)
    runtime.pause(spec.lease_id)
    async with login(runtime.restart(spec)) as session:
        assert (await session.run("true")).exit_code == 0


def test_somebody_elses_process_is_never_taken_for_the_server(runtime: LocalRuntime, spec: ContainerSpec) -> None:
    runtime.start(spec)
    server_of(runtime, spec).kill()
    until(lambda: runtime.status(spec.lease_id).state is ContainerState.DEAD, "the server is dead")
    innocent = subprocess.Popen(["sleep", "1000"])
    try:
        path = runtime._folder / spec.lease_id / "state.json"
        state = json.loads(path.read_text())
        started = psutil.Process(innocent.pid).create_time()
        for stolen in ({"pid": innocent.pid}, {"pid": innocent.pid, "started": started}, {"pid": "x"}):
            path.write_text(json.dumps({**state, **stolen}))
            assert runtime.status(spec.lease_id).state is ContainerState.DEAD
            runtime.stop(spec.lease_id)
            assert innocent.poll() is None
            path.parent.mkdir(exist_ok=True)
    finally:
        innocent.kill()
        innocent.wait()


async def test_it_ends_by_itself_with_all_that_it_runs_and_not_before_its_new_end(
    runtime: LocalRuntime, spec: ContainerSpec, login: Any
) -> None:
    endpoint = runtime.start(spec)
    async with login(endpoint) as session:
        child = await start_in_background(session)
    first = time.time() + 5
    runtime.set_end(spec.lease_id, first)
    # Whoever comes wakes the server, which then waits for this end.
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=DEADLINE_SECONDS) as visitor:
        assert visitor.recv(4) == b"SSH-"
    end = first + 1
    runtime.set_end(spec.lease_id, end)
    until(lambda: runtime.status(spec.lease_id).state is ContainerState.ABSENT, "it has ended by itself")
    assert time.time() >= end
    assert not runs(child)


async def test_a_port_in_use_is_a_failure_that_says_so(runtime: LocalRuntime, spec: ContainerSpec) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(RuntimeFailure, match="in use"):
        runtime.start(replace(spec, ssh_port=taken.getsockname()[1]))
    assert runtime.status(spec.lease_id).state is ContainerState.DEAD
    runtime.stop(spec.lease_id)
    assert runtime.list() == []


async def test_a_program_ends_with_its_channel(session: SshSession) -> None:
    channel = await session.open("echo $$; exec sleep 1000")
    line = b""
    while not line.endswith(b"\n"):
        line += await channel.read_exactly(1, timeout_seconds=DEADLINE_SECONDS)
    await channel.close()
    until(lambda: not runs(int(line)), "the program has ended")


async def test_a_program_ends_with_its_connection(
    runtime: LocalRuntime, spec: ContainerSpec, login: Any, start: Start
) -> None:
    start(runtime, spec)
    async with login(runtime.start(spec)) as session:
        channel = await session.open("echo $$; exec sleep 1000")
        line = b""
        while not line.endswith(b"\n"):
            line += await channel.read_exactly(1, timeout_seconds=DEADLINE_SECONDS)
    until(lambda: not runs(int(line)), "the program has ended")


def paramiko_client(endpoint: Endpoint, key: SessionKey) -> paramiko.Transport:
    transport = paramiko.Transport(("127.0.0.1", endpoint.port))
    transport.connect(username="root", pkey=paramiko.Ed25519Key.from_private_key(io.StringIO(key.private_openssh)))
    return transport


class Screen:
    """What a terminal shows, read piece by piece."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self._channel.settimeout(DEADLINE_SECONDS)
        self._unread = b""

    def until(self, wanted: bytes) -> bytes:
        while wanted not in self._unread:
            data = self._channel.recv(4096)
            assert data, self._unread
            self._unread += data
        text, self._unread = self._unread.split(wanted, 1)
        return text


async def test_a_terminal(runtime: LocalRuntime, spec: ContainerSpec, renter: SessionKey, start: Start) -> None:
    transport = paramiko_client(start(runtime, spec), renter)
    try:
        channel = transport.open_session()
        channel.get_pty("vt100", width=101, height=37)
        channel.invoke_shell()
        screen = Screen(channel)
        # Each command waits for the prompt: what is typed while bash changes the terminal's mode may be dropped.
        channel.sendall(b"PS1=re''ady'> '\n")
        screen.until(b"ready> ")
        channel.sendall(b"stty size; echo $TERM-$((40+2)); tty\n")
        text = screen.until(b"ready> ")
        for shown in (b"37 101", b"vt100-42", b"/dev/pts/"):
            assert shown in text
        channel.resize_pty(width=55, height=22)
        channel.sendall(b"stty size\n")
        screen.until(b"22 55")
        screen.until(b"ready> ")
        channel.sendall(b"sleep 1000\n")
        server = server_of(runtime, spec)
        until(lambda: "sleep" in [child.name() for child in server.children(recursive=True)], "sleep runs")
        channel.sendall(b"\x03")
        screen.until(b"^C")
        screen.until(b"ready> ")
        channel.sendall(b"echo $((9*9))on; exit 5\n")
        screen.until(b"81on")
        assert channel.recv_exit_status() == 5
    finally:
        transport.close()


async def test_nothing_but_sessions(runtime: LocalRuntime, spec: ContainerSpec, renter: SessionKey) -> None:
    transport = paramiko_client(runtime.start(spec), renter)
    try:
        with pytest.raises(paramiko.ChannelException):
            transport.open_channel("direct-tcpip", ("127.0.0.1", 22), ("127.0.0.1", 1))
        with pytest.raises(paramiko.SSHException):
            transport.request_port_forward("127.0.0.1", 0)
    finally:
        transport.close()


@pytest.mark.skipif(shutil.which("ssh") is None, reason="OpenSSH's client is not installed")
async def test_openssh(runtime: LocalRuntime, spec: ContainerSpec, renter: SessionKey, tmp_path: Path) -> None:
    endpoint = runtime.start(spec)
    key, known = tmp_path / "key", tmp_path / "known_hosts"
    key.touch(0o600)
    key.write_text(renter.private_openssh)
    host = SessionKey.from_private_openssh(spec.host_key).public_line
    known.write_text(f"[127.0.0.1]:{endpoint.port} {host}\n")
    argv = ["ssh", "-F", "/dev/null", "-p", str(endpoint.port), "-i", str(key), "-l", "root"]
    argv += ["-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={known}", "-o", "IdentitiesOnly=yes"]
    argv += ["-o", "BatchMode=yes"]

    def run(*extra: str, text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([*argv, *extra], input=text, capture_output=True, timeout=DEADLINE_SECONDS, check=False)

    done = run("127.0.0.1", "cat; echo err >&2; exit 7", text=b"hello")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"hello", b"err\n")
    done = run("127.0.0.1", "head -c 3000000 /dev/zero")
    assert (done.returncode, len(done.stdout)) == (0, 3_000_000)
    done = run("-tt", "127.0.0.1", "test -t 0 && test -t 1 && echo $TERM yes")
    assert (done.returncode, done.stdout.strip().endswith(b"yes")) == (0, True)
    done = run("-tt", "127.0.0.1", text=b"echo $((6*7))x\nexit 3\n")
    assert (done.returncode, b"42x" in done.stdout) == (3, True)
    known.write_text(f"[127.0.0.1]:{endpoint.port} {SessionKey.generate().public_line}\n")
    assert run("127.0.0.1", "true").returncode == 255


async def test_sigstop_from_outside_shows_as_paused(runtime: LocalRuntime, spec: ContainerSpec) -> None:
    runtime.start(spec)
    server_of(runtime, spec).send_signal(signal.SIGSTOP)
    until(lambda: runtime.status(spec.lease_id).state is ContainerState.PAUSED, "it is paused")
    assert runtime.start(spec).port == runtime.status(spec.lease_id).endpoint.port
    until(lambda: runtime.status(spec.lease_id).state is ContainerState.RUNNING, "it runs")
