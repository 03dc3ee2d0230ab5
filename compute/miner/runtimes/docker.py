"""Leases as Docker containers: one container per lease, of one image that is there ahead of time."""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from docker.models.containers import Container

from compute.base.errors import ConfigError, RuntimeFailure
from compute.miner.runtimes import docker_files as files
from compute.miner.runtimes.base import (
    ContainerSpec,
    ContainerState,
    ContainerStatus,
    Endpoint,
    Prewarms,
    Renews,
    Runtime,
)
from compute.miner.runtimes.docker_engine import (
    DiskFull,
    DockerEngine,
    EngineGone,
    ImageMissing,
    Missing,
    NameTaken,
    PortTaken,
    QuotaUnsupported,
    wait_for_sshd,
)
from compute.miner.runtimes.docker_files import UNPACK_FAILED
from compute.miner.runtimes.docker_network import LeaseNetwork
from compute.miner.runtimes.docker_options import (
    LABEL_HOST_KEY,
    LABEL_LEASE,
    LABEL_MINER,
    SSH_PORT,
    DockerSettings,
    container_options,
)
from compute.wire.dockerfile import failed_step

logger = logging.getLogger(__name__)

_OLDEST_API = (1, 41)
"""Of engine 20.10."""

_STAND_IN_FOR = ("", "ubuntu", "ubuntu:*", "pytorch/pytorch", "pytorch/pytorch:*")
"""What peers on the network ask for by habit; the operator's image, a Linux with sshd and torch, serves all of them."""

_STATES = {"running": ContainerState.RUNNING, "paused": ContainerState.PAUSED}
_RESTARTABLE = frozenset({"running", "paused", "restarting", "exited"})
_ENDING_SECONDS = 3
_REMOVING_SECONDS = 20.0
_LOOK_SECONDS = 0.05
_PORT_TRIES = 3

T = TypeVar("T")


class SshdCheck(Protocol):
    """``sshd_check.wait_for_sshd``, or what a test has in its place."""

    def __call__(
        self,
        host: str,
        port: int,
        fingerprint: str,
        *,
        within_seconds: float,
        still_alive: Callable[[], bool],
        pause_seconds: float,
    ) -> None: ...


class DockerRuntime(Runtime, Prewarms, Renews):
    """Containers of one miner, found by their labels and by nothing else: names are for people and older peers.

    A container does not end by itself when its lease does, and once down, stays down until it is started here. What
    the image must have: sshd at ``/usr/sbin/sshd``, Python with torch as ``python3`` and as ``/opt/conda/bin/python``.
    """

    def __init__(
        self,
        settings: DockerSettings,
        engine: DockerEngine,
        *,
        start_seconds: float = 20.0,
        sshd_check: SshdCheck = wait_for_sshd,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._network = LeaseNetwork(settings, engine)
        self._start_seconds = start_seconds
        self._sshd_check = sshd_check
        self._quota = True
        self._prewarmed: set[str] = set()

    def check(self) -> None:
        """Return if leases can be started here. Blocks; the network for leases is made if it is not there.

        Raises:
            RuntimeFailure: no engine answers. After a boot it may only be late, so this is worth another try.
            ConfigError: the engine or the image is unfit; the message says what to do.
        """
        try:
            with self._engine.calling("say its version") as client:
                version = client.version()
                api = tuple(int(part) for part in version["ApiVersion"].split("."))
            if api < _OLDEST_API:
                raise ConfigError(f"Docker engine {version['Version']} is too old: 20.10 or newer is needed")
            with self._engine.calling("look for the image") as client:
                client.images.get(self._settings.image)
                if "nvidia" not in client.info().get("Runtimes", {}):
                    logger.warning(
                        "the engine has no nvidia runtime: leases get no GPUs, and fail if they ask for some"
                    )
            self._network.check()
        except ImageMissing as error:
            raise ConfigError(
                f"image {self._settings.image!r} is not on the Docker engine. Build it with: "
                f"docker build -t {self._settings.image} docker/  or, where no registry is reached: "
                f"sudo docker/build-base.sh {self._settings.image}"
            ) from error
        except EngineGone as error:
            raise EngineGone(
                f"no Docker engine answers at {self._engine.url}: is it installed, does it run, and may this user use "
                "it (group docker)? On a chain on this machine, --miner.runtime local does without"
            ) from error
        except RuntimeFailure as error:
            raise ConfigError(f"the Docker engine at {self._engine.url} cannot be used: {error}") from error

    def close(self) -> None:
        """Close the connections to the engine; the machines stay. Idempotent."""
        self._engine.close()

    def remove_network(self) -> None:
        """Remove what ``check`` made, for a miner that does not come back and has no machine any more. Idempotent.

        Raises:
            RuntimeFailure: as ``check``, or a machine is on the network yet.
        """
        self._network.remove()

    def accepts_image(self, image: str) -> bool:
        return image == self._settings.image or any(fnmatch.fnmatchcase(image, name) for name in _STAND_IN_FOR)

    def start(self, spec: ContainerSpec, *, wanted: Callable[[], bool] = lambda: True) -> Endpoint:
        container = self._find(spec.lease_id)
        prewarmed = spec.lease_id in self._prewarmed
        if container is not None and container.status in _STATES and not (prewarmed and self._is_outdated(container)):
            try:
                if container.status == "paused":
                    self._unpause(container)
                if prewarmed:
                    self._network.close()
                    return self._hand_over(container, spec, wanted)
                return self._until_up(container, spec, wanted)
            except RuntimeFailure:
                with contextlib.suppress(RuntimeFailure):
                    self._remove(container)
                raise
        if container is not None:
            self.stop(spec.lease_id)
        return self._launch(spec, lambda container: self._hand_over(container, spec, wanted))

    def prewarm(self, spec: ContainerSpec) -> None:
        self.stop(spec.lease_id)
        self._launch(spec, lambda container: self._prewarmed.add(spec.lease_id))

    def renew(self) -> None:
        self._network.renew()

    def stop(self, lease_id: str) -> None:
        self._prewarmed.discard(lease_id)
        deadline = time.monotonic() + _REMOVING_SECONDS
        containers = self._containers(lease_id)
        while containers:
            for container in containers:
                self._remove(container)
            containers = self._containers(lease_id)
            if containers and time.monotonic() > deadline:
                raise RuntimeFailure(f"the machine was still there {_REMOVING_SECONDS:g} s after its removal")
            if containers:
                time.sleep(_LOOK_SECONDS)

    def pause(self, lease_id: str) -> None:
        container = self._alive(lease_id)
        if container.status == "paused":
            return
        with self._engine.calling("pause the container"):
            container.pause()

    def unpause(self, lease_id: str) -> None:
        container = self._alive(lease_id)
        if container.status == "paused":
            self._unpause(container)

    def restart(self, spec: ContainerSpec) -> Endpoint:
        container = self._find(spec.lease_id)
        if container is None or container.status not in _RESTARTABLE:
            # Nothing of the renter's is in what never ran, or was half removed.
            return self.start(spec)
        self._halt(container)
        try:
            self._put(container, files.restart_archive(spec))
        except DiskFull:
            # The renter's own share of it, most likely. What was put there before will do: a lease is not lost for it.
            logger.warning("no room for new files in the machine of lease %s: it restarts as it is", spec.lease_id)
        try:
            self._network.close()
            self._run(container)
            return self._until_up(container, spec, lambda: True)
        except RuntimeFailure:
            with contextlib.suppress(RuntimeFailure):
                self._halt(container)
            raise

    def set_keys(self, lease_id: str, authorized_keys: Sequence[str]) -> None:
        self._put(self._alive(lease_id), files.keys_archive(authorized_keys))

    def status(self, lease_id: str) -> ContainerStatus:
        container = self._find(lease_id)
        return ContainerStatus(lease_id, ContainerState.ABSENT) if container is None else _status_of(container)

    def list(self) -> Sequence[ContainerStatus]:
        return [_status_of(container) for container in self._containers()]

    def _launch(self, spec: ContainerSpec, then: Callable[[Container], T]) -> T:
        """Run a container for ``spec``, and what is to be done ``then``; or leave nothing of it."""
        self._network.ensure()
        self._network.close()
        for attempt in range(_PORT_TRIES):
            port = spec.ssh_port or _free_port(self._settings.bind_address)
            container = self._create(spec, port)
            try:
                self._run(container)
                return then(container)
            except RuntimeFailure as error:
                with contextlib.suppress(RuntimeFailure):
                    self._remove(container)
                if not isinstance(error, PortTaken):
                    raise
                # A port of our own choice may have been lost to another program since.
                if spec.ssh_port or attempt == _PORT_TRIES - 1:
                    text = f"port {port} is taken by another program on the miner's machine"
                    raise RuntimeFailure(text) from error
        raise AssertionError("the last attempt returns or raises")

    def _create(self, spec: ContainerSpec, port: int) -> Container:
        host = self._engine.host()
        while True:
            options = container_options(spec, self._settings, host, port=port, quota=self._quota)
            try:
                with self._engine.calling("create the container") as client:
                    return client.containers.create(name=f"compute-{spec.lease_id[:12]}", **options)
            except QuotaUnsupported:
                if "storage_opt" not in options:
                    raise
                logger.warning("the engine's storage driver has no disk quota: leases share the whole disk")
                self._quota = False

    def _run(self, container: Container) -> None:
        with self._engine.calling("start the container"):
            container.start()

    def _hand_over(self, container: Container, spec: ContainerSpec, wanted: Callable[[], bool]) -> Endpoint:
        """Give a container that waits for its files those of ``spec``."""
        self._prewarmed.discard(spec.lease_id)
        # Whoever has the name keeps it, and the engine's own choice stays.
        with contextlib.suppress(NameTaken), self._engine.calling("name the container"):
            container.rename(spec.kind.container_name)
        self._engine.feed(container, files.machine_archive(spec))
        return self._until_up(container, spec, wanted)

    def _is_outdated(self, container: Container) -> bool:
        """Whether the image has been built anew since."""
        with self._engine.calling("look for the image") as client:
            return bool(client.images.get(self._settings.image).id != container.attrs["Image"])

    def _until_up(self, container: Container, spec: ContainerSpec, wanted: Callable[[], bool]) -> Endpoint:
        endpoint = _endpoint_of(container)
        bound = self._settings.bind_address
        arrival = Arrival(
            self._engine,
            container,
            spec,
            start_seconds=self._start_seconds,
            script_seconds=self._settings.script_seconds,
            script_bytes=self._settings.script_bytes,
            wanted=wanted,
        )
        try:
            self._sshd_check(
                "127.0.0.1" if bound == "0.0.0.0" else bound,  # noqa: S104 - a comparison
                endpoint.port,
                endpoint.host_key,
                within_seconds=arrival.patience_seconds,
                still_alive=arrival.goes_on,
                pause_seconds=arrival.pause_seconds,
            )
        except EngineGone:
            raise
        except RuntimeFailure as error:
            raise arrival.failure(error) from error
        return endpoint

    def _put(self, container: Container, archive: bytes) -> None:
        with self._engine.calling("put files into the container"):
            container.put_archive("/", archive)

    def _halt(self, container: Container) -> None:
        with self._engine.calling("stop the container"):
            if container.status == "paused":
                container.unpause()
            container.stop(timeout=_ENDING_SECONDS)

    def _unpause(self, container: Container) -> None:
        with self._engine.calling("unpause the container"):
            container.unpause()

    def _remove(self, container: Container) -> None:
        with contextlib.suppress(Missing), self._engine.calling("remove the container"):
            container.remove(force=True, v=True)

    def _alive(self, lease_id: str) -> Container:
        container = self._find(lease_id)
        if container is None or container.status not in _STATES:
            state = ContainerState.ABSENT if container is None else ContainerState.DEAD
            raise RuntimeFailure(f"the machine is {state.value}")
        return container

    def _find(self, lease_id: str) -> Container | None:
        return next(iter(self._containers(lease_id)), None)

    def _containers(self, lease_id: str | None = None) -> Sequence[Container]:
        lease = LABEL_LEASE if lease_id is None else f"{LABEL_LEASE}={lease_id}"
        wanted = [f"{LABEL_MINER}={self._settings.miner}", lease]
        with self._engine.calling("list the containers") as client:
            return client.containers.list(all=True, filters={"label": wanted}, ignore_removed=True)


def _status_of(container: Container) -> ContainerStatus:
    state = _STATES.get(container.status, ContainerState.DEAD)
    endpoint = None if state is ContainerState.DEAD else _endpoint_of(container)
    return ContainerStatus(container.labels[LABEL_LEASE], state, endpoint)


def _endpoint_of(container: Container) -> Endpoint:
    bindings: Mapping[str, Any] = container.attrs["HostConfig"]["PortBindings"]
    return Endpoint(port=int(bindings[SSH_PORT][0]["HostPort"]), host_key=container.labels[LABEL_HOST_KEY])


def _free_port(address: str) -> int:
    """A port that nobody listens on just now: one of the engine's choice would change with every restart."""
    try:
        with socket.create_server((address, 0)) as server:
            return int(server.getsockname()[1])
    except OSError as error:
        raise RuntimeFailure(f"no free port on the miner's machine: {error.strerror}") from error


_PAUSE_SECONDS = 0.02
_SCRIPT_PAUSE_SECONDS = 0.5
_SIZE_SECONDS = 5.0
_LOG_LINES = 20


class Arrival:
    """Watches over one start. ``patience_seconds`` and ``pause_seconds`` are for whoever waits for its sshd."""

    def __init__(
        self,
        engine: DockerEngine,
        container: Container,
        spec: ContainerSpec,
        *,
        start_seconds: float,
        script_seconds: float,
        script_bytes: int,
        wanted: Callable[[], bool],
    ) -> None:
        """``script_bytes`` is what the spec's script may write, where no disk was asked for."""
        self.patience_seconds = start_seconds + (script_seconds if spec.script else 0)
        self.pause_seconds = _SCRIPT_PAUSE_SECONDS if spec.script else _PAUSE_SECONDS
        self._engine = engine
        self._container = container
        self._has_script = bool(spec.script)
        self._bytes = spec.limits.disk_bytes or script_bytes
        self._wanted = wanted
        self._begun = self._measured = time.monotonic()

    def goes_on(self) -> bool:
        """Whether it may still come up.

        Raises:
            RuntimeFailure: it must not.
        """
        if not self._wanted():
            raise RuntimeFailure("the lease ended while its machine came up")
        if self._has_script and time.monotonic() - self._measured > _SIZE_SECONDS:
            self._measure()
        with self._engine.calling("describe the container"):
            self._container.reload()
        return bool(self._container.status == "running")

    def failure(self, error: RuntimeFailure) -> RuntimeFailure:
        """What to tell the renter where waiting ended with ``error``; never raises."""
        if not self._has_script:
            # What a script has said is its renter's alone.
            with contextlib.suppress(RuntimeFailure), self._engine.calling("show the container's log"):
                said = self._container.logs(tail=_LOG_LINES).decode(errors="backslashreplace").strip()
                logger.warning("the container did not come up; it said: %s", said or "nothing")
        with contextlib.suppress(RuntimeFailure), self._engine.calling("describe the container"):
            self._container.reload()
            state = self._container.attrs["State"]
            if state["Status"] != "running" and int(state["ExitCode"]) == UNPACK_FAILED:
                return DiskFull("the machine's files could not be written: the miner's disk is full")
            if self._has_script:
                return RuntimeFailure(self._script_failure(state) or str(error))
        return error

    def _script_failure(self, state: Mapping[str, Any]) -> str | None:
        if state["Status"] == "running":
            late = time.monotonic() - self._begun >= self.patience_seconds
            return f"the dockerfile took longer than {self.patience_seconds:g} s" if late else None
        if step := failed_step(int(state["ExitCode"])):
            return f"step {step} of the dockerfile failed"
        if state.get("OOMKilled"):
            return "the dockerfile needs more memory than the lease has"
        return None

    def _measure(self) -> None:
        with self._engine.calling("measure the container") as client:
            found = client.api.containers(all=True, size=True, filters={"id": self._container.id})
            written = sum(int(each.get("SizeRw", 0)) for each in found)
        if written > self._bytes:
            raise RuntimeFailure(f"the dockerfile wrote {written >> 20} MiB, and may write {self._bytes >> 20} MiB")
        self._measured = time.monotonic()
