"""Engines that a test may kill, starve and restart: each a dockerd of its own beside the machine's.

They write no iptables rules, so that the machine's own engine is left alone; published ports work by Docker's proxy.
The image is the machine's without torch: a tenth of its size.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
from docker.client import DockerClient

from compute.miner.runtimes.docker import DockerRuntime
from compute.miner.runtimes.docker_engine import DockerEngine
from compute.miner.runtimes.docker_options import DockerSettings
from tests.waiting import DEADLINE_SECONDS, until

SMALL_IMAGE = "compute-small"
_LEFT_OUT = ("usr/local/lib/", "opt/", "usr/share/", "var/", "usr/lib/python3", "proc/", "sys/", "dev/")


def _cannot(why: str) -> None:
    """Skip, or fail where there must be an engine."""
    if os.environ.get("COMPUTE_REQUIRE_DOCKER") == "1":
        pytest.fail(f"COMPUTE_REQUIRE_DOCKER=1, but {why}")
    pytest.skip(f"{why}: this test runs an engine of its own. Enable it with: sudo env COMPUTE_REQUIRE_DOCKER=1 pytest")


def _needs(*programs: str) -> None:
    if os.geteuid() != 0:
        _cannot("this is not root")
    for program in programs:
        if shutil.which(program) is None:
            _cannot(f"{program} is not installed")


class OwnEngine:
    """One dockerd; ``folder`` holds its socket and what it runs, ``data`` its images and containers."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.url = f"unix://{folder}/docker.sock"
        # A folder's name may end in a "_", which containerd does not take for a name.
        name = secrets.token_hex(4)
        self.network = f"co{name}"
        # With another's name, or with none, it would take docker0 away from the machine's own engine.
        self._bridge = f"cb{name}"
        self._folder = folder
        self._data = data
        self._process: subprocess.Popen[bytes] | None = None
        self._over = False

    def start(self) -> None:
        (self._folder / "daemon.json").write_text("{}")
        if not Path("/sys/class/net", self._bridge).exists():
            subprocess.run(["ip", "link", "add", self._bridge, "type", "bridge"], check=True)
        # A process that was killed leaves this behind.
        (self._folder / "docker.pid").unlink(missing_ok=True)
        argv = ["dockerd", "--host", self.url, "--config-file", f"{self._folder}/daemon.json"]
        argv += ["--data-root", str(self._data), "--exec-root", f"{self._folder}/exec"]
        argv += [
            "--pidfile",
            f"{self._folder}/docker.pid",
            "--bridge",
            self._bridge,
            "--iptables=false",
            "--ip-masq=false",
        ]
        # Where the machine has a containerd for all engines, they do not share their containers.
        argv += ["--containerd-namespace", self.network, "--containerd-plugins-namespace", f"{self.network}-plugins"]
        with (self._folder / "dockerd.log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
        until(self._answers, "dockerd answers", dump=self._log_tail)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)
        # Its containerd dies with it, if it has one of its own. One that is dying still is taken for a living one.
        number = self._folder / "exec/containerd/containerd.pid"
        if number.exists():
            until(lambda: not psutil.pid_exists(int(number.read_text())), "its containerd has ended")
            number.unlink()

    @contextlib.contextmanager
    def client(self) -> Iterator[DockerClient]:
        client = DockerClient(base_url=self.url, timeout=DEADLINE_SECONDS)
        try:
            yield client
        finally:
            client.close()

    def clean_up(self) -> None:
        """End everything that it runs, and itself. For good, and idempotent."""
        if self._over:
            return
        self._over = True
        if self._process is None:
            self.start()
        with self.client() as client:
            for container in client.containers.list(all=True):
                container.remove(force=True)
            # The rules are the host's, and would outlive the engine.
            settings = DockerSettings(miner="nobody", image=SMALL_IMAGE, network=self.network)
            with contextlib.closing(DockerRuntime(settings, DockerEngine(self.url))) as runtime:
                runtime.remove_network()
        self.stop()
        # It leaves these behind.
        subprocess.run(["ip", "link", "del", self._bridge], check=True)
        for mounted in (self._data, self._folder / "exec/netns/default"):
            subprocess.run(["umount", "--lazy", str(mounted)], capture_output=True, check=False)

    def _end(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(DEADLINE_SECONDS)
        self._process = None

    def _log_tail(self) -> str:
        return (self._folder / "dockerd.log").read_text(errors="replace")[-2000:]

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"dockerd ended: {self._log_tail()}"
        # Not by the SDK, which leaves a socket open where nobody answers.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self._folder / "docker.sock"))
            connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(100)
        return False


@pytest.fixture(scope="session")
def small_image(tmp_path_factory: pytest.TempPathFactory, image: str, engine_url: str) -> Path:
    """A tar file of the image under test without what only proofs need."""
    _needs("dockerd", "ip")
    path = tmp_path_factory.mktemp("image") / "image.tar"
    client = DockerClient(base_url=engine_url)
    container = client.containers.create(image)
    try:
        reading, writing = os.pipe()

        def export() -> None:
            with os.fdopen(writing, "wb") as pipe, contextlib.suppress(BrokenPipeError):
                for chunk in container.export():
                    pipe.write(chunk)

        exporting = threading.Thread(target=export)
        exporting.start()
        with os.fdopen(reading, "rb") as pipe, tarfile.open(path, "w") as small:
            copy_small(pipe, small)
            pipe.read()
        exporting.join()
    finally:
        container.remove()
        client.close()
    return path


def copy_small(whole: IO[bytes], small: tarfile.TarFile) -> None:
    with tarfile.open(fileobj=whole, mode="r|") as tar:
        for member in tar:
            if not member.name.startswith(_LEFT_OUT):
                small.addfile(member, tar.extractfile(member) if member.isreg() else None)


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A gigabyte of btrfs, where an engine can limit disks. So it can on XFS, but few kernels have XFS's quotas."""
    _needs("mkfs.btrfs", "mount")
    folder = tmp_path_factory.mktemp("disk")
    disk, mounted = folder / "disk", folder / "mounted"
    mounted.mkdir()
    with disk.open("wb") as file:
        file.truncate(1 << 30)
    subprocess.run(["mkfs.btrfs", "-q", str(disk)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(disk), str(mounted)], check=False).returncode:
        _cannot("no btrfs can be mounted here")
    yield mounted
    subprocess.run(["umount", "--lazy", str(mounted)], check=True)


MakeEngine = Callable[..., OwnEngine]


@pytest.fixture(scope="module")
def make_engine(small_image: Path) -> Iterator[MakeEngine]:
    """Engines that run and have the image ``SMALL_IMAGE``; ``data`` may lie on another file system."""
    with contextlib.ExitStack() as stack:

        def make(data: Path | None = None) -> OwnEngine:
            # Sockets have short paths.
            folder = Path(tempfile.mkdtemp(prefix="engine-", dir="/tmp"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            engine = OwnEngine(folder, data or folder / "data")
            engine.start()
            stack.callback(engine.clean_up)
            with engine.client() as client:
                client.api.import_image_from_file(str(small_image), repository=SMALL_IMAGE)
            return engine

        yield make


@pytest.fixture
def runtime_on(make_runtime: Any) -> Callable[[OwnEngine], Any]:
    """A runtime on such an engine. Its containers go with the engine."""

    def make(engine: OwnEngine) -> Any:
        return make_runtime(url=engine.url, image=SMALL_IMAGE, network=engine.network, cleaned=False)

    return make
