"""Options that the miner, the validator and ``register.py`` share.

The groups of the SDK (subtensor, wallet, logging, axon) are declared again rather than asked of it, because importing
``bittensor`` takes a second and ``--help`` should not; a test holds them equal to the installed SDK's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from compute import FINNEY_NETUID
from compute.base.options import kinds
from compute.base.options.option import OptionGroup, OptionParser, Values, option, read

if TYPE_CHECKING:
    from typing_extensions import Self

_ENDPOINTS = {
    "finney": "wss://entrypoint-finney.opentensor.ai:443",
    "test": "wss://test.finney.opentensor.ai:443",
    "archive": "wss://archive.chain.opentensor.ai:443",
    "local": "ws://127.0.0.1:9944",
    "latent-lite": "wss://lite.sub.latent.to:443",
}


def _network(value: str) -> str:
    if value in _ENDPOINTS or _is_endpoint(value):
        return value
    raise ValueError(f"{value!r} is not one of {', '.join(_ENDPOINTS)}, nor an address such as ws://127.0.0.1:9944")


def _endpoint(value: str) -> str:
    if _is_endpoint(value):
        return value
    raise ValueError(f"{value!r} is not an address such as ws://127.0.0.1:9944")


def _is_endpoint(value: str) -> bool:
    try:
        parts = urlsplit(_with_scheme(value))
        # Asking for the port raises where it is not one.
        return parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_local(endpoint: str) -> bool:
    return kinds.is_loopback(urlsplit(endpoint).hostname or "")


def _with_scheme(value: str) -> str:
    """The SDK takes ``host:port`` for ``ws://host:port``."""
    return f"ws://{value}" if re.fullmatch(r"[A-Za-z0-9.-]+:[0-9]+", value) else value


def _version_file(value: str) -> str:
    parts = urlsplit(kinds.text(value))
    if "://" not in value:
        return value
    if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
        return value
    raise ValueError(f"{value!r} is neither a path nor an address that begins with https:// or http://")


def _no_mock(value: str) -> bool:
    if kinds.boolean(value):
        raise ValueError("there is no mocked chain here; run one of your own: python -m compute.localnet node")
    return False


# --- the SDK's groups ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SubtensorOptions(OptionGroup, title="chain"):
    """The chain: a name for people, and the address to hand to ``bittensor.Subtensor(network=…)``."""

    network: str = option(
        "subtensor.network",
        _network,
        "finney",
        "Chain to use: finney, test, archive, local, latent-lite, or an address (ws://… or wss://…).",
        metavar="NETWORK",
        variable="BT_SUBTENSOR_NETWORK",
    )
    endpoint: str = option(
        "subtensor.chain_endpoint",
        _endpoint,
        _ENDPOINTS["finney"],
        "Address of a chain node. Given here, it wins over --subtensor.network.",
        metavar="ADDRESS",
        variable="BT_SUBTENSOR_CHAIN_ENDPOINT",
    )
    mock: bool = option(
        "subtensor._mock",
        _no_mock,
        False,
        "An option of the SDK that only takes false here: there is no mocked chain.",
    )

    @classmethod
    def of(cls, values: Values) -> Self:
        """Resolve the chain: what the command line says wins over variables, and an endpoint over a name."""
        network, endpoint = str(values["subtensor.network"]), str(values["subtensor.chain_endpoint"])
        by_variable = values.is_variable("subtensor.chain_endpoint") and (
            not values.is_given("subtensor.network") or network == "local"
        )
        if not values.is_given("subtensor.chain_endpoint") and not by_variable:
            endpoint = _ENDPOINTS.get(network, network)
        endpoint = _with_scheme(endpoint)
        names = {address: name for name, address in _ENDPOINTS.items()}
        return cls(network="local" if _is_local(endpoint) else names.get(endpoint, endpoint), endpoint=endpoint)

    @property
    def is_local(self) -> bool:
        """Whether the node is on this machine (a loopback address; names are not resolved)."""
        return _is_local(self.endpoint)


@dataclass(frozen=True)
class WalletOptions(OptionGroup, title="wallet"):
    """Which keys to use."""

    name: str = option(
        "wallet.name", kinds.text, "default", "Name of the wallet (coldkey).", metavar="NAME", variable="BT_WALLET_NAME"
    )
    hotkey: str = option(
        "wallet.hotkey", kinds.text, "default", "Name of its hotkey.", metavar="NAME", variable="BT_WALLET_HOTKEY"
    )
    path: str = option(
        "wallet.path",
        kinds.text,
        "~/.bittensor/wallets/",
        "Directory of the wallets.",
        metavar="PATH",
        variable="BT_WALLET_PATH",
    )


@dataclass(frozen=True)
class LoggingOptions(OptionGroup, title="log (standard error)"):
    """What to log, and how; ``compute.base.logs`` acts on it."""

    info: bool = option(
        "logging.info",
        kinds.boolean,
        False,
        "Log the SDK's information lines too; this program's own are always there.",
        variable="BT_LOGGING_INFO",
    )
    debug: bool = option(
        "logging.debug", kinds.boolean, False, "Log debugging information too.", variable="BT_LOGGING_DEBUG"
    )
    trace: bool = option("logging.trace", kinds.boolean, False, "Log everything.", variable="BT_LOGGING_TRACE")
    json: bool = option("logging.json", kinds.boolean, False, "One JSON object per line instead of text.")
    record_log: bool = option(
        "logging.record_log",
        kinds.boolean,
        False,
        "Write the log to a file in --logging.logging_dir too.",
        variable="BT_LOGGING_RECORD_LOG",
    )
    logging_dir: str = option(
        "logging.logging_dir",
        kinds.text,
        str(Path.home() / ".bittensor" / "miners"),
        "Directory of the log file.",
        metavar="PATH",
        variable="BT_LOGGING_LOGGING_DIR",
        default_text="~/.bittensor/miners",
    )
    enable_third_party_loggers: bool = option(
        "logging.enable_third_party_loggers",
        kinds.boolean,
        False,
        "Log what the libraries say, at the same level.",
        variable="BT_LOGGING_ENABLE_THIRD_PARTY_LOGGERS",
    )


@dataclass(frozen=True)
class AxonOptions(OptionGroup, title="axon"):
    """Where the axon listens, and what the chain says about it. ``external_ip`` None: to be looked up."""

    port: int = option(
        "axon.port", kinds.port, 8091, "Port that the axon listens on.", metavar="PORT", variable="BT_AXON_PORT"
    )
    ip: str = option(
        "axon.ip",
        kinds.text,
        "[::]",
        "Address that the axon listens on; [::] is all of them.",
        metavar="IP",
        variable="BT_AXON_IP",
    )
    external_port: int | None = option(
        "axon.external_port",
        kinds.port,
        None,
        "Port that the chain tells others.",
        metavar="PORT",
        variable="BT_AXON_EXTERNAL_PORT",
        default_text="--axon.port",
    )
    external_ip: str | None = option(
        "axon.external_ip",
        kinds.ip_address,
        None,
        "Address that the chain tells others.",
        metavar="IP",
        variable="BT_AXON_EXTERNAL_IP",
        default_text="looked up on the internet",
    )
    max_workers: int = option(
        "axon.max_workers",
        kinds.integer(1, 4096),
        10,
        "Threads that answer requests.",
        metavar="N",
        variable="BT_AXON_MAX_WORKERS",
    )


# --- our own ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MetricsOptions(OptionGroup, title="metrics"):
    """Where metrics are served; ``port`` None: nowhere."""

    port: int | None = option(
        "metrics.port",
        kinds.port,
        None,
        "Serve metrics for Prometheus on this port.",
        metavar="PORT",
        default_text="off",
    )
    ip: str = option(
        "metrics.ip",
        kinds.ip_address,
        "127.0.0.1",
        "Address that the metrics are served on. They are for everybody who can reach it.",
        metavar="IP",
    )


_KEYS = "KEY,KEY,…"


@dataclass(frozen=True)
class ListOptions(OptionGroup, title="black and white lists (ss58 addresses; black wins over white)"):
    """Black and white lists as given: ss58 addresses."""

    blacklist_exploiters: bool = option(
        "blacklist.exploiters", kinds.boolean, True, "Blacklist the hotkeys on the built-in list of exploiters."
    )
    blacklist_hotkeys: tuple[str, ...] = option(
        "blacklist.hotkeys", kinds.keys, (), "Hotkeys to refuse.", metavar=_KEYS
    )
    blacklist_coldkeys: tuple[str, ...] = option(
        "blacklist.coldkeys", kinds.keys, (), "Coldkeys to refuse.", metavar=_KEYS
    )
    whitelist_hotkeys: tuple[str, ...] = option(
        "whitelist.hotkeys", kinds.keys, (), "Hotkeys to accept.", metavar=_KEYS
    )
    whitelist_coldkeys: tuple[str, ...] = option(
        "whitelist.coldkeys", kinds.keys, (), "Coldkeys to accept.", metavar=_KEYS
    )


@dataclass(frozen=True)
class NeuronOptions(OptionGroup, title="general"):
    """What both neurons can be told."""

    netuid: int = option(
        "netuid", kinds.integer(0, 65535), FINNEY_NETUID, "Subnet: 27 on finney, 15 on test.", metavar="N"
    )
    config_file: Path | None = option(
        "config.file",
        kinds.path,
        None,
        "What each GPU must show and earns, and how validators prove it.",
        metavar="PATH",
        default_text="the repository's config.yaml",
    )
    database: Path = option(
        "database", kinds.path, Path("database.db"), "SQLite database.", metavar="PATH", variable="SQLITE_DB_PATH"
    )
    status: bool = option("status", kinds.boolean, False, "Print what the database knows, and end. Needs no chain.")
    json: bool = option("json", kinds.boolean, False, "Answer --status and the like in JSON instead of a table.")
    version_file: str | None = option(
        "version.file",
        _version_file,
        None,
        "Where the network's minimal versions are read from, every ten minutes: a path, or an https:// address.",
        metavar="PATH|URL",
        default_text="those of this release",
    )
    auto_update: bool = option(
        "auto_update",
        kinds.boolean,
        True,
        "Follow the branch that is checked out: check its newest commit, fast-forward to it, restart; docs/update.md"
        " says how.",
    )
    subtensor: SubtensorOptions = field(default_factory=SubtensorOptions)
    wallet: WalletOptions = field(default_factory=WalletOptions)
    lists: ListOptions = field(default_factory=ListOptions)
    logging: LoggingOptions = field(default_factory=LoggingOptions)
    metrics: MetricsOptions = field(default_factory=MetricsOptions)


def neuron_values(
    parser: OptionParser,
    groups: Sequence[type[OptionGroup]],
    argv: Sequence[str],
    environ: Mapping[str, str],
    questions: Sequence[str] = ("status",),
) -> Values:
    """Read a neuron's command line. Ends the program through ``parser`` where its questions make no sense together.

    ``questions`` are the options that ask something in place of running the neuron.
    """
    values = read(parser, groups, argv, environ)
    asked = [f"--{question}" for question in questions if values[question]]
    if len(asked) > 1:
        parser.error(f"{' and '.join(asked)} are two questions: ask one at a time")
    if values["json"] and not asked:
        parser.error(f"--json goes with {' or '.join(f'--{question}' for question in questions)}")
    return values
