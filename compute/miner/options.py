"""The miner's command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from compute.base.options import kinds, shared
from compute.base.options.option import OptionGroup, OptionParser, option

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


@dataclass(frozen=True)
class LeaseOptions(OptionGroup, title="leases"):
    """What is let, and how."""

    ssh_port: int = option("ssh.port", kinds.port, 4444, "Port where a leased machine answers SSH.", metavar="PORT")
    runtime: RuntimeKind = option(
        "miner.runtime",
        kinds.choice(RuntimeKind),
        RuntimeKind.DOCKER,
        "docker: each lease is a container. local: a shell of this user without isolation, for a localnet on this"
        " machine only.",
        metavar="{docker,local}",
    )
    image: str = option(
        "miner.image",
        kinds.text,
        "compute-machine",
        "With the docker runtime: the image of every lease; docs/miner.md says how it is made.",
        metavar="NAME",
    )
    network_close: bool = option(
        "miner.network.close",
        kinds.boolean,
        True,
        "With the docker runtime: keep leases from reaching this host, its private network and a cloud's metadata.",
    )
    network_allow: tuple[str, ...] = option(
        "miner.network.allow",
        kinds.ip_ranges,
        (),
        "With the docker runtime: private addresses that leases may reach all the same.",
        metavar="RANGE,RANGE,…",
    )
    allow_dockerfile: bool = option(
        "miner.allow.dockerfile",
        kinds.boolean,
        False,
        "With the docker runtime: run a renter's steps of a Dockerfile, inside the lease, before it is handed over.",
    )
    given_ssh_host: str | None = option(
        "ssh.host",
        kinds.ip_address,
        None,
        "Address of this machine where a leased machine answers SSH; with the local runtime, one of the loopback.",
        metavar="IP",
        default_text="--axon.external_ip if that is of the loopback, else all with docker and 127.0.0.1 with local",
    )
    cpu_devices: int = option(
        "miner.cpu.devices",
        kinds.integer(0, 64),
        0,
        "Offer this many CPU cores as devices, to a chain on this machine only.",
        metavar="N",
    )
    require_signed: bool = option(
        "miner.require.signed", kinds.boolean, False, "Refuse requests whose body the caller's hotkey has not signed."
    )


_DOCKER_ONLY = ("miner.image", "miner.network.close", "miner.network.allow", "miner.allow.dockerfile")


@dataclass(frozen=True)
class CallerOptions(OptionGroup, title="who may call"):
    """Whom the miner answers, besides what the lists say."""

    whitelist_not_enough_stake: bool = option(
        "miner.whitelist.not.enough.stake",
        kinds.boolean,
        False,
        "Answer callers with too little stake or without a validator permit too.",
    )
    whitelist_not_updated: bool = option(
        "miner.whitelist.not.updated", kinds.boolean, False, "Answer validators that run an outdated version too."
    )
    updated_threshold_percent: int = option(
        "miner.whitelist.updated.threshold",
        kinds.percent,
        60,
        "Percentage of validators that must have updated before outdated ones are refused.",
        metavar="PERCENT",
    )


_LEGACY = "Accepted; used by the legacy benchmark only."


@dataclass(frozen=True)
class RetiredOptions(OptionGroup, title="retired"):
    """What a miner still takes and no longer uses."""

    hashcat_path: str = option("miner.hashcat.path", kinds.text, "hashcat", _LEGACY, metavar="PATH")
    hashcat_workload_profile: str = option(
        "miner.hashcat.workload.profile", kinds.text, "3", _LEGACY, metavar="PROFILE"
    )
    hashcat_extended_options: str = option(
        "miner.hashcat.extended.options", kinds.anything, "", _LEGACY, metavar="OPTIONS"
    )


@dataclass(frozen=True)
class MinerOptions(LeaseOptions, CallerOptions, RetiredOptions, shared.NeuronOptions):
    """Everything that a miner can be told on its command line."""

    axon: shared.AxonOptions = field(default_factory=shared.AxonOptions)

    @property
    def ssh_host(self) -> str:
        """Where leases answer SSH: where the operator says, or on the loopback if the axon is announced there."""
        if self.given_ssh_host is not None:
            return self.given_ssh_host
        if self.axon.external_ip and kinds.is_loopback(self.axon.external_ip):
            return self.axon.external_ip
        return "127.0.0.1" if self.runtime is RuntimeKind.LOCAL else ALL_ADDRESSES


GROUPS: tuple[type[OptionGroup], ...] = (
    shared.NeuronOptions,
    shared.SubtensorOptions,
    shared.WalletOptions,
    shared.AxonOptions,
    LeaseOptions,
    CallerOptions,
    shared.ListOptions,
    shared.LoggingOptions,
    shared.MetricsOptions,
    RetiredOptions,
)
"""What a miner can be told, in the order of its help."""


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
    values = shared.neuron_values(parser, GROUPS, argv, environ)
    options = MinerOptions.of(values)
    subtensor = options.subtensor
    if options.runtime is RuntimeKind.LOCAL and not subtensor.is_local:
        parser.error(
            "--miner.runtime local gives its tenants a shell of this user, so it needs a chain on this machine; "
            f"this one is {subtensor.endpoint}. Use --miner.runtime docker, or --subtensor.network local"
        )
    if options.cpu_devices and not subtensor.is_local:
        parser.error(
            f"--miner.cpu.devices {options.cpu_devices} is for a chain on this machine, and this one is "
            f"{subtensor.endpoint}: only a localnet's validators pay for cores"
        )
    if options.runtime is RuntimeKind.LOCAL:
        for name in filter(values.is_given, _DOCKER_ONLY):
            parser.error(f"--{name} {values[name]} goes with --miner.runtime docker")
        if not kinds.is_loopback(options.ssh_host):
            parser.error(f"--ssh.host {options.ssh_host} is not an address of the loopback, such as 127.0.0.2")
    return options
