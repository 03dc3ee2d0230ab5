from __future__ import annotations

import ipaddress

import pytest

from compute.localnet.pallet.calls import guard
from compute.localnet.pallet.errors import DispatchError, PoolError
from compute.localnet.pallet.serving import serve_axon, serve_prometheus
from compute.localnet.pallet.state import Hyperparameters, Neuron, State, Subnet

NETUID = 27


def _state(block: int = 100, **settings: object) -> State:
    hyperparameters = Hyperparameters(serving_rate_limit=10)
    for name, value in settings.items():
        hyperparameters = hyperparameters.with_value(name, value)
    neurons = (Neuron("hot", "cold", registered_at=1, last_update=1),)
    return State(block, subnets={NETUID: Subnet(0, hyperparameters, burn=1, last_epoch_block=0, neurons=neurons)})


def _axon(ip: str = "127.0.0.2", **changes: object) -> dict:
    address = ipaddress.ip_address(ip)
    return {
        "netuid": NETUID,
        "version": 200,
        "ip": int(address),
        "port": 8091,
        "ip_type": address.version,
        "protocol": 4,
        "placeholder1": 0,
        "placeholder2": 0,
        **changes,
    }


def _prometheus(ip: str = "127.0.0.2", **changes: object) -> dict:
    axon = _axon(ip, **changes)
    return {key: axon[key] for key in ("netuid", "version", "ip", "port", "ip_type")}


@pytest.mark.parametrize(
    "ip", ["127.0.0.2", "127.1.2.3", "10.0.0.1", "192.168.1.1", "8.8.8.8", "255.255.255.254", "0.0.0.0", "2001:db8::1"]
)
def test_addresses_that_the_chain_takes(ip: str) -> None:
    axon = serve_axon(_state(), "hot", **_axon(ip)).subnets[NETUID].neurons[0].axon
    assert axon.ip == int(ipaddress.ip_address(ip))
    assert (axon.block, axon.version, axon.port, axon.protocol) == (100, 200, 8091, 4)


@pytest.mark.parametrize("ip", ["127.0.0.1", "255.255.255.255", "::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"])
@pytest.mark.parametrize("call", ["serve_axon", "serve_prometheus"])
def test_localhost_and_no_addresses_are_refused(ip: str, call: str) -> None:
    serve, arguments = (serve_axon, _axon(ip)) if call == "serve_axon" else (serve_prometheus, _prometheus(ip))
    with pytest.raises(DispatchError, match="InvalidIpAddress"):
        serve(_state(), "hot", **arguments)
    with pytest.raises(PoolError, match="Custom error: 11"):
        guard(_state(), "hot", call, arguments)


@pytest.mark.parametrize(
    ("hotkey", "changes", "error", "code"),
    [
        ("hot", {"netuid": 28}, "SubnetNotExists", 10),
        ("stranger", {}, "HotKeyNotRegisteredInNetwork", 10),
        ("hot", {"ip_type": 5}, "InvalidIpType", 255),
        ("hot", {"ip": 2**40}, "InvalidIpAddress", 11),
        ("hot", {"port": 0}, "InvalidPort", 13),
    ],
)
@pytest.mark.parametrize("call", ["serve_axon", "serve_prometheus"])
def test_each_rule_has_its_name_and_its_number_in_the_pool(
    call: str, hotkey: str, changes: dict, error: str, code: int
) -> None:
    serve, arguments = (serve_axon, _axon()) if call == "serve_axon" else (serve_prometheus, _prometheus())
    arguments.update({key: value for key, value in changes.items() if key in arguments})
    with pytest.raises(DispatchError) as caught:
        serve(_state(), hotkey, **arguments)
    assert caught.value.name == error
    with pytest.raises(PoolError) as refused:
        guard(_state(), hotkey, call, arguments)
    assert refused.value.data == f"Custom error: {code}"


def test_a_prometheus_address_may_not_be_zero() -> None:
    with pytest.raises(DispatchError, match="InvalidIpAddress"):
        serve_prometheus(_state(), "hot", **_prometheus("0.0.0.0"))


@pytest.mark.parametrize("call", ["serve_axon", "serve_prometheus"])
def test_serving_again_waits_for_the_rate_limit(call: str) -> None:
    serve, arguments = (serve_axon, _axon()) if call == "serve_axon" else (serve_prometheus, _prometheus())
    served = serve(_state(100), "hot", **arguments)
    soon = State(109, subnets=served.subnets)
    with pytest.raises(DispatchError, match="ServingRateLimitExceeded"):
        serve(soon, "hot", **arguments)
    with pytest.raises(PoolError, match="Custom error: 12"):
        guard(soon, "hot", call, arguments)
    serve(State(110, subnets=served.subnets), "hot", **arguments)


def test_a_limit_of_zero_is_none() -> None:
    served = serve_axon(_state(serving_rate_limit=0), "hot", **_axon())
    serve_axon(served, "hot", **_axon())
