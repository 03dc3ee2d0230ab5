"""The leases' own network: made once, and closed before a machine on it has a renter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from compute.base.errors import ConfigError, RuntimeFailure
from compute.miner.runtimes.base import LeaseOrder
from compute.miner.runtimes.docker import DockerRuntime
from compute.miner.runtimes.docker_engine import DockerEngine
from compute.miner.runtimes.docker_network import RENEWAL_SECONDS, VALID_SECONDS
from compute.miner.runtimes.docker_options import DockerSettings


@dataclass
class Passing:
    """The runtime's monotonic clock."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def passing(runtime: DockerRuntime, monkeypatch: pytest.MonkeyPatch) -> Passing:
    passing = Passing()
    monkeypatch.setattr(runtime._network, "_monotonic", passing)
    return passing


def test_a_network_that_opens_its_members_is_refused(runtime: DockerRuntime, stub: Any, order: LeaseOrder) -> None:
    stub.networks.append({"Id": "n", "Name": "compute-leases", "Driver": "bridge", "Options": {}})
    with pytest.raises(RuntimeFailure, match="unfit"):
        runtime.start(order)
    with pytest.raises(ConfigError, match="unfit"):
        runtime.check()
    assert stub.containers == {}


def test_two_miners_make_one_network(
    runtime: DockerRuntime, stub: Any, monkeypatch: pytest.MonkeyPatch, order: LeaseOrder
) -> None:
    runtime.start(order)
    runtime.start(replace(order, lease_id="cd" * 16))
    assert len(stub.networks) == 1
    made = dict(stub.networks[0])
    stub.networks.clear()

    def lost_the_race(*_: object) -> tuple[int, Any]:
        stub.networks.append(made)
        return 409, {"message": "network with name compute-leases already exists"}

    def network(method: str, parts: list[str], body: bytes) -> tuple[int, Any]:
        return lost_the_race() if method == "POST" else (200, stub.networks)

    monkeypatch.setattr(stub, "network", network)
    runtime.start(replace(order, lease_id="ef" * 16))


@pytest.mark.parametrize("way", ["start", "restart", "prepare", "handing over"])
def test_no_renter_comes_in_where_the_closing_is_too_long_ago(
    runtime: DockerRuntime, stub: Any, order: LeaseOrder, passing: Passing, way: str
) -> None:
    runtime.check()
    assert stub.calls == ["create networks", "rules"]
    assert 'iifname "compute-leases"' in stub.rules[0]
    if way == "handing over":
        runtime.prepare(order)
    begin = {"restart": runtime.restart, "prepare": runtime.prepare}.get(way, runtime.start)
    passing.now += VALID_SECONDS - 1
    begin(order)
    assert len(stub.rules) == 1
    runtime.stop(order.lease_id)
    if way == "handing over":
        runtime.prepare(order)
    stub.calls.clear()
    passing.now += 1
    begin(order)
    assert stub.rules[1:] == stub.rules[:1]
    assert stub.calls[0] == "rules"


def test_a_name_server_that_is_new_is_let_through_at_once(
    runtime: DockerRuntime, stub: Any, order: LeaseOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.check()
    monkeypatch.setattr("compute.miner.runtimes.docker_network.host_resolvers", lambda: ["192.0.2.53"])
    runtime.start(order)
    assert "192.0.2.53" in stub.rules[1]


def test_the_closing_is_renewed_every_few_minutes(runtime: DockerRuntime, stub: Any, passing: Passing) -> None:
    runtime.check()
    for _ in range(3):
        stub.calls.clear()
        passing.now += RENEWAL_SECONDS - 1
        runtime.renew()
        assert stub.calls == []
        passing.now += 1
        runtime.renew()
        runtime.renew()
        assert stub.calls == ["rules"]
    # What fails is tried again as seldom: until it is too long ago, whoever comes comes in.
    stub.nft_exit_code = 1
    passing.now += RENEWAL_SECONDS
    with pytest.raises(RuntimeFailure, match="could not be closed"):
        runtime.renew()
    runtime.renew()


def test_a_network_that_could_be_closed_and_suddenly_cannot_is_a_failure(
    runtime: DockerRuntime, stub: Any, order: LeaseOrder, passing: Passing
) -> None:
    runtime.check()
    passing.now += VALID_SECONDS
    stub.nft_exit_code = 1
    with pytest.raises(RuntimeFailure, match="could not be closed"):
        runtime.start(order)
    assert stub.containers == {}


NO_NFT = 'failed to create shim task: exec: "/usr/sbin/nft": stat /usr/sbin/nft: no such file or directory: unknown'


@pytest.mark.parametrize("why", ["an image without nftables", "a kernel without it"])
def test_where_it_cannot_be_closed_the_log_says_so_and_leases_go_on(
    runtime: DockerRuntime, stub: Any, caplog: pytest.LogCaptureFixture, why: str, order: LeaseOrder, passing: Passing
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
    runtime.start(order)
    # A new image or kernel module needs no restart of the miner; from then on the network has to be closed.
    stub.nft_exit_code = 0
    runtime.restart(order)
    passing.now += VALID_SECONDS
    stub.nft_exit_code = 1
    with pytest.raises(RuntimeFailure, match="could not be closed"):
        runtime.restart(order)


@pytest.mark.parametrize("exit_code", [0, 1])
def test_an_operator_may_leave_the_network_open(
    engine: DockerEngine, stub: Any, check: Any, exit_code: int, order: LeaseOrder, settings: DockerSettings
) -> None:
    runtime = DockerRuntime(replace(settings, close_network=False), engine, sshd_check=check)
    stub.nft_exit_code = exit_code
    runtime.check()
    # What a miner before this one may have closed.
    assert stub.rules == ["table inet compute-leases\ndelete table inet compute-leases"]
    stub.calls.clear()
    runtime.start(order)
    assert stub.calls == ["create", "start", "rename", "attach"]
