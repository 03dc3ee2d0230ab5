"""The way to the Docker engine: a deadline on every call, and none of its exceptions beyond this file."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import paramiko
import requests
import urllib3
from docker.client import DockerClient
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.models.containers import Container

from compute.base.errors import RuntimeFailure, RuntimeGone
from compute.miner.runtimes.docker_options import Host

logger = logging.getLogger(__name__)

CALL_SECONDS = 30
"""The longest silence of the engine in one call."""

_ANY_VERSION = "1.41"


class EngineGone(RuntimeGone):
    """No engine answers, or not in time."""


class DiskFull(RuntimeFailure):
    """The engine's disk is full, or the container's share of it."""


class ImageMissing(RuntimeFailure):
    """The image is not on the engine."""


class Missing(RuntimeFailure):
    """There is no such container or network (any more)."""


class NameTaken(RuntimeFailure):
    """A container has that name already."""


class PortTaken(RuntimeFailure):
    """A program on the host, or another container, listens there."""


class ProgramMissing(RuntimeFailure):
    """The image lacks what a container is to run."""


class QuotaUnsupported(RuntimeFailure):
    """The storage driver cannot limit a container's disk."""


_KNOWN: tuple[tuple[str, type[RuntimeFailure], str], ...] = (
    (
        r"port is already allocated|address already in use|cannot assign requested address",
        PortTaken,
        "the SSH port is taken on the miner's machine",
    ),
    (r"container name .* is already in use", NameTaken, "the container's name is taken"),
    (r"removal of container .* is already in progress", Missing, "the container is going"),
    (r"exec: .*(not found in|no such file)", ProgramMissing, "the miner's image lacks a program that leases need"),
    (r"storage-opt|pquota|project quota", QuotaUnsupported, "the miner's storage driver has no disk quota"),
    (r"no space left on device|disk quota exceeded", DiskFull, "the miner's disk is full"),
    (
        r"could not select device driver|nvidia-container-cli|nvidia-container-runtime|unresolvable CDI",
        RuntimeFailure,
        "the miner's container engine could not give the leased GPUs to a container",
    ),
    (r"cannot allocate memory|out of memory", RuntimeFailure, "the miner's machine is out of memory"),
)
"""What the engine says (in any case), and what that means; the first that matches counts."""


class DockerEngine:
    """Calls to one engine, from any thread. It need not be there when this is made, and may go and come back."""

    def __init__(self, url: str, *, call_seconds: int = CALL_SECONDS) -> None:
        """``url`` is an address as in ``DOCKER_HOST``."""
        self.url = url
        self._call_seconds = call_seconds
        self._lock = threading.Lock()
        self._client: DockerClient | None = None
        self._host: Host | None = None

    @contextlib.contextmanager
    def calling(self, doing: str) -> Iterator[DockerClient]:
        """The client, for calls whose failures are all mapped; ``doing`` is what they do: "start the container".

        Raises:
            RuntimeFailure: one of the subclasses above, or itself. The text is for the renter; what the engine said
                is in the log, for it may name paths.
        """
        try:
            yield self._connected()
        except RuntimeFailure:
            raise
        except APIError as error:
            said = str(error.explanation or error)
            failure = failure_of(error, doing)
            expected = isinstance(failure, (Missing, NameTaken, QuotaUnsupported))
            logger.log(logging.DEBUG if expected else logging.WARNING, "the engine would not %s: %s", doing, said)
            raise failure from error
        except (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError) as error:
            logger.warning("the engine did not %s within %d s", doing, self._call_seconds)
            raise EngineGone("the miner's container engine did not answer in time") from error
        except (DockerException, requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            logger.warning("no engine to %s at %s: %s", doing, self.url, error)
            raise EngineGone("the miner's container engine does not answer") from error
        except (ValueError, KeyError, TypeError) as error:
            # The SDK takes the engine's JSON for what it should be.
            logger.warning("the engine at %s answers nonsense: %s", self.url, error)
            raise EngineGone("the miner's container engine answers nonsense") from error

    def host(self) -> Host:
        """The engine's machine, asked once.

        Raises:
            RuntimeFailure: as ``calling``.
        """
        if self._host is None:
            with self.calling("describe its machine") as client:
                info = client.info()
                self._host = Host(cpu_count=int(info["NCPU"]), memory_bytes=int(info["MemTotal"]))
        return self._host

    def feed(self, container: Container, data: bytes) -> None:
        """Write ``data`` to the standard input of a container that runs, and close that.

        Raises:
            RuntimeFailure: as ``calling``.
        """
        with self.calling("put files into the container"):
            attached: Any = container.attach_socket(params={"stdin": 1, "stream": 1})
            try:
                # Without TLS, the SDK gives a reader of the connection.
                connection = getattr(attached, "_sock", attached)
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            finally:
                # Whose connection it is.
                attached._response.close()

    def close(self) -> None:
        """Close the connections. Idempotent; a later call opens new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connected(self) -> DockerClient:
        self._knock()
        if self._client is None:
            # The SDK asks for the version in its constructor, and does not clean up where that fails.
            with contextlib.closing(self._made(_ANY_VERSION)) as asking:
                made = self._made(str(asking.version(api_version=False)["ApiVersion"]))
            with self._lock:
                # Nothing has been opened by ``made`` yet: it may as well be dropped.
                self._client = self._client or made
                return self._client
        return self._client

    def _made(self, version: str) -> DockerClient:
        return DockerClient(base_url=self.url, version=version, timeout=self._call_seconds)

    def _knock(self) -> None:
        """Connect once and hang up: where that fails, the SDK would leave a socket open and tell a long story."""
        url = urlsplit(self.url)
        if url.scheme == "unix":
            with socket.socket(socket.AF_UNIX) as knocking:
                knocking.settimeout(self._call_seconds)
                knocking.connect(url.path)


def failure_of(error: APIError, doing: str) -> RuntimeFailure:
    """What an engine's refusal means. Pure."""
    said = str(error.explanation or error)
    if isinstance(error, ImageNotFound) or re.search(r"no such image", said, re.IGNORECASE):
        return ImageMissing("the miner's image for leases is missing")
    for pattern, kind, text in _KNOWN:
        if re.search(pattern, said, re.IGNORECASE):
            return kind(text)
    if isinstance(error, NotFound):
        return Missing("the container is gone")
    return RuntimeFailure(f"the miner's container engine would not {doing} (status {error.status_code})")


_TRY_SECONDS = 5.0
_LOG = "compute.base.ssh.transport"


def wait_for_sshd(
    host: str,
    port: int,
    fingerprint: str,
    *,
    within_seconds: float,
    still_alive: Callable[[], bool],
    pause_seconds: float = 0.02,
) -> None:
    """Return as soon as an sshd with the host key ``fingerprint`` (``"SHA256:…"``) answers on ``host:port``.

    Nothing is logged in. ``still_alive`` is asked after each vain try, and says whether waiting makes sense; then there
    is a pause.

    Raises:
        RuntimeFailure: it is not alive, another host key answers, or time is over.
    """
    deadline = time.monotonic() + within_seconds
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise RuntimeFailure(f"the machine's sshd did not answer within {within_seconds:g} s")
        seen = _host_key(host, port, min(left, _TRY_SECONDS))
        if seen == fingerprint:
            return
        if seen is not None:
            raise RuntimeFailure("another sshd answers on the machine's SSH port")
        if not still_alive():
            raise RuntimeFailure("the machine's sshd ended while it came up")
        time.sleep(pause_seconds)


def _host_key(host: str, port: int, timeout_seconds: float) -> str | None:
    """The fingerprint of the host key that a server proves to have, or None where none answers (yet)."""
    try:
        with socket.create_connection((host, port), timeout_seconds) as connection:
            connection.settimeout(timeout_seconds)
            # The engine's proxy accepts before there is an sshd behind it: a byte of its banner is the sign.
            if not connection.recv(1, socket.MSG_PEEK):
                return None
            transport = paramiko.Transport(connection)
            transport.set_log_channel(_LOG)
            try:
                transport.start_client(timeout=timeout_seconds)
                return str(transport.get_remote_server_key().fingerprint)
            finally:
                transport.close()
    except (OSError, EOFError, paramiko.SSHException):
        return None


# Whatever a server that is not up yet makes paramiko say is no news.
logging.getLogger(_LOG).setLevel(logging.CRITICAL + 1)
