"""Every option of a validator reaches the part that acts on it, whose own tests show what it does with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from unittest.mock import AsyncMock, MagicMock

import pytest
import yaml

from compute import __version_as_int__
from compute.base.options.shared import LoggingOptions, MetricsOptions
from compute.incentive.config import DEFAULT_CONFIG
from compute.localnet.newcomer import make_wallet
from compute.validator import program
from compute.validator.options import parse_validator
from tests.unit.parts import Parts

ALICE = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
NODE = "ws://127.0.0.1:7"

Run = Callable[..., Parts]


class Update:
    """Runs the service to its end; there is no new commit."""

    async def beside(self, service: Awaitable[None], **moments: object) -> None:
        await service

    def finish(self, code: int) -> int:
        return code


@pytest.fixture(scope="module")
def wallets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hotkeys of two wallets, and the options that name them."""
    path = str(tmp_path_factory.mktemp("wallets"))
    return {name: make_wallet(name, "key", path).hotkey.ss58_address for name in ("w", "v")} | {"path": path}


@pytest.fixture
def chain() -> AsyncMock:
    return AsyncMock()


@pytest.fixture
def run(wallets: dict[str, str], chain: AsyncMock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a validator with the given options, whose service ends at once; returns what its parts were given."""
    for name in ("WANDB_API_KEY", "DEALLOCATION_NOTIFY_URL", "STATUS_NOTIFY_URL"):
        monkeypatch.delenv(name, raising=False)
    parts = Parts(monkeypatch)
    parts.replace(program, "SubnetReader", "DendriteCaller", "ValidatorService", "VersionFile")
    parts.replace(program, "SelfUpdate", made=Update)
    parts.replace(program.metrics, "served")
    parts.replace(program.logs, "configure", made=MagicMock)
    monkeypatch.setattr(program, "run_neuron", lambda main: asyncio.run(main()))

    def start(*argv: str) -> Parts:
        own = ("--wallet.path", wallets["path"], "--wallet.name", "w", "--wallet.hotkey", "key")
        options = parse_validator([*own, "--database", str(tmp_path / "validator.db"), *argv], {})
        program.run(options, chain_type=parts.instead_of(program.SubtensorChain, lambda: chain))
        return parts

    return start


def test_netuid(run: Run) -> None:
    assert run("--netuid", "15")["SubtensorChain"]["netuid"] == 15
    assert run()["SubtensorChain"]["netuid"] == 27


@pytest.mark.parametrize(
    ("argv", "endpoint"),
    [
        (("--subtensor.network", NODE), NODE),
        (("--subtensor.chain_endpoint", NODE, "--subtensor.network", "finney"), NODE),
        (("--subtensor.network", "test", "--subtensor._mock", "no"), "wss://test.finney.opentensor.ai:443"),
    ],
)
def test_subtensor(run: Run, argv: tuple[str, ...], endpoint: str) -> None:
    parts = run(*argv)
    assert parts["SubtensorChain"]["endpoint"] == parts["SubnetReader"]["endpoint"] == endpoint


def test_wallet(run: Run, wallets: dict[str, str]) -> None:
    assert run()["ValidatorService"]["own_hotkey"] == wallets["w"]
    assert run("--wallet.name", "v")["ValidatorService"]["own_hotkey"] == wallets["v"]


def test_database(run: Run, tmp_path: Path) -> None:
    run("--database", str(tmp_path / "other.db"))
    assert (tmp_path / "other.db").stat().st_size > 0
    assert not (tmp_path / "validator.db").exists()


def test_config_file(run: Run, tmp_path: Path) -> None:
    document = yaml.safe_load(DEFAULT_CONFIG.read_text(encoding="utf-8"))
    document["gpu_performance"]["gpu_scores"]["NVIDIA L4"] = 3.5
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    config = run("--config.file", str(tmp_path / "config.yaml"))["ValidatorService"]["config"]
    assert config.scores["NVIDIA L4"] == 3.5


def test_version_file(run: Run) -> None:
    assert run("--version.file", "https://example.org/v.py")["VersionFile"]["source"] == "https://example.org/v.py"
    assert run()["VersionFile"]["source"] is None


def test_which_miners_are_asked(run: Run) -> None:
    policy = run(
        *("--validator.whitelist.unrecognized", "--validator.whitelist.updated.threshold", "30"),
        *("--whitelist.coldkeys", ALICE, "--no-blacklist.exploiters"),
    )["ValidatorService"]["settings"].policy
    assert (policy.allow_unrecognized, policy.updated_threshold_percent) == (True, 30)
    assert policy.lists.whitelist_coldkeys == {ALICE}


def test_rounds(run: Run) -> None:
    settings = run(
        *("--no-validator.perform.hardware.query", "--validator.specs.batch.size", "1", "--validator.rounds", "2"),
        *(
            "--validator.specs.interval",
            "3",
            "--validator.proof.interval",
            "4",
            "--validator.challenge.batch.size",
            "5",
        ),
    )["ValidatorService"]["settings"]
    assert (settings.perform_hardware_query, settings.rounds) == (False, 2)
    assert settings.specs_batch_size == 1
    assert (settings.specs_interval_blocks, settings.proof_interval_blocks) == (3, 4)


@pytest.mark.parametrize(
    ("argv", "ip", "port", "force"),
    [
        ((), program.NOWHERE, 8091, False),
        (("--axon.external_ip", "127.3.2.1", "--axon.port", "4001"), "127.3.2.1", 4001, False),
        (
            ("--axon.port", "4001", "--axon.external_port", "4002", "--axon.max_workers", "3"),
            program.NOWHERE,
            4002,
            False,
        ),
        (("--validator.force.update.prometheus", "--axon.ip", "127.0.0.1"), program.NOWHERE, 8091, True),
    ],
)
def test_what_the_chain_is_told(
    run: Run, chain: AsyncMock, argv: tuple[str, ...], ip: str, port: int, force: bool
) -> None:
    run(*argv)
    chain.announce_version.assert_awaited_once_with(__version_as_int__, ip, port, force=force)


def test_what_miners_are_told(run: Run) -> None:
    assert run("--axon.external_ip", "127.9.9.9")["DendriteCaller"]["external_ip"] == "127.9.9.9"
    assert run()["DendriteCaller"]["external_ip"] is None


def test_metrics(run: Run) -> None:
    parts = run("--metrics.ip", "127.0.0.4", "--metrics.port", "5")
    assert parts["served"]["options"] == MetricsOptions(5, "127.0.0.4")


def test_logging_and_auto_update(run: Run) -> None:
    parts = run("--logging.trace", "--no-auto_update")
    assert parts["configure"] == {"options": LoggingOptions(trace=True), "program": "validator"}
    assert parts["SelfUpdate"]["options"].auto_update is False
