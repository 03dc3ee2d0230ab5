"""What a lease's container is made of, as data: pure functions from a spec to the arguments of the Docker SDK."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from docker.types import DeviceRequest, LogConfig

from compute.miner.runtimes.base import ContainerSpec
from compute.miner.runtimes.docker_files import COMMAND
from compute.wire.dockerfile import STEPS_SECONDS
from compute.wire.lease_terms import GIB

SSH_PORT = "22/tcp"
"""Where sshd listens inside the container."""

LABEL_MINER = "compute.miner"
LABEL_LEASE = "compute.lease"
LABEL_HOST_KEY = "compute.host_key"
"""The ``"SHA256:…"`` fingerprint of the container's sshd. Labels never change: what is not certain when a container is
made, such as whose it will be and until when, is the store's to know."""

CAPABILITIES = (
    "AUDIT_WRITE",  # sshd: a record of each terminal; builds with audit support end the session without it
    "CHOWN",  # sshd: the terminal's owner; dpkg: that of a package's files
    "SETGID",  # sshd: its unprivileged half; apt: its downloads
    "SETUID",
    "SYS_CHROOT",
    "DAC_OVERRIDE",  # apt and dpkg: folders of other users. These two reach files only, and of files a container
    "FOWNER",  # has none but its own
)
"""What is left of root's powers: what sshd needs, and what installing packages needs."""

_RESERVED_BYTES = GIB
_LEAST_BYTES = 256 << 20
_NANO = 10**9


@dataclass(frozen=True)
class DockerSettings:
    """What all containers of one miner have in common.

    ``miner`` tells its containers from those of other miners on the same engine; where no ``network`` is named, it has
    one of its own. ``bind_address`` is where on the host the SSH port is open. ``pids`` bounds processes and threads of
    one container together. ``close_network`` closes the host and private addresses to them, but for ``allowed_ranges``
    (such as ``"10.1.0.0/16"``). ``script_seconds`` and ``script_bytes`` bound a spec's script, the latter where no
    disk was asked for.
    """

    miner: str
    image: str
    network: str = ""
    bind_address: str = "0.0.0.0"  # noqa: S104 - renters come from everywhere
    pids: int = 16_384
    close_network: bool = True
    allowed_ranges: tuple[str, ...] = ()
    script_seconds: float = STEPS_SECONDS
    script_bytes: int = 20 * GIB

    def __post_init__(self) -> None:
        if not self.network:
            object.__setattr__(self, "network", own_network(self.miner))


def own_network(miner: str) -> str:
    """The name of one miner's network, bridge and table of rules: 15 characters, as long as an interface's may be."""
    return f"compute-{hashlib.sha256(miner.encode()).hexdigest()[:7]}"


@dataclass(frozen=True)
class Host:
    """What the engine's machine has: processors, and bytes of memory."""

    cpu_count: int
    memory_bytes: int


def container_options(
    spec: ContainerSpec, settings: DockerSettings, host: Host, *, port: int, quota: bool
) -> dict[str, Any]:
    """The arguments of ``client.containers.create``, but for the name.

    ``quota`` says whether the storage driver can limit the disk. No secret is among them: whoever may ask the engine
    can read them back, and nothing of what is certain only when there is a renter.
    """
    limits = spec.limits
    memory_bytes = _memory_bytes(limits.ram_bytes, host)
    options: dict[str, Any] = {
        "image": settings.image,
        # Each of these four overrides what an image may say of itself.
        "entrypoint": list(COMMAND),
        "command": [],
        "stdin_open": True,
        "user": "0:0",
        "healthcheck": {"test": ["NONE"]},
        "environment": {"NVIDIA_VISIBLE_DEVICES": ",".join(limits.gpu_uuids) or "void"},
        # The operator's own proxy, and the password in its address, are not for renters.
        "use_config_proxy": False,
        "labels": _labels(spec, settings),
        "cap_drop": ["ALL"],
        "cap_add": list(CAPABILITIES),
        "security_opt": ["no-new-privileges:true"],
        "privileged": False,
        "init": True,
        "ipc_mode": "private",
        "cgroupns": "private",
        "network": settings.network,
        "ports": {SSH_PORT: (settings.bind_address, port)},
        "pids_limit": settings.pids,
        "mem_limit": memory_bytes,
        # The sum of memory and swap: no swap.
        "memswap_limit": memory_bytes,
        # Should the host itself run out of memory, the renter's processes go before the miner's.
        "oom_score_adj": 500,
        "shm_size": memory_bytes // 2,
        "log_config": LogConfig(type=LogConfig.types.JSON, config={"max-size": "10m", "max-file": "2"}),
        # The miner alone starts a machine, after it has closed the network; an engine that comes up would not.
        "restart_policy": {"Name": "no"},
    }
    if limits.cpu_count:
        options["nano_cpus"] = min(limits.cpu_count, host.cpu_count) * _NANO
    if limits.disk_bytes and quota:
        options["storage_opt"] = {"size": str(limits.disk_bytes)}
    if limits.gpu_uuids:
        capabilities = [["gpu", "compute", "utility"]]
        options["device_requests"] = [DeviceRequest(device_ids=list(limits.gpu_uuids), capabilities=capabilities)]
    return options


def _labels(spec: ContainerSpec, settings: DockerSettings) -> dict[str, str]:
    return {
        LABEL_MINER: settings.miner,
        LABEL_LEASE: spec.lease_id,
        LABEL_HOST_KEY: spec.host_fingerprint,
    }


def _memory_bytes(asked: int, host: Host) -> int:
    """The limit: what was asked, but enough for sshd to live; or all but what the host itself needs."""
    if asked:
        return max(asked, _LEAST_BYTES)
    reserved = max(_RESERVED_BYTES, host.memory_bytes // 20)
    return max(host.memory_bytes - reserved, host.memory_bytes // 2)
