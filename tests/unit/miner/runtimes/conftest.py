"""The Docker runtime and the real SDK against an engine of a few dicts: what a real one would not do on request."""

from __future__ import annotations

import json
import re
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from compute.base.errors import RuntimeFailure
from compute.miner.runtimes.base import ContainerSpec, Limits
from compute.miner.runtimes.docker import DockerRuntime
from compute.miner.runtimes.docker_engine import DockerEngine
from compute.miner.runtimes.docker_options import DockerSettings
from compute.wire.keys import SessionKey
from compute.wire.lease_terms import LeaseKind
from tests.waiting import DEADLINE_SECONDS


@dataclass
class EngineStub:
    """What an engine has, and how it fails. ``calls`` is every request that changes something, in order."""

    containers: dict[str, dict[str, Any]] = field(default_factory=dict)
    networks: list[dict[str, Any]] = field(default_factory=list)
    images: set[str] = field(default_factory=lambda: {"compute-machine"})
    image_id: str = "sha256:0"
    api: str = "1.41"
    calls: list[str] = field(default_factory=list)
    fail: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    """call -> statuses and messages of its next failures"""
    silent: threading.Event | None = None
    """While given, the engine takes requests and answers none until it is set."""
    nonsense: Any = None
    """While given, the answer to everything."""
    rules: list[str] = field(default_factory=list)
    """What nft was told, in order; each is a call named "rules" as well."""
    fed: SimpleQueue[bytes] = field(default_factory=SimpleQueue)
    """What containers read from their standard input. The one who feeds does not wait until they have."""
    nft_exit_code: int = 0

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        if self.silent is not None:
            self.silent.wait(DEADLINE_SECONDS)
        if self.nonsense is not None:
            return 200, self.nonsense
        path = re.sub(r"^/v[\d.]+", "", path)
        parts = path.strip("/").split("/")
        if writes_rules(parts, body):
            return self.writer(parts, body)
        verb = parts[-1] if method == "POST" else {"PUT": "put", "DELETE": "remove"}.get(method, "")
        if verb:
            self.calls.append(verb if parts[0] == "containers" else f"{verb} {parts[0]}")
            if failures := self.fail.get(self.calls[-1]):
                status, message = failures.pop(0)
                return status, {"message": message}
        if parts[0] == "version":
            return 200, {"ApiVersion": self.api, "Version": "0.0"}
        if parts[0] == "info":
            return 200, {"NCPU": 8, "MemTotal": 16 << 30}
        if parts[0] == "images":
            known = parts[1] in self.images
            return (200, {"Id": self.image_id}) if known else (404, {"message": f"No such image: {parts[1]}:latest"})
        if parts[0] == "networks":
            return self.network(method, parts, body)
        return self.container(method, parts, query, body)

    def writer(self, parts: list[str], body: bytes) -> tuple[int, Any]:
        """A container that runs nft, and is none of ``containers``."""
        if parts[-1] == "create":
            self.rules += json.loads(body)["Cmd"]
            return 201, {"Id": "writer", "Warnings": []}
        if parts[-1] == "start":
            self.calls.append("rules")
            if failures := self.fail.get("rules"):
                status, message = failures.pop(0)
                return status, {"message": message}
        if parts[-1] == "wait":
            return 200, {"StatusCode": self.nft_exit_code}
        return 200, {"Id": "writer", "Config": {"Labels": {}, "Tty": True}, "HostConfig": {}, "State": {}}

    def network(self, method: str, parts: list[str], body: bytes) -> tuple[int, Any]:
        if method == "POST":
            self.networks.append({"Id": f"net{len(self.networks)}", **json.loads(body)})
            return 201, {"Id": self.networks[-1]["Id"]}
        if len(parts) == 1:
            return 200, self.networks
        if method == "DELETE":
            self.networks = [network for network in self.networks if network["Id"] != parts[1]]
            return 204, None
        return 200, next(network for network in self.networks if network["Id"] == parts[1])

    def container(self, method: str, parts: list[str], query: dict[str, str], body: bytes) -> tuple[int, Any]:
        if parts[-1] == "create":
            return self.create(query.get("name", ""), json.loads(body))
        if parts == ["containers", "json"]:
            filters = json.loads(query.get("filters", "{}"))
            wanted, (network,) = set(filters.get("label", ())), filters.get("network", [""])
            found = [each for each in self.containers.values() if wanted <= labels_of(each)]
            return 200, [each for each in found if network in ("", each["HostConfig"]["NetworkMode"])]
        found = self.containers.get(parts[1])
        if found is None:
            return 404, {"message": f"No such container: {parts[1]}"}
        if method == "DELETE":
            del self.containers[parts[1]]
        elif method == "GET" and parts[-1] == "json":
            return 200, found
        elif parts[-1] == "rename":
            if query["name"] in {each["Name"] for each in self.containers.values()}:
                return self.name_taken(query["name"])
            found["Name"] = query["name"]
        elif parts[-1] == "attach":
            return 101, None
        elif method == "POST":
            status = {"start": "running", "unpause": "running", "pause": "paused", "stop": "exited"}[parts[-1]]
            found["State"]["Status"] = status
        return 200 if method == "PUT" else 204, None

    def create(self, name: str, wish: dict[str, Any]) -> tuple[int, Any]:
        number = f"{len(self.calls):064x}"
        self.containers[number] = {
            "Id": number,
            "Name": name or "funny_name",
            "Config": {"Labels": wish["Labels"], "Image": wish["Image"], "Tty": False},
            "Image": self.image_id,
            "HostConfig": wish["HostConfig"],
            "State": {"Status": "created"},
        }
        return 201, {"Id": number, "Warnings": []}

    def name_taken(self, name: str) -> tuple[int, Any]:
        text = f'Conflict. The container name "/{name}" is already in use by container "0". You have to remove'
        return 409, {"message": text}

    def only(self) -> dict[str, Any]:
        (found,) = self.containers.values()
        return found


def writes_rules(parts: list[str], body: bytes) -> bool:
    if parts == ["containers", "create"]:
        return "compute.network" in json.loads(body).get("Labels", {})
    return parts[:2] == ["containers", "writer"]


def labels_of(container: dict[str, Any]) -> set[str]:
    labels = container["Config"]["Labels"]
    return {f"{name}={value}" for name, value in labels.items()} | set(labels)


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    # With the default of five, a caller is turned away while this machine is too busy to accept.
    request_queue_size = 128


def serve(stub: EngineStub, path: Path) -> Server:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def address_string(self) -> str:
            return "client"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def answer(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                raise AssertionError("not expected of the SDK here")
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            status, answer = stub.answer(self.command, url.path, query, body)
            if status == 101:
                self.send_response(status)
                self.end_headers()
                stub.fed.put(self.rfile.read())
                self.close_connection = True
                return
            content = b"" if answer is None else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    for method in ("GET", "POST", "PUT", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.answer)
    server = Server(str(path), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


@pytest.fixture
def stub() -> EngineStub:
    return EngineStub()


@pytest.fixture
def make_engine(stub: EngineStub, tmp_path: Path) -> Iterator[Callable[..., DockerEngine]]:
    server = serve(stub, tmp_path / "engine.sock")
    made: list[DockerEngine] = []

    def make(call_seconds: int = 5) -> DockerEngine:
        made.append(DockerEngine(f"unix://{tmp_path / 'engine.sock'}", call_seconds=call_seconds))
        return made[-1]

    yield make
    for engine in made:
        engine.close()
    server.shutdown()
    server.server_close()


@pytest.fixture
def engine(make_engine: Callable[..., DockerEngine]) -> DockerEngine:
    return make_engine()


@dataclass
class Check:
    """In place of the look at a real sshd."""

    failure: RuntimeFailure | None = None
    seen: list[tuple[str, int, str]] = field(default_factory=list)

    def __call__(self, host: str, port: int, fingerprint: str, *, still_alive: Callable[[], bool], **_: float) -> None:
        self.seen.append((host, port, fingerprint))
        if self.failure is not None:
            raise self.failure
        assert still_alive()


@pytest.fixture
def check() -> Check:
    return Check()


@pytest.fixture
def settings() -> DockerSettings:
    return DockerSettings(miner="5Miner", image="compute-machine")


@pytest.fixture
def runtime(settings: DockerSettings, engine: DockerEngine, check: Check) -> DockerRuntime:
    return DockerRuntime(settings, engine, sshd_check=check)


@pytest.fixture
def spec() -> ContainerSpec:
    return ContainerSpec(
        lease_id="ab" * 16,
        limits=Limits(cpu_count=1, ram_bytes=1 << 30, disk_bytes=1 << 30),
        ssh_port=4444,
        host_key=SessionKey.generate().private_openssh,
        kind=LeaseKind.CUSTOMER,
        ends_at=1_700_000_000,
        authorized_keys=("ssh-ed25519 A",),
    )
