"""Announcing where a neuron serves: the chain's rules, in the chain's order (subnets/serving.rs).

The pool checks the same rules before dispatch.
"""

from __future__ import annotations

from dataclasses import replace

from compute.localnet.pallet.errors import ensure
from compute.localnet.pallet.state import Axon, Prometheus, State, Subnet

_IPV4_LOCALHOST = 0x7F000001
_IPV6_LOCALHOST = 1
_IPV4_BROADCAST = 2**32 - 1
_IPV6_LAST = 2**128 - 1


def serve_axon(
    state: State,
    hotkey: str,
    *,
    netuid: int,
    version: int,
    ip: int,
    port: int,
    ip_type: int,
    protocol: int,
    placeholder1: int,
    placeholder2: int,
) -> State:
    """Store a neuron's endpoint.

    Raises:
        DispatchError: with the first rule that is broken.
    """
    ensure(netuid in state.subnets, "SubnetNotExists")
    subnet = state.subnets[netuid]
    uid = subnet.uid_of(hotkey)
    ensure(uid is not None, "HotKeyNotRegisteredInNetwork")
    assert uid is not None
    ensure(ip_type in (4, 6), "InvalidIpType")
    ensure(is_valid_address(ip_type, ip), "InvalidIpAddress")
    ensure(_is_allowed_by_rate(subnet, subnet.neurons[uid].axon.block, state.number), "ServingRateLimitExceeded")
    ensure(port != 0, "InvalidPort")
    axon = Axon(state.number, version, ip, port, ip_type, protocol, placeholder1, placeholder2)
    return state.with_subnet(netuid, subnet.with_neuron(uid, replace(subnet.neurons[uid], axon=axon)))


def serve_prometheus(
    state: State, hotkey: str, *, netuid: int, version: int, ip: int, port: int, ip_type: int
) -> State:
    """Store a neuron's metrics endpoint; unlike an axon's, its address may not be zero.

    Raises:
        DispatchError: with the first rule that is broken.
    """
    ensure(netuid in state.subnets, "SubnetNotExists")
    subnet = state.subnets[netuid]
    ensure(ip_type in (4, 6), "InvalidIpType")
    ensure(ip != 0 and is_valid_address(ip_type, ip), "InvalidIpAddress")
    uid = subnet.uid_of(hotkey)
    ensure(uid is not None, "HotKeyNotRegisteredInNetwork")
    assert uid is not None
    previous = subnet.neurons[uid].prometheus
    ensure(_is_allowed_by_rate(subnet, previous.block, state.number), "ServingRateLimitExceeded")
    ensure(port != 0, "InvalidPort")
    prometheus = Prometheus(state.number, version, ip, port, ip_type)
    return state.with_subnet(netuid, subnet.with_neuron(uid, replace(subnet.neurons[uid], prometheus=prometheus)))


def is_valid_address(ip_type: int, ip: int) -> bool:
    """Refuses exactly 127.0.0.1 and ::1, and what is no address; private ranges and 127.0.0.2 pass, as on the chain."""
    if ip_type == 4:
        return ip < _IPV4_BROADCAST and ip != _IPV4_LOCALHOST
    return ip not in (_IPV6_LAST, _IPV6_LOCALHOST)


def _is_allowed_by_rate(subnet: Subnet, last_served: int, block: int) -> bool:
    limit = subnet.hyperparameters.serving_rate_limit
    return limit == 0 or last_served == 0 or block - last_served >= limit
