"""The leases' own bridge, and the rules that close the host and its private network to whoever is on it.

Docker has no option for that. The rules are a table of nftables of their own, so that nothing of Docker's, of a
distribution's or of the operator's is touched; it names the bridge, holds whatever becomes of containers and of the
engine, and goes with a reboot, or with ``nft flush ruleset``. Every miner has a bridge and a table of its own, so that
two on one machine do not undo each other's. So it is written again every few minutes, and no machine
is given to a renter where that is longer ago. Who writes it is a container too, since a miner's user may ask the engine
and nothing else: of the operator's image, in the host's network, with the power over that network alone, and gone as
soon as ``nft`` is done.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from docker.models.networks import Network
from docker.types import LogConfig

from compute.base.errors import RuntimeFailure
from compute.miner.runtimes.docker_engine import DockerEngine, EngineGone, ProgramMissing
from compute.miner.runtimes.docker_options import LABEL_MINER, DockerSettings

logger = logging.getLogger(__name__)

CLOSED = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",  # carriers' NAT, overlay networks, and Alibaba's metadata
    "127.0.0.0/8",
    "168.63.129.16/32",  # Azure's own services
    "169.254.0.0/16",  # link-local, and most clouds' metadata
    "172.16.0.0/12",
    "192.0.0.0/24",  # Oracle's metadata
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/3",  # multicast, reserved, broadcast
)
"""What is nobody's public address."""

_NFT = "/usr/sbin/nft"
_RESOLVERS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
"""Where the engine reads which DNS servers containers use; the second where the first names systemd's own."""

RENEWAL_SECONDS = 300.0
"""How old the rules get before they are written again."""
VALID_SECONDS = 2 * RENEWAL_SECONDS
"""How old they may be for a renter to come in."""

SHARED_NETWORK = "compute-leases"
"""What all miners of a machine shared in earlier releases. Leases that began there stay there, and stay closed in."""

_LABEL_NETWORK = "compute.network"
_WRITING_SECONDS = 20
_MAX_SAID = 500


class LeaseNetwork:
    """The network of one miner's leases. Methods block; they are idempotent and safe for several threads."""

    def __init__(self, settings: DockerSettings, engine: DockerEngine) -> None:
        self._settings = settings
        self._engine = engine
        self._monotonic = time.monotonic
        self._unable = False
        self._on_shared = False
        self._written = ""
        self._written_at = self._tried_at = -VALID_SECONDS

    def check(self) -> None:
        """Make the network, and close it where that can be done here; where not, the log says what to do.

        Raises:
            RuntimeFailure: there is no engine, or no network to be had.
        """
        self.ensure()
        self._sweep()
        self._look_at_shared()
        if not self._settings.close_network:
            logger.warning("leases reach this host and its private network: --miner.network.close is off")
            # Where nft cannot be run, there is nothing that it has written.
            with contextlib.suppress(RuntimeFailure):
                self._write("\n".join(map(removal, self._bridges())))
            return
        try:
            self._write_anew(self._rules())
        except EngineGone:
            raise
        except ProgramMissing:
            self._open(f"image {self._settings.image!r} has no nftables. Build it again, as docs/miner.md says")
        except RuntimeFailure as error:
            self._open(f"{error}. See to it that the host's kernel has nf_tables")

    def ensure(self) -> None:
        """See that the network is there.

        Raises:
            RuntimeFailure: there is no engine, or another network has its name.
        """
        network = self._find(self._settings.network)
        if network is None:
            try:
                with self._engine.calling("create the network") as client:
                    client.networks.create(**network_options(self._settings.network))
            except RuntimeFailure:
                # Another thread may have been first.
                if self._find(self._settings.network) is None:
                    raise
            network = self._find(self._settings.network)
        if network is None or not is_leases(network.attrs, self._settings.network):
            name = self._settings.network
            logger.error("network %r is not one that this miner made. Remove it: docker network rm %s", name, name)
            raise RuntimeFailure("the miner's network for leases is unfit")

    def renew(self) -> None:
        """Close the network anew, where that is due; called every few seconds.

        Raises:
            RuntimeFailure: as ``close``.
        """
        if self._settings.close_network and self._monotonic() - self._tried_at >= RENEWAL_SECONDS:
            self._tried_at = self._monotonic()
            if self._on_shared:
                self._look_at_shared()
            self._close(self._rules())

    def close(self) -> None:
        """See that the network is closed, if it is to be and can be; called before a machine on it gets its renter.

        Raises:
            RuntimeFailure: it is not closed, though it could be before.
        """
        rules = self._rules()
        valid = rules == self._written and self._monotonic() - self._written_at < VALID_SECONDS
        if self._settings.close_network and not valid:
            self._close(rules)

    def remove(self) -> None:
        """Remove the network and its rules, when no machine is left on it and its miner does not come back. Idempotent.

        Raises:
            RuntimeFailure: there is no engine, or a machine is on the network yet.
        """
        # Where nft cannot be run, there is nothing that it has written.
        with contextlib.suppress(RuntimeFailure):
            self._write(removal(bridge_name(self._settings.network)))
        network = self._find(self._settings.network)
        if network is not None:
            with self._engine.calling("remove the network"):
                network.remove()

    def _close(self, rules: str) -> None:
        try:
            self._write_anew(rules)
        except EngineGone:
            raise
        except RuntimeFailure:
            if not self._unable:
                raise
        else:
            if self._unable:
                logger.info("the network of leases is closed now")
            self._unable = False

    def _open(self, why: str) -> None:
        self._unable = True
        logger.error(
            "LEASES REACH THIS HOST AND ITS PRIVATE NETWORK, because the miner cannot close it: %s; or close it "
            "yourself, and say --no-miner.network.close",
            why,
        )

    def _rules(self) -> str:
        resolvers = host_resolvers()
        return "\n".join(ruleset(bridge, resolvers, self._settings.allowed_ranges) for bridge in self._bridges())

    def _bridges(self) -> list[str]:
        """Of the networks that this miner's machines are on."""
        return [bridge_name(self._settings.network), *([SHARED_NETWORK] if self._on_shared else [])]

    def _write_anew(self, rules: str) -> None:
        begun = self._tried_at = self._monotonic()
        self._write(rules)
        self._written, self._written_at = rules, begun

    def _write(self, rules: str) -> None:
        with self._engine.calling("write the rules of the network") as client:
            container = client.containers.create(**writer_options(self._settings, rules))
            try:
                container.start()
                code = container.wait(timeout=_WRITING_SECONDS)["StatusCode"]
                said = b"" if code == 0 else container.logs(tail=5)
            finally:
                container.remove(force=True)
        if code != 0:
            logger.warning(
                "nft would not write the rules of the network: %s", said.decode(errors="replace")[:_MAX_SAID]
            )
            raise RuntimeFailure("the miner's network for leases could not be closed")

    def _sweep(self) -> None:
        """Remove writers that a miner left behind when it was killed."""
        labels = [f"{LABEL_MINER}={self._settings.miner}", f"{_LABEL_NETWORK}=rules"]
        with self._engine.calling("remove old containers") as client:
            for container in client.containers.list(all=True, filters={"label": labels}, ignore_removed=True):
                container.remove(force=True)

    def _look_at_shared(self) -> None:
        """See whether machines of this miner are on the network of earlier releases; where nobody's are, remove it.

        Its table stays: a miner of an earlier release that makes the network again relies on what it wrote.
        """
        network = self._find(SHARED_NETWORK)
        self._on_shared = False
        if network is None or not is_leases(network.attrs, SHARED_NETWORK):
            return
        with self._engine.calling("list the containers") as client:
            there = client.containers.list(all=True, filters={"network": SHARED_NETWORK}, ignore_removed=True)
        self._on_shared = any(each.labels.get(LABEL_MINER) == self._settings.miner for each in there)
        if not there:
            with contextlib.suppress(RuntimeFailure), self._engine.calling("remove the network of earlier releases"):
                network.remove()

    def _find(self, name: str) -> Network | None:
        with self._engine.calling("list the networks") as client:
            # The engine's own filter matches parts of names.
            return next((found for found in client.networks.list(names=[name]) if found.name == name), None)


def bridge_name(network: str) -> str:
    """The network's name as far as interfaces may have it."""
    return network[:15]


def network_options(name: str) -> dict[str, Any]:
    """The arguments of ``client.networks.create``: a bridge of the leases' own, whose members do not see each other."""
    return {
        "name": name,
        "driver": "bridge",
        "check_duplicate": True,
        "enable_ipv6": False,
        "options": {
            "com.docker.network.bridge.enable_icc": "false",
            "com.docker.network.bridge.name": bridge_name(name),
        },
        "labels": {_LABEL_NETWORK: "leases"},
    }


def is_leases(attributes: dict[str, Any], name: str) -> bool:
    """Whether a network that exists already, as the engine describes it, is like one of ``network_options``."""
    wanted = network_options(name)
    options = attributes.get("Options") or {}
    same = all(options.get(key) == value for key, value in wanted["options"].items())
    return same and attributes.get("Driver") == wanted["driver"] and not attributes.get("EnableIPv6")


def ruleset(bridge: str, resolvers: Iterable[str], allowed: Iterable[str]) -> str:
    """What ``nft`` is told, in one transaction: members of ``bridge`` reach public addresses, and answer whoever asks.

    ``resolvers`` are addresses that they may ask for names, wherever those are; ``allowed`` are ranges that stay open.
    """
    prohibited = f'iifname "{bridge}" {{}}reject with icmpx type admin-prohibited'
    opened = []
    if ranges := _set(allowed):
        opened.append(f"ip daddr {ranges} accept")
    if servers := _set(resolvers):
        opened.append(f"ip daddr {servers} meta l4proto {{ tcp, udp }} th dport 53 accept")
    return "\n".join(
        [
            removal(bridge),
            f"table inet {bridge} {{",
            "chain opened {",
            # Answers only: a connection that a member made before there were rules ends with them.
            "ct direction reply accept",
            *opened,
            "}",
            "chain to_host {",
            "type filter hook input priority -10; policy accept;",
            f'iifname "{bridge}" jump opened',
            prohibited.format(""),
            "}",
            "chain to_others {",
            "type filter hook forward priority -10; policy accept;",
            f'iifname "{bridge}" jump opened',
            prohibited.format(f"ip daddr {_set(CLOSED)} "),
            prohibited.format("meta nfproto ipv6 "),
            "}",
            "}",
        ]
    )


def removal(bridge: str) -> str:
    """What ``nft`` is told so that there are no rules, whether or not there were some."""
    return f"table inet {bridge}\ndelete table inet {bridge}"


def writer_options(settings: DockerSettings, rules: str) -> dict[str, Any]:
    """The arguments of ``client.containers.create`` for the container that runs ``nft``."""
    return {
        "image": settings.image,
        "entrypoint": [_NFT],
        "command": [rules],
        "user": "0:0",
        "healthcheck": {"test": ["NONE"]},
        "environment": {"NVIDIA_VISIBLE_DEVICES": "void"},
        "use_config_proxy": False,
        "labels": {LABEL_MINER: settings.miner, _LABEL_NETWORK: "rules"},
        "network_mode": "host",
        # Where the engine maps users, power over the host's network needs the host's own root.
        "userns_mode": "host",
        "cap_drop": ["ALL"],
        "cap_add": ["NET_ADMIN"],
        "security_opt": ["no-new-privileges:true"],
        "read_only": True,
        "pids_limit": 16,
        "mem_limit": 128 << 20,
        "log_config": LogConfig(type=LogConfig.types.JSON, config={"max-size": "1m", "max-file": "1"}),
    }


def host_resolvers() -> list[str]:
    """The IPv4 addresses of this machine's DNS servers."""
    texts = []
    for path in _RESOLVERS:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            texts.append(path.read_text(encoding="utf-8"))
    return resolvers_in("\n".join(texts))


def resolvers_in(text: str) -> list[str]:
    """The IPv4 addresses that a resolv.conf names; the host's loopback is not for containers."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            with contextlib.suppress(ipaddress.AddressValueError):
                address = ipaddress.IPv4Address(words[1])
                if not address.is_loopback:
                    found.append(str(address))
    return found


def _set(ranges: Iterable[str]) -> str:
    """A set of addresses for nft, which takes no range twice; empty where there are none."""
    networks = ipaddress.collapse_addresses(ipaddress.IPv4Network(each) for each in ranges)
    listed = ", ".join(str(network) for network in networks)
    return f"{{ {listed} }}" if listed else ""
