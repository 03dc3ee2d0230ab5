"""The miner's command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from compute.base.options import kinds, shared
from compute.base.options.option import Group, Option, OptionParser, read

EXAMPLES = """\
examples:
  python neurons/miner.py --wallet.name miner --wallet.hotkey default
  python neurons/miner.py --netuid 15 --subtensor.network test --ssh.port 4445 --logging.debug
  python neurons/miner.py --no-auto_update --blacklist.hotkeys 5F…,5G…
  python neurons/miner.py --status --json
"""


class RuntimeKind(str, Enum):
    """What a leased machine is: a Docker container, or (on a localnet only) a process of this user."""

    DOCKER = "docker"
    LOCAL = "local"


ALL_ADDRESSES = "0.0.0.0"  # noqa: S104 - renters come from everywhere

SSH_PORT = Option("ssh.port", kinds.port, 4444, "Port where a leased machine answers SSH.", metavar="PORT")
SSH_HOST: Option[str | None] = Option(
    "ssh.host",
    kinds.ip_address,
    None,
    "Address of this machine where a leased machine answers SSH; with the local runtime, one of the loopback.",
    metavar="IP",
    default_text="--axon.external_ip if that is of the loopback, else all with docker and 127.0.0.1 with local",
)
RUNTIME = Option(
    "miner.runtime",
    kinds.choice(RuntimeKind),
    RuntimeKind.DOCKER,
    "docker: each lease is a container. local: a shell of this user without isolation, for a localnet on this machine"
    " only.",
    metavar="{docker,local}",
)
IMAGE = Option(
    "miner.image",
    kinds.text,
    "compute-machine",
    "With the docker runtime: the image of every lease; docs/miner.md says how it is made.",
    metavar="NAME",
)
NETWORK_CLOSE = Option(
    "miner.network.close",
    kinds.boolean,
    True,
    "With the docker runtime: keep leases from reaching this host, its private network and a cloud's metadata.",
)
NETWORK_ALLOW: Option[tuple[str, ...]] = Option(
    "miner.network.allow",
    kinds.ip_ranges,
    (),
    "With the docker runtime: private addresses that leases may reach all the same.",
    metavar="RANGE,RANGE,…",
)
ALLOW_DOCKERFILE = Option(
    "miner.allow.dockerfile",
    kinds.boolean,
    False,
    "With the docker runtime: run a renter's steps of a Dockerfile, inside the lease, before it is handed over.",
)
CPU_DEVICES = Option(
    "miner.cpu.devices",
    kinds.integer(0, 64),
    0,
    "Offer this many CPU cores as devices, to a chain on this machine only.",
    metavar="N",
)
REQUIRE_SIGNED = Option(
    "miner.require.signed", kinds.boolean, False, "Refuse requests whose body the caller's hotkey has not signed."
)
NOT_ENOUGH_STAKE = Option(
    "miner.whitelist.not.enough.stake",
    kinds.boolean,
    False,
    "Answer callers with too little stake or without a validator permit too.",
)
NOT_UPDATED = Option(
    "miner.whitelist.not.updated", kinds.boolean, False, "Answer validators that run an outdated version too."
)
UPDATED_THRESHOLD = Option(
    "miner.whitelist.updated.threshold",
    kinds.percent,
    60,
    "Percentage of validators that must have updated before outdated ones are refused.",
    metavar="PERCENT",
)
_LEGACY = "Accepted; used by the legacy benchmark only."
HASHCAT_PATH = Option("miner.hashcat.path", kinds.text, "hashcat", _LEGACY, metavar="PATH")
HASHCAT_PROFILE = Option("miner.hashcat.workload.profile", kinds.text, "3", _LEGACY, metavar="PROFILE")
HASHCAT_EXTENDED = Option("miner.hashcat.extended.options", kinds.anything, "", _LEGACY, metavar="OPTIONS")

_DOCKER_ONLY: tuple[Option[Any], ...] = (IMAGE, NETWORK_CLOSE, NETWORK_ALLOW, ALLOW_DOCKERFILE)

GROUPS: tuple[Group, ...] = (
    shared.GENERAL,
    shared.SUBTENSOR,
    shared.WALLET,
    shared.AXON,
    Group("leases", (SSH_PORT, RUNTIME, *_DOCKER_ONLY, SSH_HOST, CPU_DEVICES, REQUIRE_SIGNED)),
    Group("who may call", (NOT_ENOUGH_STAKE, NOT_UPDATED, UPDATED_THRESHOLD)),
    shared.LISTS,
    shared.LOGGING,
    shared.METRICS,
    Group("retired", (HASHCAT_PATH, HASHCAT_PROFILE, HASHCAT_EXTENDED)),
)


@dataclass(frozen=True)
class MinerOptions(shared.NeuronOptions):
    """Everything that a miner can be told on its command line."""

    ssh_port: int
    ssh_host: str
    runtime: RuntimeKind
    image: str
    network_close: bool
    network_allow: tuple[str, ...]
    allow_dockerfile: bool
    cpu_devices: int
    require_signed: bool
    whitelist_not_enough_stake: bool
    whitelist_not_updated: bool
    updated_threshold_percent: int
    hashcat_path: str
    hashcat_workload_profile: str
    hashcat_extended_options: str


def parse_miner(argv: Sequence[str], environ: Mapping[str, str]) -> MinerOptions:
    """Read a miner's command line (without the program's name) and variables.

    Raises:
        SystemExit: code 2 on a usage error, with one line on stderr; code 0 after ``--help``.
    """
    parser = OptionParser(
        description="Rent out this machine on the compute subnet.",
        usage="%(prog)s [options]",
        epilog=EXAMPLES,
    )
    values = read(parser, GROUPS, argv, environ)
    neuron = shared.neuron_options(parser, values, environ)
    subtensor, axon = neuron.subtensor, neuron.axon
    runtime = values[RUNTIME]
    if runtime is RuntimeKind.LOCAL and not subtensor.is_local:
        parser.error(
            "--miner.runtime local gives its tenants a shell of this user, so it needs a chain on this machine; "
            f"this one is {subtensor.endpoint}. Use --miner.runtime docker, or --subtensor.network local"
        )
    if values[CPU_DEVICES] and not subtensor.is_local:
        parser.error(
            f"--{CPU_DEVICES.name} {values[CPU_DEVICES]} is for a chain on this machine, and this one is "
            f"{subtensor.endpoint}: only a localnet's validators pay for cores"
        )
    if runtime is RuntimeKind.LOCAL:
        for option in _DOCKER_ONLY:
            if values.is_given(option):
                parser.error(f"--{option.name} {values[option]} goes with --miner.runtime docker")
    ssh_host = values[SSH_HOST]
    if ssh_host is None and axon.external_ip and kinds.is_loopback(axon.external_ip):
        ssh_host = axon.external_ip
    if ssh_host is None:
        ssh_host = "127.0.0.1" if runtime is RuntimeKind.LOCAL else ALL_ADDRESSES
    if runtime is RuntimeKind.LOCAL and not kinds.is_loopback(ssh_host):
        parser.error(f"--ssh.host {ssh_host} is not an address of the loopback, such as 127.0.0.2")
    return MinerOptions(
        **vars(neuron),
        ssh_port=values[SSH_PORT],
        ssh_host=ssh_host,
        runtime=runtime,
        image=values[IMAGE],
        network_close=values[NETWORK_CLOSE],
        network_allow=values[NETWORK_ALLOW],
        allow_dockerfile=values[ALLOW_DOCKERFILE],
        cpu_devices=values[CPU_DEVICES],
        require_signed=values[REQUIRE_SIGNED],
        whitelist_not_enough_stake=values[NOT_ENOUGH_STAKE],
        whitelist_not_updated=values[NOT_UPDATED],
        updated_threshold_percent=values[UPDATED_THRESHOLD],
        hashcat_path=values[HASHCAT_PATH],
        hashcat_workload_profile=values[HASHCAT_PROFILE],
        hashcat_extended_options=values[HASHCAT_EXTENDED],
    )
