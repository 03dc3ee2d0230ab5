"""What each option of a miner does to one that runs."""

from __future__ import annotations

import asyncio
import http.server
import json
import re
import socket
import socketserver
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from pydantic import Field

from compute.base.clock import SystemClock
from compute.base.errors import CallError
from compute.miner.runtimes.docker_network import removal
from compute.miner.runtimes.docker_options import own_network
from compute.protocol import Allocate as SignedAllocate
from compute.protocol import Specs, Synapse
from compute.wire.client import DendriteCaller
from compute.wire.keys import RenterKey
from compute.wire.lease_client import AllocationClient
from compute.wire.peer import Peer
from compute.wire.requirements import DeviceRequirement
from compute.wire.specs import parse_specs

if TYPE_CHECKING:
    from conftest import Start, Subnet


class Allocate(Synapse):
    """As peers of older releases send it: without a signature of the body."""

    timeline: int = 0
    checking: bool = True
    output: dict[str, Any] = Field(default_factory=dict)


WANTED = DeviceRequirement(cpu_count=1, gpu_count=1)


def told(subnet: Subnet, name: str, peer: Peer) -> str:
    """What the miner tells ``name``: "" for an answer, else the reason of the refusal."""

    async def ask() -> str:
        async with DendriteCaller(subnet.wallets[name].hotkey) as caller:
            try:
                await caller.call(peer, Specs(), timeout_seconds=20)
            except CallError as refusal:
                return str(refusal).rpartition(" ")[2].rstrip(".")
            return ""

    return asyncio.run(ask())


def local_miner(subnet: Subnet, name: str) -> tuple[list[str], Peer]:
    """The least that a miner of this machine has to be told, and where it answers."""
    ip, port = subnet.free_address()
    options = [
        *(*subnet.options(name), "--miner.runtime", "local", "--axon.port", str(port)),
        *("--axon.ip", ip, "--axon.external_ip", ip, "--ssh.port", str(subnet.free_port(ip))),
    ]
    return options, Peer(subnet.hotkey(name), ip, port)


@pytest.mark.shows(
    "miner",
    *("netuid", "subtensor.network", "subtensor.chain_endpoint", "subtensor._mock"),
    *("wallet.path", "wallet.name", "wallet.hotkey", "database", "config.file", "auto_update"),
    *("axon.ip", "axon.port", "axon.external_ip", "axon.external_port", "axon.max_workers"),
    *("ssh.host", "ssh.port", "miner.runtime", "miner.cpu.devices", "miner.require.signed"),
    *("miner.hashcat.path", "miner.hashcat.workload.profile", "miner.hashcat.extended.options"),
    *("logging.json", "logging.record_log", "logging.logging_dir", "metrics.ip", "metrics.port", "status", "json"),
)
def test_who_it_is_and_where_it_answers(subnet: Subnet, start: Start, tmp_path: Path) -> None:
    subnet.join("miner")
    subnet.join("validator", stake=5000)
    ip, port = subnet.free_address()
    outside, ssh, metrics = subnet.free_address()[0], subnet.free_address(), subnet.free_address()
    miner = start(
        "miner",
        *subnet.options("miner"),
        *("--subtensor.network", "finney", "--subtensor._mock", "false"),
        *("--axon.ip", ip, "--axon.port", str(port), "--axon.external_ip", outside, "--axon.external_port", "4321"),
        *("--axon.max_workers", "2", "--ssh.host", ssh[0], "--ssh.port", str(ssh[1])),
        *("--miner.runtime", "local", "--miner.cpu.devices", "2", "--miner.require.signed"),
        *(
            "--config.file",
            str(subnet.config(score=2.0)),
            "--metrics.ip",
            metrics[0],
            "--metrics.port",
            str(metrics[1]),
        ),
        *("--logging.json", "--logging.record_log", "--logging.logging_dir", str(tmp_path / "logs")),
        *("--miner.hashcat.path", "/none", "--miner.hashcat.workload.profile", "4"),
        "--miner.hashcat.extended.options=-O",
    )
    miner.until("axon announced on the chain")
    events = {event["event"]: event for event in miner.events()}
    assert events["miner starts"]["hotkey"] == subnet.hotkey("miner")
    assert events["miner starts"]["netuid"] == subnet.netuid
    assert events["what this machine scores if it proves itself"]["free"] == 2 * 2.0 * 50 / 32
    assert (tmp_path / "logs" / "miner.log").read_text(encoding="utf-8") in miner.log
    miner.until("auto-update is off")
    assert (tmp_path / "miner.db").stat().st_size > 0

    axon = subnet.neuron("miner")["axon"]
    assert (axon["ip"], axon["port"]) == (int.from_bytes(socket.inet_aton(outside), "big"), 4321)
    assert miner.listens_on() == {(ip, port), metrics}
    with urllib.request.urlopen(f"http://{metrics[0]}:{metrics[1]}/metrics", timeout=20) as answer:
        assert f'hotkey="{subnet.hotkey("miner")}"'.encode() in answer.read()

    asyncio.run(_rent_and_return(subnet, Peer(subnet.hotkey("miner"), ip, port), ssh))

    asked = start("miner", "--status", "--json", "--database", str(tmp_path / "miner.db"))
    code, stdout = asked.outcome()
    assert code == 0
    assert json.loads(stdout)["leases"][0]["owner"] == subnet.hotkey("validator")
    for _ in range(4):
        assert told(subnet, "validator", Peer(subnet.hotkey("miner"), ip, port)) == ""
    assert miner.threads().count("in _worker") == 2 + _other_workers(miner.log)


def _other_workers(log: str) -> int:
    """Threads of the standard library's pools, whose function has the same name."""
    return log.count('concurrent/futures/thread.py", line') and sum(
        "concurrent/futures/thread.py" in line and "in _worker" in line for line in log.splitlines()
    )


async def _rent_and_return(subnet: Subnet, peer: Peer, ssh: tuple[str, int]) -> None:
    """Two devices are claimed, what nobody signed is refused, and a lease answers SSH where it was told to."""
    hotkey = subnet.wallets["validator"].hotkey
    async with DendriteCaller(hotkey) as caller:
        specs = await caller.call(peer, Specs(), timeout_seconds=20)
        assert len(parse_specs(specs.specs_output).gpus) == 2
        client = AllocationClient(caller, SystemClock())
        grant = await client.allocate(peer, WANTED, days=1)
        assert grant.port == ssh[1]
        reader, writer = await asyncio.open_connection(*ssh)
        assert (await asyncio.wait_for(reader.readline(), 20)).startswith(b"SSH-2.0")
        writer.close()
        await client.deallocate(peer, grant.keys)
        unsigned: Any = await caller.call(peer, Allocate(timeline=1, checking=True), timeout_seconds=20)
        assert unsigned.output["reason"] == "bad_signature"


@pytest.mark.shows(
    "miner",
    *("blacklist.hotkeys", "blacklist.coldkeys", "blacklist.exploiters", "whitelist.hotkeys", "whitelist.coldkeys"),
    *("miner.whitelist.not.enough.stake", "logging.debug", "logging.trace", "subtensor.network"),
    "logging.enable_third_party_loggers",
)
def test_who_may_call(subnet: Subnet, start: Start) -> None:
    for name in ("one", "two", "poor", "of-white"):
        subnet.join(name)
    for name in ("validator", "black", "of-black", "exploiter"):
        subnet.join(name, stake=5000)
    subnet.wallet("white")
    (one_options, one), (two_options, two) = local_miner(subnet, "one"), local_miner(subnet, "two")
    miners = [
        start(
            "miner",
            *one_options,
            *("--blacklist.hotkeys", subnet.hotkey("black"), "--blacklist.coldkeys", subnet.coldkey("of-black")),
            *("--whitelist.hotkeys", subnet.hotkey("white"), "--whitelist.coldkeys", subnet.coldkey("of-white")),
            "--logging.trace",
            after=subnet.exploits("exploiter") + subnet.chatter,
        ),
        start(
            "miner",
            # The network by its address: without an endpoint beside it, it is what counts.
            *[word for word in two_options if word not in ("--subtensor.chain_endpoint", subnet.node.endpoint)],
            *("--subtensor.network", subnet.node.endpoint, "--logging.debug"),
            "--logging.enable_third_party_loggers",
            *("--no-blacklist.exploiters", "--miner.whitelist.not.enough.stake"),
            after=subnet.exploits("exploiter") + subnet.chatter,
        ),
    ]
    for miner in miners:
        miner.until("axon announced on the chain")
    expected = {
        # name: what the first miner tells it, and the second
        "validator": ("", ""),
        "black": ("blacklisted_hotkey", ""),
        "of-black": ("blacklisted_coldkey", ""),
        "exploiter": ("exploiter", ""),
        "white": ("", "not_registered"),
        "of-white": ("", ""),
        "poor": ("not_enough_stake", ""),
    }
    assert {name: (told(subnet, name, one), told(subnet, name, two)) for name in expected} == expected
    assert " TRACE " in miners[0].log
    assert " DEBUG " in miners[1].log
    assert " TRACE " not in miners[1].log
    assert "says a library" not in miners[0].log
    assert "says a library" in miners[1].log


@pytest.mark.shows(
    "miner",
    *("miner.whitelist.updated.threshold", "miner.whitelist.not.updated", "version.file"),
    "logging.info",
)
def test_outdated_validators(subnet: Subnet, start: Start, tmp_path: Path) -> None:
    for name, version in (("new", 210), ("middle", 200), ("old", 100)):
        subnet.join(name, stake=5000, version=version)
    file = tmp_path / "versions.py"
    file.write_text(
        '__version__ = "2.1.0"\n__minimal_miner_version__ = "2.1.0"\n__minimal_validator_version__ = "2.1.0"\n'
    )
    told_to = {
        # options: what the middle validator is told, and the old one
        (): ("", "old_version"),
        ("--miner.whitelist.updated.threshold", "70"): ("", ""),
        ("--miner.whitelist.not.updated", "--logging.info"): ("", ""),
        ("--miner.whitelist.updated.threshold", "30", "--version.file", str(file)): ("old_version", "old_version"),
    }
    miners = []
    for number, options in enumerate(told_to):
        subnet.join(f"miner-{number}")
        words, peer = local_miner(subnet, f"miner-{number}")
        miners.append((start("miner", *words, *options, after=subnet.chatter), peer))
    for (miner, peer), expected in zip(miners, told_to.values(), strict=True):
        miner.until("axon announced on the chain")
        # The version file may come after the first look at the subnet; 25 blocks later it counts.
        subnet.until(
            lambda peer=peer, expected=expected: (told(subnet, "middle", peer), told(subnet, "old", peer)) == expected,
            str(expected),
        )
        assert told(subnet, "new", peer) == ""
    assert ["says the SDK" in miner.log for miner, _ in miners] == [False, False, True, False]
    assert not any(" DEBUG " in miner.log for miner, _ in miners)


@pytest.mark.shows("miner", "subtensor._mock")
def test_there_is_no_mocked_chain(subnet: Subnet, start: Start) -> None:
    subnet.wallet("miner")
    options, _ = local_miner(subnet, "miner")
    code, _ = (mocked := start("miner", *options, "--subtensor._mock", "true")).outcome()
    assert code == 2
    assert "there is no mocked chain" in mocked.log
    miner = start("miner", *options)
    assert miner.outcome()[0] == 3, "nobody has registered it"
    assert f"not registered on netuid {subnet.netuid}" in miner.log or "not registered on this subnet" in miner.log


_CONTAINER = {"Id": "0", "Config": {"Labels": {}}, "HostConfig": {}, "State": {}}
_ANSWERS: dict[str, tuple[int, Any]] = {
    r"GET /version": (200, {"ApiVersion": "1.41", "Version": "20.10"}),
    r"GET /images/compute-machine/json": (200, {"Id": "sha256:0"}),
    r"GET /images/.*": (404, {"message": "no such image"}),
    r"GET /info": (200, {"NCPU": 2, "MemTotal": 1 << 34}),
    r"POST /networks/create": (201, {"Id": "0"}),
    r"GET /containers/json": (200, []),
    r"POST /containers/create": (201, _CONTAINER),
    r"GET /containers/0/json": (200, _CONTAINER),
    r"POST /containers/0/wait": (200, {"StatusCode": 0}),
    r"(POST|DELETE) /containers/0.*": (204, None),
}


class Engine(socketserver.ThreadingUnixStreamServer):
    """A Docker engine that has one image and runs nothing, and remembers what it was asked for."""

    request_queue_size = 128

    def __init__(self, path: Path) -> None:
        self.asked: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.networks: list[dict[str, Any]] = []
        asked, created, networks = self.asked, self.created, self.networks

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = f"{self.command} {re.sub(r'^/v[0-9.]+', '', urlsplit(self.path).path)}"
                if request.endswith("/containers/create"):
                    created.append(json.loads(sent))
                if request.endswith("/networks/create"):
                    networks.append({"Id": str(len(networks)), **json.loads(sent)})
                if request == "GET /networks":
                    status, answer = 200, networks
                elif request.startswith("GET /networks/"):
                    status, answer = 200, networks[int(request.rpartition("/")[2])]
                else:
                    status, answer = next(answer for known, answer in _ANSWERS.items() if re.fullmatch(known, request))
                body = b"" if answer is None else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def address_string(self) -> str:
                return "a socket"

            def log_message(self, *_: object) -> None:
                pass

        for method in ("POST", "DELETE"):
            setattr(Handler, f"do_{method}", Handler.do_GET)
        super().__init__(str(path), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    path = tmp_path / "engine.sock"
    with Engine(path) as engine:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        yield engine
        engine.shutdown()


@pytest.mark.shows("miner", "miner.runtime", "miner.image")
def test_which_image(subnet: Subnet, start: Start, engine: Engine) -> None:
    subnet.wallet("miner")
    miner = start("miner", *subnet.options("miner"), "--miner.runtime", "docker", "--miner.image", "mine:7")
    assert miner.outcome()[0] == 2
    assert "image 'mine:7' is not on the Docker engine" in miner.log
    assert any("/images/mine:7/json" in path for path in engine.asked)


def docker_miner(subnet: Subnet, name: str) -> tuple[list[str], Peer]:
    subnet.join(name)
    ip, port = subnet.free_address()
    where = ["--axon.port", str(port), "--axon.ip", ip, "--axon.external_ip", ip]
    return [*subnet.options(name), *where], Peer(subnet.hotkey(name), ip, port)


@pytest.mark.shows("miner", "miner.network.close", "miner.network.allow", "miner.allow.dockerfile")
def test_what_leases_may_reach_and_run(subnet: Subnet, start: Start, engine: Engine) -> None:
    subnet.join("validator", stake=5000)
    options, one = docker_miner(subnet, "one")
    closing = start("miner", *options, "--miner.network.allow", "10.1.0.0/16", "--miner.allow.dockerfile")
    options, two = docker_miner(subnet, "two")
    opening = start("miner", *options, "--no-miner.network.close")
    for miner in (closing, opening):
        miner.until("axon announced on the chain")
    writers = [each for each in engine.created if "compute.network" in each["Labels"]]
    rules = {each["Labels"]["compute.miner"]: each["Cmd"][0] for each in writers}
    assert "ip daddr { 10.1.0.0/16 } accept" in rules[one.hotkey]
    assert rules[two.hotkey] == removal(own_network(two.hotkey))
    assert "--miner.network.close is off" in opening.log
    assert "step 1 of the dockerfile is 'FROM'" in asyncio.run(_with_steps(subnet, one))
    assert "runs no steps of a dockerfile" in asyncio.run(_with_steps(subnet, two))


async def _with_steps(subnet: Subnet, peer: Peer) -> str:
    """What the miner says to a renter who sends a Dockerfile."""
    wish = SignedAllocate(
        timeline=1,
        checking=False,
        public_key=RenterKey.generate().public_pem,
        docker_requirement={"dockerfile": "FROM scratch"},
    )
    async with DendriteCaller(subnet.wallets["validator"].hotkey) as caller:
        answer = await caller.call(peer, wish, timeout_seconds=20)
    assert answer.output["reason"] == "unsupported"
    return str(answer.output["message"])
