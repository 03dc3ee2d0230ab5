"""A runtime that starts nothing: for tests of the manager, and of whatever stands on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from compute.base.errors import RuntimeFailure, RuntimeGone
from compute.miner.runtimes.base import Endpoint, LeaseOrder, MachineOrder, Phase, Runtime, RuntimeStatus
from compute.wire.keys import SessionKey


@dataclass
class FakeMachine:
    """One machine of a ``FakeRuntime``; tests read it, and set ``phase`` to kill it."""

    order: LeaseOrder
    endpoint: Endpoint
    phase: Phase = Phase.RUNNING
    starts: int = 1


class FakeRuntime(Runtime):
    """Machines are entries of ``machines``, which may be given to another instance: a miner that was restarted.

    ``fail`` names methods that raise RuntimeFailure; while ``gone``, all raise RuntimeGone; ``gate``, when given, is
    what ``start`` waits for. ``prepared`` are machines that have no renter yet.
    ``calls`` is the name of every method called, in order.
    """

    def __init__(self, machines: dict[str, FakeMachine] | None = None, *, images: frozenset[str] | None = None) -> None:
        self.machines = {} if machines is None else machines
        self.prepared: dict[str, MachineOrder] = {}
        self.images = images
        self.fail: set[str] = set()
        self.gone = False
        self.gate: threading.Event | None = None
        self.calls: list[str] = []

    def accepts_image(self, image: str) -> bool:
        return self.images is None or image in self.images

    def start(self, order: LeaseOrder, *, wanted: Callable[[], bool] = lambda: True) -> Endpoint:
        self._called("start")
        while self.gate is not None and not self.gate.wait(0.01):
            if not wanted():
                raise RuntimeFailure("no longer wanted")
        machine = self.machines.get(order.lease_id)
        if machine is not None and machine.phase is Phase.RUNNING:
            return machine.endpoint
        return self._bring_up(order)

    def prepare(self, order: MachineOrder) -> bool:
        self._called("prepare")
        self.prepared[order.lease_id] = order
        return True

    def renew(self) -> None:
        self._called("renew")

    def stop(self, lease_id: str) -> None:
        self._called("stop")
        self.prepared.pop(lease_id, None)
        self.machines.pop(lease_id, None)

    def pause(self, lease_id: str) -> None:
        self._called("pause")
        self._alive(lease_id).phase = Phase.PAUSED

    def unpause(self, lease_id: str) -> None:
        self._called("unpause")
        self._alive(lease_id).phase = Phase.RUNNING

    def restart(self, order: LeaseOrder) -> Endpoint:
        self._called("restart")
        return self._bring_up(order)

    def set_keys(self, lease_id: str, authorized_keys: Sequence[str]) -> None:
        self._called("set_keys")
        machine = self._alive(lease_id)
        machine.order = replace(machine.order, authorized_keys=tuple(authorized_keys))

    def set_end(self, lease_id: str, ends_at: float) -> None:
        self._called("set_end")
        machine = self._alive(lease_id)
        machine.order = replace(machine.order, ends_at=ends_at)

    def status(self, lease_id: str) -> RuntimeStatus:
        self._called("status")
        machine = self.machines.get(lease_id)
        return RuntimeStatus(lease_id, Phase.ABSENT) if machine is None else self._status(machine)

    def list(self) -> Sequence[RuntimeStatus]:
        self._called("list")
        return [self._status(machine) for machine in self.machines.values()]

    def _called(self, method: str) -> None:
        self.calls.append(method)
        if self.gone:
            raise RuntimeGone("nobody answers")
        if method in self.fail:
            raise RuntimeFailure(f"told to fail: {method}")

    def _alive(self, lease_id: str) -> FakeMachine:
        machine = self.machines.get(lease_id)
        if machine is None or machine.phase is Phase.DEAD:
            raise RuntimeFailure("the machine does not run")
        return machine

    def _bring_up(self, order: LeaseOrder) -> Endpoint:
        self.prepared.pop(order.lease_id, None)
        known = self.machines.get(order.lease_id)
        host_key = SessionKey.from_private_openssh(order.host_key).fingerprint
        endpoint = Endpoint(port=order.ssh_port or 40_000, host_key=host_key)
        starts = 1 if known is None else known.starts + 1
        self.machines[order.lease_id] = FakeMachine(order, endpoint, starts=starts)
        return endpoint

    @staticmethod
    def _status(machine: FakeMachine) -> RuntimeStatus:
        alive = machine.phase in (Phase.RUNNING, Phase.PAUSED)
        return RuntimeStatus(machine.order.lease_id, machine.phase, machine.endpoint if alive else None)
