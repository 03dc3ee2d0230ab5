"""What a renter's machine reaches of the host and of the host's network, seen from inside."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from compute.miner.runtimes import docker_network
from compute.miner.runtimes.base import ContainerSpec
from tests.waiting import DEADLINE_SECONDS

pytestmark = pytest.mark.docker

RANGE = ipaddress.IPv4Network((int(ipaddress.IPv4Address("10.213.0.0")) + os.getpid() % (1 << 14) * 4, 30))
"""A private network of the host. No other process of this run has it, nor the addresses below."""
HERE, PRIVATE = (str(address) for address in RANGE.hosts())
PUBLIC = f"198.51.100.{1 + os.getpid() % 254}"
LINK_LOCAL = f"169.254.213.{1 + os.getpid() % 254}"
"""The host in it, and the addresses of a machine beside the host; the second is nobody's, and counts as public."""

SERVER = """
import socket, threading
def serve(port):
    with socket.create_server(("0.0.0.0", port)) as server:
        while True:
            server.accept()[0].close()
for port in (53, 80):
    threading.Thread(target=serve, args=(port,)).start()
print("listening", flush=True)
"""

REACH = """
import json, socket, sys
found = {}
for host, port in json.loads(sys.argv[1]):
    try:
        socket.create_connection((host, port), 60).close()
        found[f"{host}:{port}"] = "open"
    except OSError as error:
        found[f"{host}:{port}"] = type(error).__name__ + " " + str(error)
print(json.dumps(found))
"""


@dataclass
class Host:
    """What there is to reach: ``port`` is open on every address of the host, of which some are listed."""

    port: int
    addresses: list[str]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def beside() -> Iterator[None]:
    """A machine on the host's private network: a network namespace with a server on ports 53 and 80."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        why = "a machine beside this one takes root and iproute2"
        if os.environ.get("COMPUTE_REQUIRE_DOCKER") == "1":
            pytest.fail(f"COMPUTE_REQUIRE_DOCKER=1, but {why}")
        pytest.skip(f"{why}. Enable it with: sudo env COMPUTE_REQUIRE_DOCKER=1 pytest")
    name = f"ct{os.getpid()}"
    here, there = f"{name}a", f"{name}b"
    with contextlib.ExitStack() as stack:
        ip("netns", "add", name)
        stack.callback(ip, "netns", "del", name)
        ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        ip("addr", "add", f"{HERE}/30", "dev", here)
        ip("link", "set", here, "up")
        for address in (f"{PRIVATE}/30", f"{PUBLIC}/32", f"{LINK_LOCAL}/32"):
            ip("-n", name, "addr", "add", address, "dev", there)
        ip("-n", name, "link", "set", there, "up")
        ip("-n", name, "route", "add", "default", "via", HERE)
        for address in (PUBLIC, LINK_LOCAL):
            ip("route", "add", f"{address}/32", "via", PRIVATE)
        argv = ["ip", "netns", "exec", name, sys.executable, "-c", SERVER]
        server = subprocess.Popen(argv, stdout=subprocess.PIPE)
        stack.enter_context(server)
        stack.callback(server.kill)
        assert server.stdout is not None
        assert server.stdout.readline() == b"listening\n"
        yield


@pytest.fixture(scope="module")
def host(beside: None) -> Iterator[Host]:
    """A server on all addresses of the host. Those of other tests' networks may go at any time, and are not listed."""
    way_out = subprocess.run(["ip", "-j", "-4", "route", "get", "192.0.2.1"], check=False, capture_output=True)
    addresses = [HERE, *(route["prefsrc"] for route in json.loads(way_out.stdout or "[]"))]
    with socket.create_server(("0.0.0.0", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    server.accept()[0].close()

        threading.Thread(target=accept, daemon=True).start()
        yield Host(server.getsockname()[1], addresses)
        server.shutdown(socket.SHUT_RDWR)


Reach = Callable[..., Any]


@pytest.fixture
def reach(login: Any) -> Reach:
    """What connecting to some addresses gives, from inside a machine."""

    async def reach(endpoint: Any, *targets: tuple[str, int]) -> list[str]:
        async with login(endpoint) as session:
            result = await session.run(["python3", "-c", REACH, json.dumps(targets)], timeout_seconds=DEADLINE_SECONDS)
        found: dict[str, str] = json.loads(result.stdout)
        return [found[f"{host}:{port}"] for host, port in targets]

    return reach


def gateway_of(client: Any, spec: ContainerSpec) -> str:
    (container,) = client.containers.list(filters={"label": f"compute.lease={spec.lease_id}"})
    (network,) = container.attrs["NetworkSettings"]["Networks"].values()
    return str(network["Gateway"])


PRIVATE_TARGETS = ((PRIVATE, 80), (PRIVATE, 53), (LINK_LOCAL, 80))


def targets_on(host: Host, gateway: str) -> list[tuple[str, int]]:
    """The host itself, by each of its addresses, and the private machine."""
    return [(address, host.port) for address in {*host.addresses, gateway}] + list(PRIVATE_TARGETS)


async def test_left_open_everything_is_reached(
    make_runtime: Any, spec: ContainerSpec, host: Host, reach: Reach, client: Any
) -> None:
    # Without this, the next test could not fail.
    runtime = make_runtime(network="", close_network=False)
    endpoint = runtime.start(spec)
    targets = targets_on(host, gateway_of(client, spec))
    assert await reach(endpoint, *targets, (PUBLIC, 80)) == ["open"] * (len(targets) + 1)
    runtime.stop(spec.lease_id)
    runtime.remove_network()


async def test_the_host_and_its_private_network_are_closed_and_the_world_is_open(
    make_runtime: Any, spec: ContainerSpec, host: Host, reach: Reach, client: Any
) -> None:
    endpoint = make_runtime().start(spec)
    targets = targets_on(host, gateway_of(client, spec))
    # More that is nobody's public address, and the lease's own published port.
    targets += [("169.254.169.254", 80), ("192.168.0.1", 80), ("172.31.0.1", 80), ("100.100.100.200", 80)]
    targets += [(host.addresses[0], endpoint.port), ("168.63.129.16", 80)]
    found = dict(zip(targets, await reach(endpoint, *targets), strict=True))
    # Refused at once, by the rules, and not merely without an answer.
    assert {target: said for target, said in found.items() if "No route to host" not in said} == {}
    assert await reach(endpoint, (PUBLIC, 80)) == ["open"]


async def test_a_lease_of_an_earlier_release_is_closed_in_where_it_is(
    make_runtime: Any, spec: ContainerSpec, host: Host, reach: Reach, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What all miners of a machine shared then; another run of this test may be at it.
    shared = f"cs{secrets.token_hex(4)}"
    miner = secrets.token_hex(8)
    older = make_runtime(miner, network=shared, close_network=False)
    endpoint = older.start(spec)
    assert await reach(endpoint, (PRIVATE, 80)) == ["open"]
    monkeypatch.setattr(docker_network, "SHARED_NETWORK", shared)
    runtime = make_runtime(miner, network="")
    runtime.check()
    refused, public = await reach(endpoint, (PRIVATE, 80), (PUBLIC, 80))
    assert "No route to host" in refused
    assert public == "open"
    assert [status.lease_id for status in runtime.list()] == [spec.lease_id]
    # A machine that does not run is on its network all the same.
    (container,) = client.containers.list(filters={"label": f"compute.lease={spec.lease_id}"})
    container.kill()
    runtime.check()
    assert client.networks.list(names=[shared])
    runtime.stop(spec.lease_id)
    runtime.check()
    assert client.networks.list(names=[shared]) == []
    older._network._write(docker_network.removal(shared))
    runtime.remove_network()


async def test_names_are_resolved_by_servers_in_the_private_network(
    make_runtime: Any,
    spec: ContainerSpec,
    host: Host,
    reach: Reach,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "resolv.conf").write_text(f"nameserver {PRIVATE}\n")
    monkeypatch.setattr(docker_network, "_RESOLVERS", (tmp_path / "resolv.conf",))
    endpoint = make_runtime().start(spec)
    # Their port for names, and no other.
    port_53, port_80 = await reach(endpoint, (PRIVATE, 53), (PRIVATE, 80))
    assert port_53 == "open"
    assert "No route to host" in port_80


async def test_an_operator_may_open_a_range(make_runtime: Any, spec: ContainerSpec, host: Host, reach: Reach) -> None:
    endpoint = make_runtime(allowed_ranges=(str(RANGE),)).start(spec)
    # The host has an address in it too.
    targets = [(PRIVATE, 80), (HERE, host.port), (LINK_LOCAL, 80)]
    answers = await reach(endpoint, *targets)
    assert answers[:2] == ["open", "open"]
    assert "No route to host" in answers[2]


@pytest.mark.parametrize("when", ["while it is leased", "before its restart", "while it stands ready"])
async def test_rules_that_were_lost_come_back(
    make_runtime: Any, spec: ContainerSpec, host: Host, reach: Reach, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    runtime = make_runtime()
    if when == "while it stands ready":
        runtime.prewarm(spec)
    else:
        endpoint = runtime.start(spec)
    # As somebody does who flushes all rules.
    runtime._network._write(docker_network.removal(runtime._settings.network))
    if when != "while it stands ready":
        assert await reach(endpoint, (PRIVATE, 80)) == ["open"]
    passed = docker_network.RENEWAL_SECONDS if when == "while it is leased" else docker_network.VALID_SECONDS
    monkeypatch.setattr(runtime._network, "_monotonic", lambda: time.monotonic() + passed)
    if when == "while it is leased":
        runtime.renew()
    elif when == "before its restart":
        endpoint = runtime.restart(spec)
    else:
        endpoint = runtime.start(spec)
    assert "No route to host" in (await reach(endpoint, (PRIVATE, 80)))[0]


async def test_the_engines_restart_policy_starts_nothing_behind_the_miners_back(
    make_runtime: Any, spec: ContainerSpec, client: Any
) -> None:
    make_runtime().start(spec)
    (container,) = client.containers.list(filters={"label": f"compute.lease={spec.lease_id}"})
    assert container.attrs["HostConfig"]["RestartPolicy"]["Name"] == "no"


def test_no_writer_of_rules_is_left(make_runtime: Any, spec: ContainerSpec, client: Any) -> None:
    name = secrets.token_hex(8)
    make_runtime(name).start(spec)
    assert client.containers.list(all=True, filters={"label": [f"compute.miner={name}", "compute.network"]}) == []
