"""Every option of a miner reaches the part that acts on it, whose own tests show what it does with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest
import yaml

from compute.base.options.shared import LoggingOptions, MetricsOptions
from compute.incentive.config import DEFAULT_CONFIG
from compute.localnet.newcomer import make_wallet
from compute.miner import program
from compute.miner.options import MinerOptions, parse_miner
from compute.miner.runtimes.docker_options import DockerSettings
from compute.miner.runtimes.local import LocalRuntime
from compute.proof.models import CPU_MODEL
from tests.unit.parts import Parts

ALICE = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
NODE = "ws://127.0.0.1:7"
LOCAL = ("--subtensor.chain_endpoint", NODE, "--miner.runtime", "local")

Serve = Callable[..., Parts]


@pytest.fixture(scope="module")
def wallets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hotkeys of two wallets, and the options that name them."""
    path = str(tmp_path_factory.mktemp("wallets"))
    return {name: make_wallet(name, "key", path).hotkey.ss58_address for name in ("w", "v")} | {"path": path}


@pytest.fixture
def told(wallets: dict[str, str], tmp_path: Path) -> Callable[..., MinerOptions]:
    """The options of a miner with a wallet and a database of its own."""

    def parse(*argv: str) -> MinerOptions:
        own = ("--wallet.path", wallets["path"], "--wallet.name", "w", "--wallet.hotkey", "key")
        return parse_miner([*own, "--database", str(tmp_path / "miner.db"), *argv], {})

    return parse


@pytest.fixture
def serve(told: Callable[..., MinerOptions], monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Starts a miner with the given options, whose service ends at once; returns what its parts were given."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    parts = Parts(monkeypatch)
    parts.replace(program, "SubtensorChain", "AxonServer", "LeaseManager", "AllocateService", "MinerService")
    parts.replace(program, "MinerGate", "VersionFile")
    parts.replace(program.metrics, "served")

    def start(*argv: str) -> Parts:
        options = told(*argv)
        asyncio.run(program.serve(options, program.hardware_of(options), AsyncMock()))
        return parts

    return start


def test_netuid(serve: Serve) -> None:
    assert serve("--netuid", "15")["SubtensorChain"]["netuid"] == 15
    assert serve()["SubtensorChain"]["netuid"] == 27


@pytest.mark.parametrize(
    ("argv", "endpoint"),
    [
        (("--subtensor.network", NODE), NODE),
        (("--subtensor.chain_endpoint", NODE, "--subtensor.network", "finney"), NODE),
        (("--subtensor.network", "test", "--subtensor._mock", "false"), "wss://test.finney.opentensor.ai:443"),
    ],
)
def test_subtensor(serve: Serve, argv: tuple[str, ...], endpoint: str) -> None:
    assert serve(*argv)["SubtensorChain"]["endpoint"] == endpoint


def test_wallet(serve: Serve, wallets: dict[str, str]) -> None:
    assert serve()["MinerService"]["own_hotkey"] == wallets["w"]
    assert serve("--wallet.name", "v")["MinerService"]["own_hotkey"] == wallets["v"]


def test_database(serve: Serve, tmp_path: Path) -> None:
    serve("--database", str(tmp_path / "other.db"))
    assert (tmp_path / "other.db").stat().st_size > 0
    assert not (tmp_path / "miner.db").exists()


def test_config_file_and_cpu_devices(serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    document = yaml.safe_load(DEFAULT_CONFIG.read_text(encoding="utf-8"))
    for table, value in (("GPU_TFLOPS_FP16", 0.001), ("GPU_VRAM_GB", 30.0), ("gpu_scores", 2.0)):
        document["gpu_performance"][table][CPU_MODEL] = value
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    caplog.set_level("INFO", "compute")
    serve(*LOCAL, "--miner.cpu.devices", "2", "--config.file", str(tmp_path / "config.yaml"))
    (said,) = [vars(record) for record in caplog.records if "what this machine scores" in record.getMessage()]
    assert (said["gpu"], said["count"], said["free"]) == (CPU_MODEL, 2, 2 * 2.0 * 50 / 32)


def test_version_file(serve: Serve) -> None:
    parts = serve("--version.file", "https://example.org/v.py")
    assert parts["VersionFile"]["source"] == "https://example.org/v.py"
    assert serve()["VersionFile"]["source"] is None


def test_axon(serve: Serve) -> None:
    parts = serve(
        *("--axon.ip", "127.0.0.2", "--axon.port", "1", "--axon.external_ip", "127.0.0.3"),
        *("--axon.external_port", "2", "--axon.max_workers", "3"),
    )
    axon = {name: value for name, value in parts["AxonServer"].items() if name not in ("wallet", "gate")}
    assert axon == {"ip": "127.0.0.2", "port": 1, "external_ip": "127.0.0.3", "external_port": 2, "max_workers": 3}


def test_ssh_port(serve: Serve) -> None:
    assert serve("--ssh.port", "4445")["LeaseManager"]["ssh_port"] == 4445


def test_require_signed(serve: Serve) -> None:
    assert serve("--miner.require.signed")["MinerService"]["require_signed"] is True
    assert serve()["MinerService"]["require_signed"] is False


def test_allow_dockerfile(serve: Serve) -> None:
    assert serve("--miner.allow.dockerfile")["AllocateService"]["allow_dockerfile"] is True
    assert serve()["AllocateService"]["allow_dockerfile"] is False


def test_who_may_call(serve: Serve) -> None:
    policy = serve(
        *("--no-blacklist.exploiters", "--blacklist.hotkeys", ALICE, "--miner.whitelist.not.enough.stake"),
        *("--miner.whitelist.updated.threshold", "30"),
    )["MinerGate"]["policy"]
    assert policy.lists.blacklist_hotkeys == {ALICE}
    assert (policy.allow_not_enough_stake, policy.allow_not_updated) == (True, False)
    assert policy.updated_threshold_percent == 30


def test_metrics(serve: Serve) -> None:
    parts = serve("--metrics.ip", "127.0.0.4", "--metrics.port", "5")
    assert parts["served"]["options"] == MetricsOptions(5, "127.0.0.4")


def test_logging_and_auto_update(told: Callable[..., MinerOptions], monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts(monkeypatch)
    parts.replace(program, "SelfUpdate", "runtime_of", made=MagicMock)
    parts.replace(program.logs, "configure", made=MagicMock)
    monkeypatch.setattr(program, "serve", AsyncMock())
    monkeypatch.setattr(program, "run_neuron", lambda main: asyncio.run(main()))
    program.run(told("--logging.debug", "--no-auto_update"))
    assert parts["configure"] == {"options": LoggingOptions(debug=True), "program": "miner"}
    assert parts["SelfUpdate"]["options"].auto_update is False


@pytest.fixture
def docker_settings(
    told: Callable[..., MinerOptions], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., DockerSettings]:
    def settings(*argv: str) -> DockerSettings:
        seen: list[DockerSettings] = []

        def runtime(settings: DockerSettings, engine: Any) -> SimpleNamespace:
            seen.append(settings)
            return SimpleNamespace(check=lambda: None)

        monkeypatch.setattr(program, "DockerRuntime", runtime)
        program.runtime_of(told(*argv))
        return seen[0]

    return settings


def test_image(docker_settings: Callable[..., DockerSettings]) -> None:
    assert docker_settings("--miner.image", "mine:7").image == "mine:7"
    assert docker_settings().image == "compute-machine"


def test_what_leases_may_reach(docker_settings: Callable[..., DockerSettings]) -> None:
    settings = docker_settings("--miner.network.allow", "10.1.0.0/16")
    assert (settings.close_network, settings.allowed_ranges) == (True, ("10.1.0.0/16",))
    assert docker_settings("--no-miner.network.close").close_network is False


def test_ssh_host(docker_settings: Callable[..., DockerSettings], told: Callable[..., MinerOptions]) -> None:
    assert docker_settings("--ssh.host", "203.0.113.7").bind_address == "203.0.113.7"
    runtime = program.runtime_of(told(*LOCAL, "--ssh.host", "127.0.0.5"))
    assert isinstance(runtime, LocalRuntime)
    assert runtime._bind_address == "127.0.0.5"
