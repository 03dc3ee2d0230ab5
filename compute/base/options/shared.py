"""Option groups that the miner, the validator and ``register.py`` share, and the typed objects that they become.

The groups of the SDK (subtensor, wallet, logging, axon) are declared again rather than asked of it, because importing
``bittensor`` takes a second and ``--help`` should not; a test holds them equal to the installed SDK's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from compute import FINNEY_NETUID
from compute.base.options import kinds
from compute.base.options.option import Group, Option, OptionParser, Values

_ENDPOINTS = {
    "finney": "wss://entrypoint-finney.opentensor.ai:443",
    "test": "wss://test.finney.opentensor.ai:443",
    "archive": "wss://archive.chain.opentensor.ai:443",
    "local": "ws://127.0.0.1:9944",
    "latent-lite": "wss://lite.sub.latent.to:443",
}
_ENDPOINT_VARIABLE = "BT_SUBTENSOR_CHAIN_ENDPOINT"


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

NETWORK = Option(
    "subtensor.network",
    _network,
    "finney",
    "Chain to use: finney, test, archive, local, latent-lite, or an address (ws://… or wss://…).",
    metavar="NETWORK",
    variable="BT_SUBTENSOR_NETWORK",
)
CHAIN_ENDPOINT = Option(
    "subtensor.chain_endpoint",
    _endpoint,
    _ENDPOINTS["finney"],
    "Address of a chain node. Given here, it wins over --subtensor.network.",
    metavar="ADDRESS",
    variable=_ENDPOINT_VARIABLE,
)
MOCK = Option(
    "subtensor._mock",
    _no_mock,
    False,
    "An option of the SDK that only takes false here: there is no mocked chain.",
)
SUBTENSOR = Group("chain", (NETWORK, CHAIN_ENDPOINT, MOCK))

WALLET_NAME = Option(
    "wallet.name", kinds.text, "default", "Name of the wallet (coldkey).", metavar="NAME", variable="BT_WALLET_NAME"
)
WALLET_HOTKEY = Option(
    "wallet.hotkey", kinds.text, "default", "Name of its hotkey.", metavar="NAME", variable="BT_WALLET_HOTKEY"
)
WALLET_PATH = Option(
    "wallet.path",
    kinds.text,
    "~/.bittensor/wallets/",
    "Directory of the wallets.",
    metavar="PATH",
    variable="BT_WALLET_PATH",
)
WALLET = Group("wallet", (WALLET_NAME, WALLET_HOTKEY, WALLET_PATH))

DEBUG = Option("logging.debug", kinds.boolean, False, "Log debugging information too.", variable="BT_LOGGING_DEBUG")
TRACE = Option("logging.trace", kinds.boolean, False, "Log everything.", variable="BT_LOGGING_TRACE")
INFO = Option(
    "logging.info",
    kinds.boolean,
    False,
    "Log the SDK's information lines too; this program's own are always there.",
    variable="BT_LOGGING_INFO",
)
RECORD_LOG = Option(
    "logging.record_log",
    kinds.boolean,
    False,
    "Write the log to a file in --logging.logging_dir too.",
    variable="BT_LOGGING_RECORD_LOG",
)
LOGGING_DIR = Option(
    "logging.logging_dir",
    kinds.text,
    str(Path.home() / ".bittensor" / "miners"),
    "Directory of the log file.",
    metavar="PATH",
    variable="BT_LOGGING_LOGGING_DIR",
    default_text="~/.bittensor/miners",
)
THIRD_PARTY = Option(
    "logging.enable_third_party_loggers",
    kinds.boolean,
    False,
    "Log what the libraries say, at the same level.",
    variable="BT_LOGGING_ENABLE_THIRD_PARTY_LOGGERS",
)
LOGGING_JSON = Option("logging.json", kinds.boolean, False, "One JSON object per line instead of text.")
LOGGING = Group("log (standard error)", (INFO, DEBUG, TRACE, LOGGING_JSON, RECORD_LOG, LOGGING_DIR, THIRD_PARTY))

AXON_PORT = Option(
    "axon.port", kinds.port, 8091, "Port that the axon listens on.", metavar="PORT", variable="BT_AXON_PORT"
)
AXON_IP = Option(
    "axon.ip",
    kinds.text,
    "[::]",
    "Address that the axon listens on; [::] is all of them.",
    metavar="IP",
    variable="BT_AXON_IP",
)
EXTERNAL_PORT: Option[int | None] = Option(
    "axon.external_port",
    kinds.port,
    None,
    "Port that the chain tells others.",
    metavar="PORT",
    variable="BT_AXON_EXTERNAL_PORT",
    default_text="--axon.port",
)
EXTERNAL_IP: Option[str | None] = Option(
    "axon.external_ip",
    kinds.ip_address,
    None,
    "Address that the chain tells others.",
    metavar="IP",
    variable="BT_AXON_EXTERNAL_IP",
    default_text="looked up on the internet",
)
MAX_WORKERS = Option(
    "axon.max_workers",
    kinds.integer(1, 4096),
    10,
    "Threads that answer requests.",
    metavar="N",
    variable="BT_AXON_MAX_WORKERS",
)
AXON = Group("axon", (AXON_PORT, AXON_IP, EXTERNAL_PORT, EXTERNAL_IP, MAX_WORKERS))

_UNUSED = "Accepted; a validator opens no axon."
_PORT = "Port in the chain's record of this validator's version; nothing listens there."
VALIDATOR_AXON = Group(
    "axon (a validator opens none)",
    (
        replace(
            EXTERNAL_IP,
            help="Address that miners are told in the header of each request, and that the chain's record has.",
            default_text="none",
        ),
        replace(EXTERNAL_PORT, help=_PORT),
        replace(AXON_PORT, help=_PORT.replace("version;", "version without --axon.external_port;")),
        *(replace(option, help=_UNUSED) for option in (AXON_IP, MAX_WORKERS)),
    ),
)

# --- our own ------------------------------------------------------------------------------------------------------

NETUID = Option(
    "netuid",
    kinds.integer(0, 65535),
    FINNEY_NETUID,
    "Subnet: 27 on finney, 15 on test.",
    metavar="N",
)
CONFIG_FILE: Option[Path | None] = Option(
    "config.file",
    kinds.path,
    None,
    "What each GPU must show and earns, and how validators prove it.",
    metavar="PATH",
    default_text="the repository's config.yaml",
)
DATABASE = Option(
    "database", kinds.path, Path("database.db"), "SQLite database.", metavar="PATH", variable="SQLITE_DB_PATH"
)
STATUS = Option("status", kinds.boolean, False, "Print what the database knows, and end. Needs no chain.")
JSON = Option("json", kinds.boolean, False, "Answer --status and the like in JSON instead of a table.")
AUTO_UPDATE = Option(
    "auto_update",
    kinds.boolean,
    True,
    "Follow the branch or the tag that is checked out: fast-forward to it, check, restart; docs/update.md says how.",
)
VERSION_FILE: Option[str | None] = Option(
    "version.file",
    _version_file,
    None,
    "Where the network's minimal versions are read from, every ten minutes: a path, or an https:// address.",
    metavar="PATH|URL",
    default_text="those of this release",
)
GENERAL = Group("general", (NETUID, CONFIG_FILE, DATABASE, STATUS, JSON, VERSION_FILE, AUTO_UPDATE))

METRICS_PORT: Option[int | None] = Option(
    "metrics.port", kinds.port, None, "Serve metrics for Prometheus on this port.", metavar="PORT", default_text="off"
)
METRICS_IP = Option(
    "metrics.ip",
    kinds.ip_address,
    "127.0.0.1",
    "Address that the metrics are served on. They are for everybody who can reach it.",
    metavar="IP",
)
METRICS = Group("metrics", (METRICS_PORT, METRICS_IP))

EXPLOITERS = Option(
    "blacklist.exploiters", kinds.boolean, True, "Blacklist the hotkeys on the built-in list of exploiters."
)
_KEYS = "KEY,KEY,…"
_NO_KEYS: tuple[str, ...] = ()
BLACKLIST_HOTKEYS = Option("blacklist.hotkeys", kinds.keys, _NO_KEYS, "Hotkeys to refuse.", metavar=_KEYS)
BLACKLIST_COLDKEYS = Option("blacklist.coldkeys", kinds.keys, _NO_KEYS, "Coldkeys to refuse.", metavar=_KEYS)
WHITELIST_HOTKEYS = Option("whitelist.hotkeys", kinds.keys, _NO_KEYS, "Hotkeys to accept.", metavar=_KEYS)
WHITELIST_COLDKEYS = Option("whitelist.coldkeys", kinds.keys, _NO_KEYS, "Coldkeys to accept.", metavar=_KEYS)
LISTS = Group(
    "black and white lists (ss58 addresses; black wins over white)",
    (EXPLOITERS, BLACKLIST_HOTKEYS, BLACKLIST_COLDKEYS, WHITELIST_HOTKEYS, WHITELIST_COLDKEYS),
)


@dataclass(frozen=True)
class SubtensorOptions:
    """The chain: a name for people, and the address to hand to ``bittensor.Subtensor(network=…)``."""

    network: str
    endpoint: str

    @property
    def is_local(self) -> bool:
        """Whether the node is on this machine (a loopback address; names are not resolved)."""
        return kinds.is_loopback(urlsplit(self.endpoint).hostname or "")


@dataclass(frozen=True)
class WalletOptions:
    """Which keys to use."""

    name: str
    hotkey: str
    path: str


@dataclass(frozen=True)
class LoggingOptions:
    """What to log, and how; ``compute.base.logs`` acts on it."""

    info: bool = False
    debug: bool = False
    trace: bool = False
    json: bool = False
    record_log: bool = False
    logging_dir: str = ""
    enable_third_party_loggers: bool = False


@dataclass(frozen=True)
class AxonOptions:
    """Where the axon listens, and what the chain says about it. ``external_ip`` None: to be looked up."""

    port: int
    ip: str
    external_port: int | None
    external_ip: str | None
    max_workers: int


@dataclass(frozen=True)
class MetricsOptions:
    """Where metrics are served; ``port`` None: nowhere."""

    port: int | None = None
    ip: str = "127.0.0.1"


@dataclass(frozen=True)
class ListOptions:
    """Black and white lists as given: ss58 addresses."""

    blacklist_exploiters: bool = True
    blacklist_hotkeys: tuple[str, ...] = ()
    blacklist_coldkeys: tuple[str, ...] = ()
    whitelist_hotkeys: tuple[str, ...] = ()
    whitelist_coldkeys: tuple[str, ...] = ()


@dataclass(frozen=True)
class NeuronOptions:
    """What both neurons can be told."""

    netuid: int
    subtensor: SubtensorOptions
    wallet: WalletOptions
    logging: LoggingOptions
    axon: AxonOptions
    lists: ListOptions
    metrics: MetricsOptions
    config_file: Path | None
    database: Path
    status: bool
    json: bool
    version_file: str | None
    auto_update: bool


def neuron_options(
    parser: OptionParser,
    values: Values,
    environ: Mapping[str, str],
    questions: Sequence[Option[Any]] = (STATUS,),
) -> NeuronOptions:
    """What both neurons were told. Ends the program through ``parser`` where it makes no sense together.

    ``questions`` are the options that ask something in place of running the neuron.
    """
    asked = [f"--{question.name}" for question in questions if values[question]]
    if len(asked) > 1:
        parser.error(f"{' and '.join(asked)} are two questions: ask one at a time")
    if values[JSON] and not asked:
        parser.error(f"--json goes with {' or '.join(f'--{question.name}' for question in questions)}")
    return NeuronOptions(
        netuid=values[NETUID],
        subtensor=subtensor_options(values, environ),
        wallet=wallet_options(values),
        logging=logging_options(values),
        axon=axon_options(values),
        lists=list_options(values),
        metrics=MetricsOptions(values[METRICS_PORT], values[METRICS_IP]),
        config_file=values[CONFIG_FILE],
        database=values[DATABASE],
        status=values[STATUS],
        json=values[JSON],
        version_file=values[VERSION_FILE],
        auto_update=values[AUTO_UPDATE],
    )


def subtensor_options(values: Values, environ: Mapping[str, str]) -> SubtensorOptions:
    """Resolve the chain: what the command line says wins over variables, and an endpoint over a name."""
    by_variable = bool(environ.get(_ENDPOINT_VARIABLE)) and (not values.is_given(NETWORK) or values[NETWORK] == "local")
    if values.is_given(CHAIN_ENDPOINT) or by_variable:
        chosen = values[CHAIN_ENDPOINT]
    else:
        chosen = _ENDPOINTS.get(values[NETWORK], values[NETWORK])
    endpoint = _with_scheme(chosen)
    names = {address: name for name, address in _ENDPOINTS.items()}
    options = SubtensorOptions(names.get(endpoint, endpoint), endpoint)
    return SubtensorOptions("local", endpoint) if options.is_local else options


def wallet_options(values: Values) -> WalletOptions:
    """The wallet group, typed."""
    return WalletOptions(values[WALLET_NAME], values[WALLET_HOTKEY], values[WALLET_PATH])


def logging_options(values: Values) -> LoggingOptions:
    """The logging group, typed."""
    return LoggingOptions(
        info=values[INFO],
        debug=values[DEBUG],
        trace=values[TRACE],
        json=values[LOGGING_JSON],
        record_log=values[RECORD_LOG],
        logging_dir=values[LOGGING_DIR],
        enable_third_party_loggers=values[THIRD_PARTY],
    )


def axon_options(values: Values) -> AxonOptions:
    """The axon group, typed."""
    return AxonOptions(
        values[AXON_PORT], values[AXON_IP], values[EXTERNAL_PORT], values[EXTERNAL_IP], values[MAX_WORKERS]
    )


def list_options(values: Values) -> ListOptions:
    """The black and white lists, typed."""
    return ListOptions(
        blacklist_exploiters=values[EXPLOITERS],
        blacklist_hotkeys=values[BLACKLIST_HOTKEYS],
        blacklist_coldkeys=values[BLACKLIST_COLDKEYS],
        whitelist_hotkeys=values[WHITELIST_HOTKEYS],
        whitelist_coldkeys=values[WHITELIST_COLDKEYS],
    )
