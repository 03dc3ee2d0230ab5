"""What starts and stops the containers of leases: implemented by Docker, by local processes, and by a fake.

"Container" is the word for both: what the local runtime starts is a process with a folder of its own.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from compute.wire.keys import SessionKey
from compute.wire.lease_terms import LeaseKind

USERNAME = "root"
"""The login of every container, as peers on the network expect it."""


class ContainerState(str, Enum):
    """What a lease's container is doing."""

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
class ContainerSpec:
    """What a lease's container is made of; what has a default is certain only when there is a renter.

    ``ssh_port`` is the port on the host; 0 lets the system choose. ``host_key`` is private, in OpenSSH form.
    ``ends_at`` is Unix seconds. ``password`` is None where only keys are accepted. ``script`` (see
    ``dockerfile.script_of``) is for the container's shell, which runs it once, before sshd, within all limits.
    """

    lease_id: str
    limits: Limits
    ssh_port: int
    host_key: str = field(repr=False)
    kind: LeaseKind = LeaseKind.CUSTOMER
    ends_at: float = 0.0
    authorized_keys: tuple[str, ...] = ()
    password: str | None = field(repr=False, default=None)
    script: str = field(repr=False, default="")

    @classmethod
    def new(cls, limits: Limits, ssh_port: int) -> ContainerSpec:
        """For a lease that nobody has asked for yet, with an id and a host key of its own."""
        return cls(secrets.token_hex(16), limits, ssh_port, SessionKey.generate().private_openssh)

    @property
    def host_fingerprint(self) -> str:
        """``"SHA256:…"`` of the host key."""
        return SessionKey.from_private_openssh(self.host_key).fingerprint


@dataclass(frozen=True)
class Endpoint:
    """Where the machine's sshd listens on the host. ``host_key`` is its ``"SHA256:…"`` fingerprint."""

    port: int
    host_key: str
    username: str = USERNAME


@dataclass(frozen=True)
class ContainerStatus:
    """One lease's machine; ``endpoint`` is None unless it is running or paused."""

    lease_id: str
    state: ContainerState
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
    def start(self, spec: ContainerSpec, *, wanted: Callable[[], bool] = lambda: True) -> Endpoint:
        """Bring up the machine and return once its sshd listens.

        Idempotent: of a machine that already runs for this lease, the endpoint is returned; the remains of a dead
        one are replaced, and what the renter had stored there is lost. With a script this may take many minutes;
        ``wanted`` is asked again and again meanwhile, and ends it as a failure where it says no.

        Raises:
            RuntimeFailure: it did not come up. Nothing of it runs, though remains may wait for ``stop``.
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
    def restart(self, spec: ContainerSpec) -> Endpoint:
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
    def status(self, lease_id: str) -> ContainerStatus:
        """What the lease's machine is doing now.

        Raises:
            RuntimeFailure: the runtime cannot be asked.
        """

    @abstractmethod
    def list(self) -> Sequence[ContainerStatus]:
        """Every machine of this runtime's, dead ones and remains included, whatever lease it belonged to.

        Raises:
            RuntimeFailure: the runtime cannot be asked.
        """


class Prewarms(ABC):
    """A runtime that can bring up most of a container before there is a renter: a standby container."""

    @abstractmethod
    def prewarm(self, spec: ContainerSpec) -> None:
        """Bring it up; a later ``start`` of a spec with the same id, limits, port and host key is quicker for it.

        Nobody can log in before. ``list`` shows it and ``stop`` removes it; to a process after this one it is one
        that nobody ordered.

        Raises:
            RuntimeFailure: it did not come up. Nothing of it runs, though remains may wait for ``stop``.
        """


class Renews(ABC):
    """A runtime whose containers stand on something that has to be renewed."""

    @abstractmethod
    def renew(self) -> None:
        """Renew it where that is due: called every few seconds.

        Raises:
            RuntimeFailure: it could not be renewed; call again.
        """


class EndsItself(ABC):
    """A runtime whose leases end by themselves at ``ends_at``, as a second line behind the manager."""

    @abstractmethod
    def set_end(self, lease_id: str, ends_at: float) -> None:
        """Tell a lease its new end, in Unix seconds. Idempotent.

        Raises:
            RuntimeFailure: there is no such container.
        """
