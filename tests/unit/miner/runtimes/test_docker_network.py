"""The rules of the leases' network, as text; what they do is tested on a real engine."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from compute.miner.runtimes.docker_network import (
    CLOSED,
    is_leases,
    network_options,
    resolvers_in,
    ruleset,
    writer_options,
)
from compute.miner.runtimes.docker_options import DockerSettings, own_network

RULES = """\
table inet leases
delete table inet leases
table inet leases {
chain opened {
ct direction reply accept
ip daddr { 10.1.0.0/16, 192.168.7.0/24 } accept
ip daddr { 10.0.0.2/32 } meta l4proto { tcp, udp } th dport 53 accept
}
chain to_host {
type filter hook input priority -10; policy accept;
iifname "leases" jump opened
iifname "leases" reject with icmpx type admin-prohibited
}
chain to_others {
type filter hook forward priority -10; policy accept;
iifname "leases" jump opened
iifname "leases" ip daddr { CLOSED } reject with icmpx type admin-prohibited
iifname "leases" meta nfproto ipv6 reject with icmpx type admin-prohibited
}
}"""


def test_the_rules() -> None:
    allowed = ["192.168.7.0/24", "10.1.0.0/16", "10.1.2.0/24"]
    expected = RULES.replace("CLOSED", ", ".join(CLOSED))
    assert ruleset("leases", ["10.0.0.2", "10.0.0.2"], allowed) == expected
    assert " accept" not in ruleset("leases", [], []).replace("ct direction reply accept", "").replace(
        "policy accept", ""
    )


@pytest.mark.parametrize("address", ["10.0.0.1", "172.31.255.255", "192.168.0.1", "100.100.100.200", "169.254.169.254"])
def test_what_is_private_is_closed(address: str) -> None:
    assert any(ipaddress.ip_address(address) in ipaddress.ip_network(each) for each in CLOSED)


def test_the_writer_of_the_rules_has_power_over_the_network_and_nothing_else() -> None:
    options = writer_options(DockerSettings(miner="5Miner", image="compute-machine"), "rules")
    assert (options["cap_drop"], options["cap_add"]) == (["ALL"], ["NET_ADMIN"])
    assert options["security_opt"] == ["no-new-privileges:true"]
    assert options["read_only"] is True
    # One argument, that no shell sees; and nothing by which it would be taken for a lease.
    assert (options["entrypoint"], options["command"]) == (["/usr/sbin/nft"], ["rules"])
    assert "compute.lease" not in options["labels"]
    for opening in ("volumes", "mounts", "devices", "privileged", "pid_mode", "name"):
        assert opening not in options


def test_the_network_keeps_its_members_apart() -> None:
    name = own_network("5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY")
    assert name == "compute-9b5f177"
    options = network_options(name)
    assert options["enable_ipv6"] is False
    assert options["options"] == {
        "com.docker.network.bridge.enable_icc": "false",
        "com.docker.network.bridge.name": name,
    }
    assert len(network_options("a-very-long-network-name")["options"]["com.docker.network.bridge.name"]) == 15
    assert is_leases({"Driver": "bridge", "Options": options["options"], "EnableIPv6": False}, name)


GOOD = network_options("n")["options"]


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"Driver": "bridge", "Options": None},
        {"Driver": "bridge", "Options": {}},
        {"Driver": "bridge", "Options": {**GOOD, "com.docker.network.bridge.enable_icc": "true"}},
        {"Driver": "bridge", "Options": {**GOOD, "com.docker.network.bridge.name": "other"}},
        {"Driver": "bridge", "Options": GOOD, "EnableIPv6": True},
        {"Driver": "macvlan", "Options": GOOD},
    ],
)
def test_a_network_that_is_none_of_ours_is_told(found: dict[str, Any]) -> None:
    assert not is_leases(found, "n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("# a comment\nnameserver 10.0.0.2\nnameserver 1.1.1.1 # another\nsearch lan\n", ["10.0.0.2", "1.1.1.1"]),
        ("nameserver 127.0.0.53\nnameserver ::1\nnameserver fe80::1%eth0\n", []),
        ("nameserver\nnameserver x\nnameservers 10.0.0.2\noptions edns0", []),
        ('nameserver 10.0.0.2;drop\nnameserver " } accept', []),
    ],
)
def test_dns_servers_of_a_resolv_conf(text: str, expected: list[str]) -> None:
    assert resolvers_in(text) == expected
