"""A runtime that starts nothing: for tests of the manager, and of whatever stands on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from compute.base.errors import RuntimeFailure, RuntimeGone
from compute.miner.runtimes.base import (
    ContainerSpec,
    ContainerState,
    ContainerStatus,
    Endpoint,
    EndsItself,
    Prewarms,
    Renews,
    Runtime,
)


@dataclass
class FakeContainer:
    """One container of a ``FakeRuntime``; tests read it, and set ``state`` to kill it."""

    spec: ContainerSpec
    endpoint: Endpoint
    state: ContainerState = ContainerState.RUNNING
    starts: int = 1


class FakeRuntime(Runtime, Prewarms, Renews, EndsItself):
    """Containers are entries of ``containers``, which may be given to another instance: a miner that was restarted.

    ``fail`` names methods that raise RuntimeFailure; while ``gone``, all raise RuntimeGone; ``gate``, when given, is
    what ``start`` waits for. ``prewarmed`` are the standby containers.
    ``calls`` is the name of every method called, in order.
    """

    def __init__(
        self, containers: dict[str, FakeContainer] | None = None, *, images: frozenset[str] | None = None
    ) -> None:
        self.containers = {} if containers is None else containers
        self.prewarmed: dict[str, ContainerSpec] = {}
        self.images = images
        self.fail: set[str] = set()
        self.gone = False
        self.gate: threading.Event | None = None
        self.calls: list[str] = []

    def accepts_image(self, image: str) -> bool:
        return self.images is None or image in self.images

    def start(self, spec: ContainerSpec, *, wanted: Callable[[], bool] = lambda: True) -> Endpoint:
        self._called("start")
        while self.gate is not None and not self.gate.wait(0.01):
            if not wanted():
                raise RuntimeFailure("no longer wanted")
        container = self.containers.get(spec.lease_id)
        if container is not None and container.state is ContainerState.RUNNING:
            return container.endpoint
        return self._bring_up(spec)

    def prewarm(self, spec: ContainerSpec) -> None:
        self._called("prewarm")
        self.prewarmed[spec.lease_id] = spec

    def renew(self) -> None:
        self._called("renew")

    def stop(self, lease_id: str) -> None:
        self._called("stop")
        self.prewarmed.pop(lease_id, None)
        self.containers.pop(lease_id, None)

    def pause(self, lease_id: str) -> None:
        self._called("pause")
        self._alive(lease_id).state = ContainerState.PAUSED

    def unpause(self, lease_id: str) -> None:
        self._called("unpause")
        self._alive(lease_id).state = ContainerState.RUNNING

    def restart(self, spec: ContainerSpec) -> Endpoint:
        self._called("restart")
        return self._bring_up(spec)

    def set_keys(self, lease_id: str, authorized_keys: Sequence[str]) -> None:
        self._called("set_keys")
        container = self._alive(lease_id)
        container.spec = replace(container.spec, authorized_keys=tuple(authorized_keys))

    def set_end(self, lease_id: str, ends_at: float) -> None:
        self._called("set_end")
        container = self._alive(lease_id)
        container.spec = replace(container.spec, ends_at=ends_at)

    def status(self, lease_id: str) -> ContainerStatus:
        self._called("status")
        container = self.containers.get(lease_id)
        return ContainerStatus(lease_id, ContainerState.ABSENT) if container is None else self._status(container)

    def list(self) -> Sequence[ContainerStatus]:
        self._called("list")
        return [self._status(container) for container in self.containers.values()]

    def _called(self, method: str) -> None:
        self.calls.append(method)
        if self.gone:
            raise RuntimeGone("nobody answers")
        if method in self.fail:
            raise RuntimeFailure(f"told to fail: {method}")

    def _alive(self, lease_id: str) -> FakeContainer:
        container = self.containers.get(lease_id)
        if container is None or container.state is ContainerState.DEAD:
            raise RuntimeFailure("the machine does not run")
        return container

    def _bring_up(self, spec: ContainerSpec) -> Endpoint:
        self.prewarmed.pop(spec.lease_id, None)
        known = self.containers.get(spec.lease_id)
        endpoint = Endpoint(port=spec.ssh_port or 40_000, host_key=spec.host_fingerprint)
        starts = 1 if known is None else known.starts + 1
        self.containers[spec.lease_id] = FakeContainer(spec, endpoint, starts=starts)
        return endpoint

    @staticmethod
    def _status(container: FakeContainer) -> ContainerStatus:
        alive = container.state in (ContainerState.RUNNING, ContainerState.PAUSED)
        return ContainerStatus(container.spec.lease_id, container.state, container.endpoint if alive else None)
