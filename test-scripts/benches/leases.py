"""What a lease costs on a real Docker engine, from the request to SSH's banner, against building an image for each.

Twice: of a machine that stands ready, as between leases, and of one that does not, as where the last lease asked for
another machine, or was taken over from a probe.
"""

from __future__ import annotations

import asyncio
import io
import secrets
import socket
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from docker.client import DockerClient

from compute.base.clock import SystemClock
from compute.base.errors import ComputeError, ConfigError, RuntimeFailure
from compute.base.store import Database
from compute.miner.allocate_handler import AllocateService
from compute.miner.hardware import SystemHardware
from compute.miner.leases.manager import LeaseManager
from compute.miner.leases.store import LeaseStore
from compute.miner.runtimes.docker import DockerRuntime
from compute.miner.runtimes.docker_engine import DockerEngine
from compute.miner.runtimes.docker_options import SSH_PORT, DockerSettings
from compute.protocol import Allocate
from compute.wire.keys import RenterKey, SecretBox, SessionKey, new_password
from compute.wire.lease_terms import GIB

_LEASES = 50
_EDGE = 10
_OTHERS = 7
"""How many there are of what takes longer."""
_HOST = "127.0.0.1"
_BANNER_SECONDS = 30.0
_LOOK_SECONDS = 0.01


def lease_bench(image: str, url: str, say: Callable[[str], None]) -> dict[str, float]:
    """Figures of the engine at ``url``; none, and a word to ``say``, where it or the image is missing.

    All ways run in turns, so that what else the machine does meets both alike.
    """
    miner = f"bench-{secrets.token_hex(8)}"
    settings = DockerSettings(miner=miner, image=image, bind_address=_HOST)
    runtime = DockerRuntime(settings, DockerEngine(url))
    try:
        runtime.check()
    except (ConfigError, RuntimeFailure) as error:
        say(f"no figures of leases: {error}")
        runtime.close()
        return {}
    try:
        with closing(DockerClient(base_url=url)) as client, _older_base(client, image, miner) as base:
            return asyncio.run(_compare(runtime, client, base, settings.network))
    finally:
        for status in runtime.list():
            runtime.stop(status.lease_id)
        runtime.remove_network()
        runtime.close()


async def _compare(runtime: DockerRuntime, client: DockerClient, base: str, network: str) -> dict[str, float]:
    leases: list[float] = []
    unprepared: list[float] = []
    builds: list[float] = []
    with tempfile.TemporaryDirectory(prefix="compute-bench-") as folder, _database(Path(folder)) as database:
        manager = LeaseManager(
            store=LeaseStore(database, SecretBox(secrets.token_bytes(32))),
            runtime=runtime,
            specs=SystemHardware().specs,
            clock=SystemClock(),
            ssh_port=_free_port(),
            stand_ready=True,
        )
        service = AllocateService(manager)
        await manager.start()
        try:
            # The machines that stand ready from now on are like this one.
            await _lease_seconds(service, GIB)
            for number in range(_LEASES):
                await _until_ready(manager)
                leases.append(await _lease_seconds(service, GIB))
                if number % (_LEASES // _OTHERS) == 0 and len(builds) < _OTHERS:
                    await _until_ready(manager)
                    unprepared.append(await _lease_seconds(service, 2 * GIB))
                    await _until_ready(manager)
                    # Back to machines like the first.
                    await _lease_seconds(service, GIB)
                    await _until_ready(manager)
                    builds.append(await asyncio.to_thread(_build_seconds, client, base, network))
        finally:
            await manager.close()
    first, last = statistics.median(leases[:_EDGE]), statistics.median(leases[-_EDGE:])
    return {
        "lease_start_ms": statistics.median(leases) * 1e3,
        "lease_start_p95_ms": statistics.quantiles(leases, n=20)[-1] * 1e3,
        "lease_50_drift_percent": (last / first - 1) * 100,
        "lease_unprepared_ms": statistics.median(unprepared) * 1e3,
        "lease_build_per_request_ms": statistics.median(builds) * 1e3,
        "lease_speedup_ratio": statistics.median(builds) / statistics.median(leases),
    }


async def _until_ready(manager: LeaseManager) -> None:
    deadline = time.monotonic() + _BANNER_SECONDS
    while not manager.is_ready:
        if time.monotonic() > deadline:
            raise ComputeError("no machine stood ready in time")
        await asyncio.sleep(_LOOK_SECONDS)


async def _lease_seconds(service: AllocateService, ram_bytes: int) -> float:
    """One lease as the miner starts it for a signed request, up to the banner; then it is given back."""
    owner = RenterKey.generate().public_pem
    wishes = {"base_image": "ubuntu", "ssh_key": SessionKey.generate().public_line}
    needs = {"cpu": {"count": 1}, "ram": {"capacity": ram_bytes}}
    request = Allocate(
        timeline=1, checking=False, public_key=owner, device_requirement=needs, docker_requirement=wishes
    )
    begun = time.perf_counter()
    answer = await service.answer("bench", request)
    if not answer["status"]:
        raise ComputeError(f"the engine gave no lease: {answer['message']}")
    await asyncio.to_thread(_until_banner, answer["port"])
    seconds = time.perf_counter() - begun
    ended = await service.answer("bench", Allocate(checking=False, public_key=owner))
    if not ended["status"]:
        raise ComputeError(f"the lease did not end: {ended['message']}")
    return seconds


def _build_seconds(client: DockerClient, base: str, network: str) -> float:
    """The older way: an image with one layer, of the renter's password and key, then a run.

    It installed its packages anew each time as well; here they are on the base already.
    """
    key, password = SessionKey.generate().public_line, new_password()
    steps = (
        f"FROM {base}\n"
        f"RUN mkdir -p /run/sshd /root/.ssh && echo '{key}' > /root/.ssh/authorized_keys"
        f" && echo 'root:{password}' | chpasswd\n"
        'CMD ["/usr/sbin/sshd", "-D", "-o", "PermitRootLogin=yes"]\n'
    )
    tag, port = f"{base.partition(':')[0]}:{secrets.token_hex(8)}", _free_port()
    begun = time.perf_counter()
    _build(client, steps, tag)
    container = client.containers.run(tag, detach=True, network=network, ports={SSH_PORT: (_HOST, port)})
    try:
        _until_banner(port)
        return time.perf_counter() - begun
    finally:
        container.remove(force=True)
        client.images.remove(tag, force=True)


@contextmanager
def _older_base(client: DockerClient, image: str, name: str) -> Iterator[str]:
    """The image with host keys of its own, as the older way had it: made once, outside of what is measured."""
    tag = f"compute-{name}:base"
    _build(client, f"FROM {image}\nRUN ssh-keygen -A\n", tag)
    try:
        yield tag
    finally:
        client.images.remove(tag, force=True)


def _build(client: DockerClient, steps: str, tag: str) -> None:
    """Build an image from nothing but a Dockerfile, whose steps need no network."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("Dockerfile")
        info.size = len(steps.encode())
        tar.addfile(info, io.BytesIO(steps.encode()))
    buffer.seek(0)
    client.images.build(fileobj=buffer, custom_context=True, tag=tag, forcerm=True, network_mode="none")


@contextmanager
def _database(folder: Path) -> Iterator[Database]:
    database = Database(folder / "bench.db")
    try:
        yield database
    finally:
        database.close()


def _until_banner(port: int) -> None:
    """Return as soon as an SSH server greets there.

    Raises:
        ComputeError: none did in time.
    """
    deadline = time.monotonic() + _BANNER_SECONDS
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((_HOST, port), _BANNER_SECONDS) as connection:
                if connection.recv(4) == b"SSH-":
                    return
        except OSError:
            pass
        time.sleep(_LOOK_SECONDS)
    raise ComputeError(f"no SSH server greeted within {_BANNER_SECONDS:g} s")


def _free_port() -> int:
    with socket.create_server((_HOST, 0)) as server:
        return int(server.getsockname()[1])
