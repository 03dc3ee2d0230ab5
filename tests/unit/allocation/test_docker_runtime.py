"""The Docker runtime and the real SDK against an engine of a few dicts: what a real one would not do on request."""

from __future__ import annotations

import json
import re
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from compute.allocation.docker_engine import DockerEngine, EngineGone
from compute.allocation.docker_options import DockerSettings
from compute.allocation.docker_runtime import DockerRuntime
from compute.allocation.keys import SessionKey
from compute.allocation.runtime import LeaseKind, LeaseOrder, Limits, Phase
from compute.errors import ConfigError, RuntimeFailure

SETTINGS = DockerSettings(miner="5Miner", image="compute-machine")


@dataclass
class EngineStub:
    """What an engine has, and how it fails. ``calls`` is every request that changes something, in order."""

    containers: dict[str, dict[str, Any]] = field(default_factory=dict)
    networks: list[dict[str, Any]] = field(default_factory=list)
    images: set[str] = field(default_factory=lambda: {"compute-machine"})
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
    nft_exit_code: int = 0

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        if self.silent is not None:
            self.silent.wait(10)
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
            return (200, {"Id": "sha256:0"}) if known else (404, {"message": f"No such image: {parts[1]}:latest"})
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
        return 200, next(network for network in self.networks if network["Id"] == parts[1])

    def container(self, method: str, parts: list[str], query: dict[str, str], body: bytes) -> tuple[int, Any]:
        if parts[-1] == "create":
            return self.create(query.get("name", ""), json.loads(body))
        if parts == ["containers", "json"]:
            wanted = set(json.loads(query.get("filters", "{}")).get("label", ()))
            return 200, [each for each in self.containers.values() if wanted <= labels_of(each)]
        found = self.containers.get(parts[1])
        if found is None:
            return 404, {"message": f"No such container: {parts[1]}"}
        if method == "DELETE":
            del self.containers[parts[1]]
        elif method == "GET" and parts[-1] == "archive":
            return 404, {"message": "Could not find the file /etc/shadow in container"}
        elif method == "GET" and parts[-1] == "json":
            return 200, found
        elif method == "POST":
            status = {"start": "running", "unpause": "running", "pause": "paused", "stop": "exited"}[parts[-1]]
            found["State"]["Status"] = status
        return 200 if method == "PUT" else 204, None

    def create(self, name: str, wish: dict[str, Any]) -> tuple[int, Any]:
        if name in {each["Name"] for each in self.containers.values()}:
            text = f'Conflict. The container name "/{name}" is already in use by container "0". You have to remove'
            return 409, {"message": text}
        number = f"{len(self.calls):064x}"
        self.containers[number] = {
            "Id": number,
            "Name": name or "funny_name",
            "Config": {"Labels": wish["Labels"], "Image": wish["Image"], "Tty": False},
            "Image": "sha256:0",
            "HostConfig": wish["HostConfig"],
            "State": {"Status": "created"},
        }
        return 201, {"Id": number, "Warnings": []}

    def steps(self) -> list[str]:
        """The calls but for the writing of rules, which goes on beside them and is over before anything starts."""
        assert self.calls.count("rules") >= self.calls.count("start")
        assert "start" not in self.calls[: self.calls.index("rules")]
        return [call for call in self.calls if call != "rules"]

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
def engine(stub: EngineStub, tmp_path: Path) -> Iterator[DockerEngine]:
    server = serve(stub, tmp_path / "engine.sock")
    engine = DockerEngine(f"unix://{tmp_path / 'engine.sock'}", call_seconds=5)
    yield engine
    engine.close()
    server.shutdown()
    server.server_close()


@dataclass
class Check:
    """In place of the look at a real sshd."""

    failure: RuntimeFailure | None = None
    seen: list[tuple[str, int, str]] = field(default_factory=list)

    def __call__(
        self,
        host: str,
        port: int,
        fingerprint: str,
        *,
        within_seconds: float,
        still_alive: Callable[[], bool],
        pause_seconds: float,
    ) -> None:
        self.seen.append((host, port, fingerprint))
        if self.failure is not None:
            raise self.failure
        assert still_alive()


@pytest.fixture
def check() -> Check:
    return Check()


@pytest.fixture
def runtime(engine: DockerEngine, check: Check) -> DockerRuntime:
    return DockerRuntime(SETTINGS, engine, sshd_check=check)


HOST_KEY = SessionKey.generate()
ORDER = LeaseOrder(
    lease_id="ab" * 16,
    owner="5Alice",
    kind=LeaseKind.CUSTOMER,
    ends_at=1_700_000_000,
    image="ubuntu",
    limits=Limits(cpu_count=1, ram_bytes=1 << 30, disk_bytes=1 << 30),
    ssh_port=4444,
    authorized_keys=("ssh-ed25519 A",),
    host_key=HOST_KEY.private_openssh,
)


def test_starting_is_create_files_start(runtime: DockerRuntime, stub: EngineStub, check: Check) -> None:
    endpoint = runtime.start(ORDER)
    assert (endpoint.port, endpoint.host_key, endpoint.username) == (4444, HOST_KEY.fingerprint, "root")
    assert stub.steps() == ["create networks", "create", "put", "start"]
    assert check.seen == [("127.0.0.1", 4444, HOST_KEY.fingerprint)]
    assert stub.only()["Name"] == "ssh-container"
    assert stub.only()["HostConfig"]["CapDrop"] == ["ALL"]
    assert stub.only()["HostConfig"]["StorageOpt"] == {"size": str(1 << 30)}
    status = runtime.status(ORDER.lease_id)
    assert (status.phase, status.endpoint) == (Phase.RUNNING, endpoint)
    assert list(runtime.list()) == [status]


def test_starting_again_changes_nothing(runtime: DockerRuntime, stub: EngineStub) -> None:
    first = runtime.start(ORDER)
    stub.calls.clear()
    assert runtime.start(ORDER) == first
    runtime.pause(ORDER.lease_id)
    assert runtime.start(ORDER) == first
    assert stub.calls == ["pause", "unpause"]


@pytest.mark.parametrize("status", ["created", "exited", "dead"])
def test_starting_replaces_what_a_crash_left(runtime: DockerRuntime, stub: EngineStub, status: str) -> None:
    runtime.start(ORDER)
    stub.only()["State"]["Status"] = status
    assert runtime.status(ORDER.lease_id).phase is Phase.DEAD
    assert runtime.status(ORDER.lease_id).endpoint is None
    stub.calls.clear()
    runtime.start(ORDER)
    assert stub.steps() == ["remove", "create", "put", "start"]
    assert runtime.status(ORDER.lease_id).phase is Phase.RUNNING


def test_a_taken_name_is_left_to_whoever_has_it(runtime: DockerRuntime, stub: EngineStub) -> None:
    stub.containers["other"] = {"Id": "other", "Name": "ssh-container", "Config": {"Labels": {}}}
    runtime.start(ORDER)
    assert stub.steps()[1:] == ["create", "create", "put", "start"]
    assert [status.lease_id for status in runtime.list()] == [ORDER.lease_id]
    runtime.stop(ORDER.lease_id)
    assert list(stub.containers) == ["other"]


def test_another_miners_containers_are_not_seen(runtime: DockerRuntime, engine: DockerEngine, stub: EngineStub) -> None:
    runtime.start(ORDER)
    neighbour = DockerRuntime(replace(SETTINGS, miner="5Neighbour"), engine)
    assert neighbour.list() == []
    assert neighbour.status(ORDER.lease_id).phase is Phase.ABSENT
    neighbour.stop(ORDER.lease_id)
    assert stub.only()["State"]["Status"] == "running"


def test_a_driver_without_quotas_is_asked_once(
    runtime: DockerRuntime, stub: EngineStub, caplog: pytest.LogCaptureFixture
) -> None:
    refusal = "--storage-opt is supported only for overlay over xfs with 'pquota' mount option"
    stub.fail["create"] = [(500, refusal)]
    runtime.start(ORDER)
    assert "StorageOpt" not in stub.only()["HostConfig"] or not stub.only()["HostConfig"]["StorageOpt"]
    runtime.start(replace(ORDER, lease_id="cd" * 16))
    assert [record.message for record in caplog.records if "quota" in record.message] == [
        "the engine's storage driver has no disk quota: leases share the whole disk"
    ]


PORT = "driver failed programming external connectivity: Bind for 0.0.0.0:4444 failed: port is already allocated"


@pytest.mark.parametrize(
    ("call", "status", "message", "told"),
    [
        ("create", 404, "No such image: compute-machine:latest", "image for leases is missing"),
        ("create", 500, "mkdir /var/lib/docker/overlay2/x: no space left on device", "disk is full"),
        ("put", 500, "write /var/lib/docker/x: no space left on device", "disk is full"),
        ("start", 500, PORT, "port 4444 is taken"),
        ("start", 500, 'could not select device driver "" with capabilities: [[gpu]]', "leased GPUs"),
        ("start", 400, "OCI runtime create failed: /run/docker/x: nonsense", r"would not start the container \(status"),
        ("create networks", 403, "no", "would not create the network"),
    ],
)
def test_a_failed_start_says_why_and_leaves_nothing(
    runtime: DockerRuntime, stub: EngineStub, call: str, status: int, message: str, told: str
) -> None:
    stub.fail[call] = [(status, message)]
    with pytest.raises(RuntimeFailure, match=told) as caught:
        runtime.start(ORDER)
    assert "/" not in str(caught.value)
    assert stub.containers == {}
    runtime.start(ORDER)


def test_a_port_of_its_own_choice_is_chosen_anew(runtime: DockerRuntime, stub: EngineStub) -> None:
    stub.fail["start"] = [(500, PORT)] * 2
    endpoint = runtime.start(replace(ORDER, ssh_port=0))
    assert endpoint.port > 0
    assert len(stub.containers) == 1
    stub.fail["start"] = [(500, PORT)] * 3
    with pytest.raises(RuntimeFailure, match="taken by another program"):
        runtime.start(replace(ORDER, lease_id="cd" * 16, ssh_port=0))
    assert len(stub.containers) == 1


def test_a_machine_whose_sshd_does_not_answer_is_removed(
    runtime: DockerRuntime, stub: EngineStub, check: Check
) -> None:
    check.failure = RuntimeFailure("silence")
    with pytest.raises(RuntimeFailure, match="silence"):
        runtime.start(ORDER)
    assert stub.containers == {}
    check.failure = None
    runtime.start(ORDER)
    check.failure = RuntimeFailure("silence")
    with pytest.raises(RuntimeFailure, match="silence"):
        runtime.start(ORDER)
    assert stub.containers == {}


def test_a_restart_keeps_the_container(runtime: DockerRuntime, stub: EngineStub, check: Check) -> None:
    endpoint = runtime.start(ORDER)
    before = stub.only()["Id"]
    runtime.pause(ORDER.lease_id)
    stub.calls.clear()
    assert runtime.restart(ORDER) == endpoint
    assert stub.steps() == ["unpause", "stop", "put", "start"]
    check.failure = RuntimeFailure("silence")
    with pytest.raises(RuntimeFailure):
        runtime.restart(ORDER)
    assert runtime.status(ORDER.lease_id).phase is Phase.DEAD
    check.failure = None
    assert runtime.restart(ORDER) == endpoint
    assert stub.only()["Id"] == before


@pytest.mark.parametrize("status", [None, "created", "dead", "removing"])
def test_a_restart_of_nothing_worth_keeping_starts_anew(
    runtime: DockerRuntime, stub: EngineStub, status: str | None
) -> None:
    if status is not None:
        runtime.start(ORDER)
        stub.only()["State"]["Status"] = status
    runtime.restart(ORDER)
    assert runtime.status(ORDER.lease_id).phase is Phase.RUNNING
    assert stub.steps()[-3:] == ["create", "put", "start"]


@pytest.mark.parametrize("status", [None, "exited", "restarting", "created"])
def test_what_does_not_run_is_not_changed(runtime: DockerRuntime, stub: EngineStub, status: str | None) -> None:
    if status is not None:
        runtime.start(ORDER)
        stub.only()["State"]["Status"] = status
    stub.calls.clear()
    with pytest.raises(RuntimeFailure, match="absent" if status is None else "dead"):
        runtime.pause(ORDER.lease_id)
    with pytest.raises(RuntimeFailure):
        runtime.unpause(ORDER.lease_id)
    with pytest.raises(RuntimeFailure):
        runtime.set_keys(ORDER.lease_id, ["a"])
    with pytest.raises(RuntimeFailure):
        runtime.set_end(ORDER.lease_id, 1.0)
    assert stub.calls == []


def test_pausing_and_stopping_twice(runtime: DockerRuntime, stub: EngineStub) -> None:
    runtime.start(ORDER)
    stub.calls.clear()
    for change in (runtime.pause, runtime.unpause, runtime.stop):
        change(ORDER.lease_id)
        change(ORDER.lease_id)
    assert stub.calls == ["pause", "unpause", "remove"]


def test_a_removal_that_goes_on_is_waited_for(runtime: DockerRuntime, stub: EngineStub) -> None:
    runtime.start(ORDER)
    stub.fail["remove"] = [(409, "removal of container abc is already in progress")] * 2
    runtime.stop(ORDER.lease_id)
    assert stub.containers == {}


def test_keys_can_be_exchanged_while_paused(runtime: DockerRuntime, stub: EngineStub) -> None:
    runtime.start(ORDER)
    runtime.pause(ORDER.lease_id)
    stub.calls.clear()
    runtime.set_keys(ORDER.lease_id, ["ssh-ed25519 B"])
    runtime.set_end(ORDER.lease_id, 2.0)
    assert stub.calls == ["put"]


def test_a_network_that_opens_its_members_is_refused(runtime: DockerRuntime, stub: EngineStub) -> None:
    stub.networks.append({"Id": "n", "Name": "compute-leases", "Driver": "bridge", "Options": {}})
    with pytest.raises(RuntimeFailure, match="unfit"):
        runtime.start(ORDER)
    with pytest.raises(ConfigError, match="unfit"):
        runtime.check()
    assert stub.containers == {}


def test_two_miners_make_one_network(runtime: DockerRuntime, stub: EngineStub, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.start(ORDER)
    runtime.start(replace(ORDER, lease_id="cd" * 16))
    assert len(stub.networks) == 1
    made = dict(stub.networks[0])
    stub.networks.clear()

    def lost_the_race(*_: object) -> tuple[int, Any]:
        stub.networks.append(made)
        return 409, {"message": "network with name compute-leases already exists"}

    def network(method: str, parts: list[str], body: bytes) -> tuple[int, Any]:
        return lost_the_race() if method == "POST" else (200, stub.networks)

    monkeypatch.setattr(stub, "network", network)
    runtime.start(replace(ORDER, lease_id="ef" * 16))


def test_the_check_at_the_start(runtime: DockerRuntime, stub: EngineStub) -> None:
    runtime.check()
    stub.images.clear()
    with pytest.raises(ConfigError, match="docker build -t compute-machine docker/"):
        runtime.check()
    stub.api = "1.40"
    with pytest.raises(ConfigError, match="too old"):
        runtime.check()


def test_no_engine(tmp_path: Path) -> None:
    runtime = DockerRuntime(SETTINGS, DockerEngine(f"unix://{tmp_path}/none.sock"))
    with pytest.raises(EngineGone, match=r"no Docker engine answers .* --miner.runtime local"):
        runtime.check()
    for call in (runtime.list, lambda: runtime.start(ORDER), lambda: runtime.stop(ORDER.lease_id)):
        with pytest.raises(EngineGone, match="does not answer") as caught:
            call()
        assert str(tmp_path) not in str(caught.value)


def test_a_silent_engine_is_not_waited_for(stub: EngineStub, tmp_path: Path) -> None:
    server = serve(stub, tmp_path / "engine.sock")
    engine = DockerEngine(f"unix://{tmp_path / 'engine.sock'}", call_seconds=1)
    runtime = DockerRuntime(SETTINGS, engine)
    assert runtime.list() == []
    stub.silent = threading.Event()
    with pytest.raises(EngineGone, match="in time"):
        runtime.list()
    stub.silent.set()
    assert runtime.list() == []
    engine.close()
    server.shutdown()
    server.server_close()


def test_a_renters_full_disk_costs_no_restart(runtime: DockerRuntime, stub: EngineStub) -> None:
    endpoint = runtime.start(ORDER)
    stub.fail["put"] = [(500, "Error setting up pivot dir: mkdir /x: disk quota exceeded")]
    assert runtime.restart(ORDER) == endpoint
    assert runtime.status(ORDER.lease_id).phase is Phase.RUNNING
    stub.fail["put"] = [(500, "nonsense")]
    with pytest.raises(RuntimeFailure, match="would not put files"):
        runtime.restart(ORDER)


def test_no_machine_starts_before_its_network_is_closed(runtime: DockerRuntime, stub: EngineStub) -> None:
    runtime.check()
    assert stub.calls == ["create networks", "rules"]
    for number, begin in enumerate((runtime.start, runtime.restart), 2):
        begin(ORDER)
        assert stub.calls[-1] == "start"
        assert stub.calls.count("rules") == len(stub.rules) == number
    assert len(set(stub.rules)) == 1
    assert 'iifname "compute-leases"' in stub.rules[0]


def test_a_network_that_could_be_closed_and_suddenly_cannot_is_a_failure(
    runtime: DockerRuntime, stub: EngineStub
) -> None:
    runtime.check()
    stub.nft_exit_code = 1
    with pytest.raises(RuntimeFailure, match="could not be closed"):
        runtime.start(ORDER)
    assert stub.containers == {}


NO_NFT = 'failed to create shim task: exec: "/usr/sbin/nft": stat /usr/sbin/nft: no such file or directory: unknown'


@pytest.mark.parametrize("why", ["an image without nftables", "a kernel without it"])
def test_where_it_cannot_be_closed_the_log_says_so_and_leases_go_on(
    runtime: DockerRuntime, stub: EngineStub, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    if why == "an image without nftables":
        stub.fail["rules"] = [(400, NO_NFT)] * 2
    else:
        stub.nft_exit_code = 1
    runtime.check()
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "LEASES REACH THIS HOST" in told
    assert ("Build it again" in told) is (why == "an image without nftables")
    assert "--no-miner.network.close" in told
    runtime.start(ORDER)
    # A new image or kernel module needs no restart of the miner; from then on the network has to be closed.
    stub.nft_exit_code = 0
    runtime.restart(ORDER)
    stub.nft_exit_code = 1
    with pytest.raises(RuntimeFailure, match="could not be closed"):
        runtime.restart(ORDER)


@pytest.mark.parametrize("exit_code", [0, 1])
def test_an_operator_may_leave_the_network_open(
    engine: DockerEngine, stub: EngineStub, check: Check, exit_code: int
) -> None:
    runtime = DockerRuntime(replace(SETTINGS, close_network=False), engine, sshd_check=check)
    stub.nft_exit_code = exit_code
    runtime.check()
    # What a miner before this one may have closed.
    assert stub.rules == ["table inet compute-leases\ndelete table inet compute-leases"]
    stub.calls.clear()
    runtime.start(ORDER)
    assert stub.calls == ["create", "put", "start"]


@pytest.mark.parametrize("answer", ["what", [], {"ApiVersion": None}, {"ApiVersion": "x"}])
def test_an_engine_that_talks_nonsense(runtime: DockerRuntime, stub: EngineStub, answer: Any) -> None:
    stub.nonsense = answer
    with pytest.raises(EngineGone, match="nonsense"):
        runtime.list()
    with pytest.raises(EngineGone):
        runtime.check()


@pytest.mark.parametrize(
    ("image", "accepted"),
    [
        ("", True),
        ("ubuntu", True),
        ("ubuntu:22.04", True),
        ("compute-machine", True),
        ("pytorch/pytorch:2.7.0-cuda12.6-cudnn9-runtime", True),
        ("evil/pytorch:latest", False),
        ("ubuntu2", False),
        ("pytorch/pytorch-evil", False),
        ("*", False),
        ("\n", False),
    ],
)
def test_which_images_a_renter_may_name(runtime: DockerRuntime, image: str, accepted: bool) -> None:
    assert runtime.accepts_image(image) is accepted
