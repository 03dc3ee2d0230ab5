"""Leases as plain processes on loopback: for the localnet, and for tests where there is no Docker.

No isolation whatsoever: a renter runs commands as the miner's own user, and of the limits only the choice of GPUs is
kept. Therefore it refuses to exist unless the chain is a local one and only this machine can connect.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import psutil

import compute
from compute.base.errors import ConfigError, RuntimeFailure
from compute.miner.runtimes import local_processes
from compute.miner.runtimes.base import (
    USERNAME,
    ContainerSpec,
    ContainerState,
    ContainerStatus,
    Endpoint,
    EndsItself,
    Runtime,
)
from compute.miner.runtimes.local_sshd import LeaseFolder, SshdConfig

_LEASE_ID = re.compile(r"[0-9a-f]{32}\Z")
_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
_PASSED_ON = ("LD_LIBRARY_PATH", "CUDA_HOME", "TZ")
_ENDING_SECONDS = 5.0


class LocalRuntime(Runtime, EndsItself):
    """Each lease is one process, ``compute.miner.runtimes.local_sshd``, with a folder of its own under ``folder``.

    The processes outlive the miner; a new one finds them by the folder's state file (pid, start time and the lease's
    id in the environment). A lease that is paused when its end comes waits for the manager: a stopped process cannot
    end itself.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        chain_endpoint: str,
        bind_address: str = "127.0.0.1",
        start_seconds: float = 20.0,
    ) -> None:
        """
        Raises:
            ConfigError: ``chain_endpoint`` is not on this machine, or ``bind_address`` is not a loopback address.
        """
        host = urlsplit(chain_endpoint).hostname or ""
        if host != "localhost" and not _is_loopback(host):
            raise ConfigError(
                f"the local runtime isolates nothing and serves local chains only, not {chain_endpoint!r}: "
                "use the docker runtime"
            )
        if not _is_loopback(bind_address):
            raise ConfigError(
                f"the local runtime listens on loopback addresses such as 127.0.0.1, not {bind_address!r}"
            )
        self._folder = Path(folder).absolute()
        self._bind_address = bind_address
        self._start_seconds = start_seconds

    def accepts_image(self, image: str) -> bool:
        # There are no images here: every lease has the Python that runs the miner.
        return True

    def start(self, spec: ContainerSpec, *, wanted: Callable[[], bool] = lambda: True) -> Endpoint:
        if spec.script:
            raise RuntimeFailure("the local runtime runs no steps of a dockerfile")
        status = self.status(spec.lease_id)
        if status.endpoint is not None:
            if status.state is ContainerState.PAUSED:
                self.unpause(spec.lease_id)
            return status.endpoint
        if status.state is ContainerState.DEAD:
            self.stop(spec.lease_id)
        return self._spawn(spec)

    def stop(self, lease_id: str) -> None:
        self._end_processes(lease_id)
        try:
            self._lease(lease_id).remove()
        except OSError as error:
            raise RuntimeFailure(f"the lease's folder could not be removed: {error.strerror}") from error

    def pause(self, lease_id: str) -> None:
        self._alive(lease_id)
        if not local_processes.freeze(lease_id, timeout_seconds=_ENDING_SECONDS):
            raise RuntimeFailure(f"the lease's processes did not freeze within {_ENDING_SECONDS:g} s")

    def unpause(self, lease_id: str) -> None:
        self._alive(lease_id)
        local_processes.thaw(lease_id)

    def restart(self, spec: ContainerSpec) -> Endpoint:
        self._end_processes(spec.lease_id)
        return self._spawn(spec)

    def set_keys(self, lease_id: str, authorized_keys: Sequence[str]) -> None:
        self._alive(lease_id)
        self._write(lease_id, "authorized_keys", _lines(authorized_keys))

    def set_end(self, lease_id: str, ends_at: float) -> None:
        self._alive(lease_id)
        self._write(lease_id, "ends_at", repr(ends_at))

    def status(self, lease_id: str) -> ContainerStatus:
        lease = self._lease(lease_id)
        if not lease.path.exists():
            return ContainerStatus(lease_id, ContainerState.ABSENT)
        found = _read_state(lease, lease_id)
        if found is None:
            return ContainerStatus(lease_id, ContainerState.DEAD)
        process, endpoint = found
        state = ContainerState.PAUSED if local_processes.is_frozen(process) else ContainerState.RUNNING
        return ContainerStatus(lease_id, state, endpoint)

    def list(self) -> Sequence[ContainerStatus]:
        with contextlib.suppress(FileNotFoundError):
            return [self.status(name) for name in sorted(os.listdir(self._folder)) if _LEASE_ID.match(name)]
        return []

    def _lease(self, lease_id: str) -> LeaseFolder:
        assert _LEASE_ID.match(lease_id), "lease ids are 32 hex digits: they name folders"
        return LeaseFolder(self._folder / lease_id)

    def _alive(self, lease_id: str) -> None:
        state = self.status(lease_id).state
        if state not in (ContainerState.RUNNING, ContainerState.PAUSED):
            raise RuntimeFailure(f"the machine is {state.value}")

    def _write(self, lease_id: str, name: str, text: str) -> None:
        try:
            self._lease(lease_id).write(name, text)
        except OSError as error:
            raise RuntimeFailure(f"{name} could not be written: {error.strerror}") from error

    def _end_processes(self, lease_id: str) -> None:
        if not local_processes.kill(lease_id, timeout_seconds=_ENDING_SECONDS):
            raise RuntimeFailure(f"some of the lease's processes were left after {_ENDING_SECONDS:g} s")

    def _spawn(self, spec: ContainerSpec) -> Endpoint:
        lease = self._lease(spec.lease_id)
        try:
            lease.home.mkdir(parents=True, exist_ok=True, mode=0o700)
            lease.path.chmod(0o700)
            lease.state.unlink(missing_ok=True)
            lease.write("authorized_keys", _lines(spec.authorized_keys))
            lease.write("ends_at", repr(spec.ends_at))
            port = self._run_sshd(spec, lease)
        except OSError as error:
            raise RuntimeFailure(f"the machine could not be started: {error.strerror}") from error
        return Endpoint(port=port, host_key=spec.host_fingerprint)

    def _run_sshd(self, spec: ContainerSpec, lease: LeaseFolder) -> int:
        """Start the server and return the port that it listens on.

        Not ``subprocess``: a child that is meant to outlive its parent is no ``Popen`` to be waited for.
        """
        config = SshdConfig(
            lease_id=spec.lease_id,
            folder=str(lease.path),
            bind_address=self._bind_address,
            port=spec.ssh_port,
            username=USERNAME,
            environment=_environment(spec, lease),
            host_key=spec.host_key,
            password=spec.password,
        )
        child_in, to_child = os.pipe()
        from_child, child_out = os.pipe()
        try:
            try:
                pid = os.posix_spawn(
                    sys.executable,
                    [sys.executable, "-s", "-m", "compute.miner.runtimes.local_sshd"],
                    {**_base_environment(spec), "PYTHONPATH": str(Path(compute.__file__).parents[1])},
                    file_actions=[
                        (os.POSIX_SPAWN_DUP2, child_in, 0),
                        (os.POSIX_SPAWN_DUP2, child_out, 1),
                        (os.POSIX_SPAWN_OPEN, 2, str(lease.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                    ],
                    setsid=True,
                    setsigmask=[],
                    # By which a renter's programs end. A miner under nohup or behind a script's & ignores them, and
                    # so would these.
                    setsigdef=[signal.SIGHUP, signal.SIGINT, signal.SIGQUIT],
                )
            finally:
                os.close(child_in)
                os.close(child_out)
            try:
                # Fits the pipe, so this does not wait for the child.
                os.write(to_child, config.to_json().encode() + b"\n")
                port = _ready_port(from_child, self._start_seconds)
            except (RuntimeFailure, OSError):
                local_processes.kill(spec.lease_id, timeout_seconds=_ENDING_SECONDS)
                local_processes.reap(pid)
                raise
            # The child has left the server to itself, and ended.
            os.waitpid(pid, 0)
            return port
        finally:
            os.close(to_child)
            os.close(from_child)


def _ready_port(descriptor: int, timeout_seconds: float) -> int:
    """Read the server's one line of JSON."""
    deadline = time.monotonic() + timeout_seconds
    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            raise RuntimeFailure(f"the machine did not come up within {timeout_seconds:g} s")
        data = os.read(descriptor, 4096)
        if not data:
            raise RuntimeFailure("the machine ended while it came up; its sshd.log says why")
        line += data
    answer = json.loads(line)
    if "error" in answer:
        raise RuntimeFailure(f"the machine could not be started: {answer['error']}")
    return int(answer["port"])


def _read_state(lease: LeaseFolder, lease_id: str) -> tuple[psutil.Process, Endpoint] | None:
    """The lease's live server, or None where there is none (any more)."""
    try:
        state = json.loads(lease.state.read_text())
        process = local_processes.find(int(state["pid"]), float(state["started"]), lease_id)
        endpoint = Endpoint(port=int(state["port"]), host_key=str(state["host_key"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if process is None else (process, endpoint)


def _base_environment(spec: ContainerSpec) -> dict[str, str]:
    """What the server and its programs share: nothing of the miner's own environment but where libraries are."""
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    # The interpreter's own folder comes first: that ``python3`` has torch.
    path = f"{Path(sys.executable).parent}:{_SYSTEM_PATH}"
    return {**passed_on, "PATH": path, "LANG": "C.UTF-8", local_processes.MARK: spec.lease_id}


def _environment(spec: ContainerSpec, lease: LeaseFolder) -> dict[str, str]:
    return {
        **_base_environment(spec),
        "HOME": str(lease.home),
        "USER": USERNAME,
        "LOGNAME": USERNAME,
        "SHELL": "/bin/sh",
        "CUDA_VISIBLE_DEVICES": ",".join(spec.limits.gpu_uuids),
    }


def _lines(keys: Sequence[str]) -> str:
    return "".join(f"{key}\n" for key in keys)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
