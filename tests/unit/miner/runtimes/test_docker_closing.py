"""The leases' own network: made once, and closed before a machine on it has a renter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from compute.base.errors import ConfigError, RuntimeFailure
from compute.miner.runtimes.base import ContainerSpec
from compute.miner.runtimes.docker import DockerRuntime
from compute.miner.runtimes.docker_engine import DockerEngine
from compute.miner.runtimes.docker_network import (
    RENEWAL_SECONDS,
    SHARED_NETWORK,
    VALID_SECONDS,
    removal,
)
from compute.miner.runtimes.docker_options import DockerSettings, own_network


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


def test_a_network_that_opens_its_members_is_refused(runtime: DockerRuntime, stub: Any, spec: ContainerSpec) -> None:
    stub.networks.append({"Id": "n", "Name": runtime._settings.network, "Driver": "bridge", "Options": {}})
    with pytest.raises(RuntimeFailure, match="unfit"):
        runtime.start(spec)
    with pytest.raises(ConfigError, match="unfit"):
        runtime.check()
    assert stub.containers == {}


def test_a_miner_makes_one_network(
    runtime: DockerRuntime, stub: Any, monkeypatch: pytest.MonkeyPatch, spec: ContainerSpec
) -> None:
    runtime.start(spec)
    runtime.start(replace(spec, lease_id="cd" * 16))
    assert len(stub.networks) == 1
    made = dict(stub.networks[0])
    stub.networks.clear()

    def lost_the_race(*_: object) -> tuple[int, Any]:
        stub.networks.append(made)
        return 409, {"message": "network with that name already exists"}

    def network(method: str, parts: list[str], body: bytes) -> tuple[int, Any]:
        return lost_the_race() if method == "POST" else (200, stub.networks)

    monkeypatch.setattr(stub, "network", network)
    runtime.start(replace(spec, lease_id="ef" * 16))


@pytest.mark.parametrize("way", ["start", "restart", "prewarm", "handing over"])
def test_no_renter_comes_in_where_the_closing_is_too_long_ago(
    runtime: DockerRuntime, stub: Any, spec: ContainerSpec, passing: Passing, way: str
) -> None:
    runtime.check()
    assert stub.calls == ["create networks", "rules"]
    assert f'iifname "{runtime._settings.network}"' in stub.rules[0]
    if way == "handing over":
        runtime.prewarm(spec)
    begin = {"restart": runtime.restart, "prewarm": runtime.prewarm}.get(way, runtime.start)
    passing.now += VALID_SECONDS - 1
    begin(spec)
    assert len(stub.rules) == 1
    runtime.stop(spec.lease_id)
    if way == "handing over":
        runtime.prewarm(spec)
    stub.calls.clear()
    passing.now += 1
    begin(spec)
    assert stub.rules[1:] == stub.rules[:1]
    assert stub.calls[0] == "rules"


def test_a_name_server_that_is_new_is_let_through_at_once(
    runtime: DockerRuntime, stub: Any, spec: ContainerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.check()
    monkeypatch.setattr("compute.miner.runtimes.docker_network.host_resolvers", lambda: ["192.0.2.53"])
    runtime.start(spec)
    assert "192.0.2.53" in stub.rules[1]


def test_what_the_operator_allows_is_let_through(
    engine: DockerEngine, stub: Any, check: Any, settings: DockerSettings
) -> None:
    DockerRuntime(replace(settings, allowed_ranges=("10.1.0.0/16",)), engine, sshd_check=check).check()
    assert "ip daddr { 10.1.0.0/16 } accept" in stub.rules[0]


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
    runtime: DockerRuntime, stub: Any, spec: ContainerSpec, passing: Passing
) -> None:
    runtime.check()
    passing.now += VALID_SECONDS
    stub.nft_exit_code = 1
    with pytest.raises(RuntimeFailure, match="could not be closed"):
        runtime.start(spec)
    assert stub.containers == {}


NO_NFT = 'failed to create shim task: exec: "/usr/sbin/nft": stat /usr/sbin/nft: no such file or directory: unknown'


@pytest.mark.parametrize("why", ["an image without nftables", "a kernel without it"])
def test_where_it_cannot_be_closed_the_log_says_so_and_leases_go_on(
    runtime: DockerRuntime, stub: Any, caplog: pytest.LogCaptureFixture, why: str, spec: ContainerSpec, passing: Passing
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
    runtime.start(spec)
    # A new image or kernel module needs no restart of the miner; from then on the network has to be closed.
    stub.nft_exit_code = 0
    runtime.restart(spec)
    passing.now += VALID_SECONDS
    stub.nft_exit_code = 1
    with pytest.raises(RuntimeFailure, match="could not be closed"):
        runtime.restart(spec)


@pytest.mark.parametrize("exit_code", [0, 1])
def test_an_operator_may_leave_the_network_open(
    engine: DockerEngine,
    stub: Any,
    check: Any,
    exit_code: int,
    spec: ContainerSpec,
    settings: DockerSettings,
    caplog: pytest.LogCaptureFixture,
) -> None:
    runtime = DockerRuntime(replace(settings, close_network=False), engine, sshd_check=check)
    stub.nft_exit_code = exit_code
    runtime.check()
    assert "--miner.network.close is off" in caplog.text
    # What a miner before this one may have closed.
    assert stub.rules == [removal(settings.network)]
    stub.calls.clear()
    runtime.start(spec)
    assert stub.calls == ["create", "start", "rename", "attach"]


def test_two_miners_on_one_machine_share_no_name(engine: DockerEngine, stub: Any, check: Any) -> None:
    for miner in ("5Miner", "5Other"):
        DockerRuntime(DockerSettings(miner=miner, image="compute-machine"), engine, sshd_check=check).check()
    first, second = own_network("5Miner"), own_network("5Other")
    assert [network["Name"] for network in stub.networks] == [first, second]
    bridges = {network["Options"]["com.docker.network.bridge.name"] for network in stub.networks}
    assert bridges == {first, second}
    assert first not in stub.rules[1]
    assert second not in stub.rules[0]


def put_on_shared(stub: Any, engine: DockerEngine, check: Any, spec: ContainerSpec, miner: str) -> DockerRuntime:
    """A machine that a miner of an earlier release has started."""
    settings = DockerSettings(miner=miner, image="compute-machine", network=SHARED_NETWORK)
    runtime = DockerRuntime(settings, engine, sshd_check=check)
    runtime.start(spec)
    stub.rules.clear()
    return runtime


def test_a_lease_that_began_under_an_earlier_release_stays_closed_in(
    runtime: DockerRuntime, engine: DockerEngine, stub: Any, check: Any, spec: ContainerSpec, passing: Passing
) -> None:
    put_on_shared(stub, engine, check, spec, "5Miner")
    runtime.check()
    passing.now += RENEWAL_SECONDS
    runtime.renew()
    passing.now += VALID_SECONDS
    runtime.restart(spec)
    own = runtime._settings.network
    assert len(stub.rules) == 3
    for rules in stub.rules:
        assert f'iifname "{own}"' in rules
        assert f'iifname "{SHARED_NETWORK}"' in rules
    assert stub.only()["HostConfig"]["NetworkMode"] == SHARED_NETWORK
    # The next one is on the miner's own, and then nothing is left of the shared one.
    runtime.stop(spec.lease_id)
    passing.now += RENEWAL_SECONDS
    runtime.renew()
    assert SHARED_NETWORK not in stub.rules[-1]
    assert [network["Name"] for network in stub.networks] == [own]
    runtime.start(spec)
    assert stub.only()["HostConfig"]["NetworkMode"] == own


def test_what_is_shared_is_anothers_as_long_as_a_machine_of_it_is_there(
    runtime: DockerRuntime, engine: DockerEngine, stub: Any, check: Any, spec: ContainerSpec
) -> None:
    other = put_on_shared(stub, engine, check, spec, "5Other")
    runtime.check()
    assert SHARED_NETWORK not in stub.rules[0]
    assert SHARED_NETWORK in [network["Name"] for network in stub.networks]
    other.stop(spec.lease_id)
    runtime.check()
    # Its table stays: no rules of another miner are taken away.
    assert SHARED_NETWORK not in "".join(stub.rules)
    assert [network["Name"] for network in stub.networks] == [runtime._settings.network]


def test_a_network_of_that_name_which_is_nobodys_lease_network_is_left_alone(runtime: DockerRuntime, stub: Any) -> None:
    stub.networks.append({"Id": "n", "Name": SHARED_NETWORK, "Driver": "bridge", "Options": {}})
    runtime.check()
    assert SHARED_NETWORK in [network["Name"] for network in stub.networks]


@pytest.mark.parametrize("exit_code", [0, 1])
def test_a_miner_that_does_not_come_back_leaves_no_network(runtime: DockerRuntime, stub: Any, exit_code: int) -> None:
    stub.networks.append({"Id": "other", "Name": SHARED_NETWORK, "Driver": "bridge", "Options": {}})
    runtime.check()
    stub.nft_exit_code = exit_code
    for _ in range(2):
        runtime.remove_network()
    assert stub.rules[1:] == [removal(runtime._settings.network)] * 2
    assert [network["Id"] for network in stub.networks] == ["other"]
