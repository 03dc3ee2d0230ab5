"""What starts and stops machines: one small interface, implemented by Docker, by local processes, and by a fake."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from compute.wire.terms import LeaseKind

USERNAME = "root"
"""The login of every machine, as peers on the network expect it."""


class Phase(str, Enum):
    """What a lease's machine is doing."""

    RUNNING = "running"
    PAUSED = "paused"
    DEAD = "dead"
    """It, or something of it, is still there, but does not run."""
    ABSENT = "absent"


@dataclass(frozen=True)
class Limits:
    """What the machine may use at most; 0 means no limit. GPUs by UUID: these and no others."""

    cpu_count: int = 0
    ram_bytes: int = 0
    disk_bytes: int = 0
    gpu_uuids: tuple[str, ...] = ()


@dataclass(frozen=True)
class MachineOrder:
    """What is certain of a machine before there is a renter.

    ``ssh_port`` is the port on the host; 0 lets the system choose. ``host_key`` is private, in OpenSSH form.
    """

    lease_id: str
    limits: Limits
    ssh_port: int
    host_key: str = field(repr=False)


@dataclass(frozen=True)
class LeaseOrder(MachineOrder):
    """Everything that a runtime needs to bring up one machine.

    ``ends_at`` is Unix seconds: a runtime whose machines can end by themselves does so then, as a second line behind
    the manager. ``password`` is None where only keys are accepted. ``script`` (see ``dockerfile.script_of``) is for
    the machine's shell, which runs it once before the machine is up, within all of its limits.
    """

    owner: str
    kind: LeaseKind
    ends_at: float
    image: str
    authorized_keys: tuple[str, ...]
    password: str | None = field(repr=False, default=None)
    script: str = field(repr=False, default="")


@dataclass(frozen=True)
class Endpoint:
    """Where the machine's sshd listens on the host. ``host_key`` is its ``"SHA256:…"`` fingerprint."""

    port: int
    host_key: str
    username: str = USERNAME


@dataclass(frozen=True)
class RuntimeStatus:
    """One lease's machine; ``endpoint`` is None unless it is running or paused."""

    lease_id: str
    phase: Phase
    endpoint: Endpoint | None = None


class Runtime(ABC):
    """Starts and stops the machines of leases, at most a few at a time.

    Every method except ``accepts_image`` blocks, for seconds in bad cases: call it in an executor. The methods are
    thread-safe for different leases; for one lease, the caller makes one call at a time. Each is idempotent: a call
    repeated after a crash or an error does what is still missing. Machines outlive the miner's process; what exists
    is found again by the lease's id (a label, a state file), never by a name. Errors are ``RuntimeFailure`` with a
    text fit for the renter: no secrets, no paths of the host; ``RuntimeGone`` where what runs below does not answer.
    """

    @abstractmethod
    def accepts_image(self, image: str) -> bool:
        """Whether the operator lets a renter choose ``image``. Never blocks, never raises; ``image`` is hostile."""

    @abstractmethod
    def start(self, order: LeaseOrder, *, wanted: Callable[[], bool] = lambda: True) -> Endpoint:
        """Bring up the machine and return once its sshd listens.

        Idempotent: of a machine that already runs for this lease, the endpoint is returned; the remains of a dead
        one are replaced, and what the renter had stored there is lost. With a script this may take many minutes;
        ``wanted`` is asked again and again meanwhile, and ends it as a failure where it says no.

        Raises:
            RuntimeFailure: it did not come up. Nothing of it runs, though remains may wait for ``stop``.
        """

    @abstractmethod
    def prepare(self, order: MachineOrder) -> bool:
        """Bring up what can be of a machine before there is a renter; False where that is nothing.

        A later ``start`` of a lease's order that agrees with this one is quicker for it. Nobody can log in before.
        ``list`` shows the machine and ``stop`` removes it; to a process after this one it is one that nobody ordered.

        Raises:
            RuntimeFailure: it did not come up. Nothing of it runs, though remains may wait for ``stop``.
        """

    @abstractmethod
    def renew(self) -> None:
        """Renew what machines stand on, where that is due: called every few seconds.

        Raises:
            RuntimeFailure: it could not be renewed; call again.
        """

    @abstractmethod
    def stop(self, lease_id: str) -> None:
        """End every process of the lease and remove what was stored. Idempotent: an absent lease is a success.

        Raises:
            RuntimeFailure: something is left; call again.
        """

    @abstractmethod
    def pause(self, lease_id: str) -> None:
        """Freeze every process of the lease, connections included. Idempotent.

        Raises:
            RuntimeFailure: the machine is not there, is dead, or would not freeze.
        """

    @abstractmethod
    def unpause(self, lease_id: str) -> None:
        """Let a frozen machine go on. Idempotent.

        Raises:
            RuntimeFailure: the machine is not there or is dead.
        """

    @abstractmethod
    def restart(self, order: LeaseOrder) -> Endpoint:
        """End the machine's processes and bring it up again, with the same host key; what was stored is kept.

        A paused, dead or absent machine comes out running as well. Not atomic: after an error or a crash the machine
        may be dead, and ``restart`` or ``start`` brings it up.

        Raises:
            RuntimeFailure: as ``start``.
        """

    @abstractmethod
    def set_keys(self, lease_id: str, authorized_keys: Sequence[str]) -> None:
        """Replace the whole of ``authorized_keys``, atomically: the next login sees the new ones only. Idempotent.

        Sessions that are already open stay open.

        Raises:
            RuntimeFailure: the machine is not there, or the old keys are still in force.
        """

    @abstractmethod
    def set_end(self, lease_id: str, ends_at: float) -> None:
        """Tell a machine that ends by itself its new end, in Unix seconds. Idempotent; nothing to do for others.

        Raises:
            RuntimeFailure: the machine is not there.
        """

    @abstractmethod
    def status(self, lease_id: str) -> RuntimeStatus:
        """What the lease's machine is doing now.

        Raises:
            RuntimeFailure: the runtime cannot be asked.
        """

    @abstractmethod
    def list(self) -> Sequence[RuntimeStatus]:
        """Every machine of this runtime's, dead ones and remains included, whatever lease it belonged to.

        Raises:
            RuntimeFailure: the runtime cannot be asked.
        """
