from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from compute.base.options import shared as groups
from compute.base.options.option import OptionGroup, OptionParser, add_groups, options_of, resolve
from compute.cli.parser import GROUPS as RENTER
from compute.cli.parser import RenterOptions
from compute.miner.options import GROUPS as MINER
from compute.miner.options import MinerOptions, RuntimeKind, parse_miner
from compute.validator.options import GROUPS as VALIDATOR
from compute.validator.options import ValidatorOptions, parse_validator
from tests.waiting import DEADLINE_SECONDS

ALICE = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
BOB = "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty"
LOCAL = ["--subtensor.network", "local"]

Parse = Callable[[list[str], dict[str, str]], Any]


def refused(
    parse: Parse, argv: list[str], capsys: pytest.CaptureFixture[str], environ: dict[str, str] | None = None
) -> str:
    """The error line of a command line that is a usage error."""
    with pytest.raises(SystemExit) as caught:
        parse(argv, environ or {})
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    return str(err)


def test_defaults_are_those_that_the_network_knows() -> None:
    miner, validator = parse_miner([], {}), parse_validator([], {})
    for options in (miner, validator):
        assert options.netuid == 27
        assert options.auto_update is True
        assert options.lists == groups.ListOptions(True, (), (), (), ())
        assert options.database == Path("database.db")
        assert options.config_file is None
        assert options.subtensor == groups.SubtensorOptions("finney", "wss://entrypoint-finney.opentensor.ai:443")
        assert (options.status, options.json) == (False, False)
        assert options.version_file is None
        assert options.metrics == groups.MetricsOptions(None, "127.0.0.1")
    assert miner.ssh_port == 4444
    assert (miner.runtime, miner.image) == (RuntimeKind.DOCKER, "compute-machine")
    assert (miner.cpu_devices, miner.ssh_host, miner.require_signed) == (0, "0.0.0.0", False)
    assert (miner.whitelist_not_enough_stake, miner.whitelist_not_updated) == (False, False)
    assert miner.updated_threshold_percent == validator.updated_threshold_percent == 60
    assert (miner.hashcat_path, miner.hashcat_workload_profile, miner.hashcat_extended_options) == ("hashcat", "3", "")
    assert validator.whitelist_unrecognized is False
    assert validator.perform_hardware_query is True
    assert (validator.specs_batch_size, validator.challenge_batch_size) == (64, 256)
    assert validator.force_update_prometheus is False
    assert (validator.rounds, validator.specs_interval_blocks, validator.proof_interval_blocks) == (0, 150, 360)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], True),
        (["--auto_update"], True),
        (["--auto_update", "true"], True),
        (["--auto_update=yes"], True),
        (["--auto_update", "false"], False),
        (["--auto_update", "False"], False),
        (["--auto_update=0"], False),
        (["--no-auto_update"], False),
        (["--auto_update", "--netuid", "15"], True),
        (["--no-auto_update", "--auto_update"], True),
    ],
)
def test_a_switch_can_be_switched_off(argv: list[str], expected: bool) -> None:
    assert parse_miner(argv, {}).auto_update is expected
    assert parse_validator(argv, {}).auto_update is expected


@pytest.mark.parametrize("word", ["False", "0", "no", "false", "off"])
def test_words_that_mean_no_hardware_query(word: str) -> None:
    assert parse_validator(["--validator.perform.hardware.query", word], {}).perform_hardware_query is False


def test_every_option_reaches_its_field_of_the_miner() -> None:
    argv = [
        *("--netuid", "15", "--config.file", "c.yaml", "--database", "d.db", "--status", "--json"),
        *("--no-auto_update", "--subtensor.chain_endpoint", "ws://127.0.0.1:1", "--wallet.name", "w"),
        *("--wallet.hotkey", "h", "--wallet.path", "/p", "--logging.info", "--logging.debug", "--logging.trace"),
        *("--logging.json", "--logging.record_log", "--logging.logging_dir", "/l"),
        *("--logging.enable_third_party_loggers", "--axon.port", "1", "--axon.ip", "0.0.0.0"),
        *("--axon.external_port", "2", "--axon.external_ip", "127.0.0.2", "--axon.max_workers", "3"),
        *("--blacklist.exploiters", "no", "--blacklist.hotkeys", f"{ALICE},{BOB}", "--blacklist.coldkeys", BOB),
        *("--whitelist.hotkeys", BOB, "--whitelist.coldkeys", ALICE, "--ssh.port", "4", "--ssh.host", "127.0.0.5"),
        *("--version.file", "https://example.org/v.py", "--metrics.port", "5", "--metrics.ip", "::1"),
        *("--miner.runtime", "local", "--miner.cpu.devices", "2", "--miner.require.signed"),
        *("--miner.whitelist.not.enough.stake", "--miner.whitelist.not.updated"),
        *("--miner.whitelist.updated.threshold", "61", "--miner.hashcat.path", "/h"),
        *("--miner.hashcat.workload.profile", "4", "--miner.hashcat.extended.options=-O"),
    ]
    assert parse_miner(argv, {}) == MinerOptions(
        netuid=15,
        subtensor=groups.SubtensorOptions("local", "ws://127.0.0.1:1"),
        wallet=groups.WalletOptions("w", "h", "/p"),
        logging=groups.LoggingOptions(True, True, True, True, True, "/l", True),
        axon=groups.AxonOptions(1, "0.0.0.0", 2, "127.0.0.2", 3),
        lists=groups.ListOptions(False, (ALICE, BOB), (BOB,), (BOB,), (ALICE,)),
        metrics=groups.MetricsOptions(5, "::1"),
        config_file=Path("c.yaml"),
        database=Path("d.db"),
        status=True,
        json=True,
        version_file="https://example.org/v.py",
        auto_update=False,
        ssh_port=4,
        given_ssh_host="127.0.0.5",
        runtime=RuntimeKind.LOCAL,
        image="compute-machine",
        network_close=True,
        network_allow=(),
        allow_dockerfile=False,
        cpu_devices=2,
        require_signed=True,
        whitelist_not_enough_stake=True,
        whitelist_not_updated=True,
        updated_threshold_percent=61,
        hashcat_path="/h",
        hashcat_workload_profile="4",
        hashcat_extended_options="-O",
    )


def test_what_leases_may_reach() -> None:
    argv = ["--no-miner.network.close", "--miner.network.allow", "10.1.0.0/16, 192.168.7.9,"]
    options = parse_miner([*argv, "--miner.allow.dockerfile"], {})
    assert options.allow_dockerfile is True
    assert options.network_close is False
    assert options.network_allow == ("10.1.0.0/16", "192.168.7.9/32")


@pytest.mark.parametrize("wrong", ["lan", "10.1.2.3/16", "fd00::/8", "10.0.0.0/33", "10.0.0.0/8 accept"])
def test_what_is_no_range_is_refused(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "10.1.0.0/16" in refused(parse_miner, ["--miner.network.allow", wrong], capsys)


def test_every_option_of_its_own_reaches_its_field_of_the_validator() -> None:
    argv = [
        *("--validator.whitelist.unrecognized", "--no-validator.perform.hardware.query"),
        *("--validator.specs.batch.size", "1", "--validator.challenge.batch.size", "2"),
        *("--validator.force.update.prometheus", "--validator.whitelist.updated.threshold", "3"),
        *("--validator.rounds", "4", "--validator.specs.interval", "5", "--validator.proof.interval", "6"),
    ]
    options = parse_validator(argv, {})
    assert options.whitelist_unrecognized is True
    assert options.perform_hardware_query is False
    assert (options.specs_batch_size, options.challenge_batch_size) == (1, 2)
    assert options.force_update_prometheus is True
    assert options.updated_threshold_percent == 3
    assert (options.rounds, options.specs_interval_blocks, options.proof_interval_blocks) == (4, 5, 6)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--netuid", "x"], "argument --netuid: 'x' is not a whole number from 0 to 65535"),
        (["--ssh.port", "70000"], "argument --ssh.port: '70000' is not a whole number from 1 to 65535"),
        (["--auto_update", "maybe"], "argument --auto_update: 'maybe' is neither true (yes, on, 1) nor false"),
        (["--miner.whitelist.updated.threshold", "101"], "'101' is not a whole number from 0 to 100"),
        (["--blacklist.hotkeys", "bob"], "argument --blacklist.hotkeys: 'bob' is not an ss58 address"),
        (["--miner.runtime", "podman"], "'podman' is not one of docker, local"),
        (["--subtensor.network", "finey"], "'finey' is not one of finney, test, archive, local, latent-lite, nor an"),
        (["--subtensor.chain_endpoint", "http://x"], "'http://x' is not an address such as ws://127.0.0.1:9944"),
        (["--subtensor._mock", "true"], "there is no mocked chain here"),
        (["--axon.external_ip", "me"], "'me' is not an IP address"),
        (["--wallet.name", ""], "argument --wallet.name: '' is empty"),
        (["--json"], "--json goes with --status"),
        (["--netuuid", "3"], "unknown argument '--netuuid'; did you mean --netuid?"),
        (["--ssh.por=3"], "unknown argument '--ssh.por=3'; did you mean --ssh.port?"),
        (["run"], "unknown argument 'run'"),
        (["--config", "x"], "unknown argument '--config'"),
        (["--miner.cpu.devices", "2"], "--miner.cpu.devices 2 is for a chain on this machine, and this one is wss://"),
        (
            [*("--miner.runtime", "local", "--subtensor.network", "local"), "--miner.image", "mine"],
            "--miner.image mine goes with --miner.runtime docker",
        ),
        (["--miner.image", " "], "' ' is empty"),
        (["--ssh.host", "localhost"], "'localhost' is not an IP address"),
        (
            [*LOCAL, "--miner.runtime", "local", "--ssh.host", "10.0.0.1"],
            "--ssh.host 10.0.0.1 is not an address of the",
        ),
        (["--miner.runtime", "local"], "needs a chain on this machine; this one is wss://entrypoint-finney"),
        (
            ["--miner.runtime", "local", "--subtensor.network", "ws://10.0.0.1:9944"],
            "needs a chain on this machine; this one is ws://10.0.0.1:9944",
        ),
    ],
)
def test_usage_errors_quote_the_value_and_the_bound(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(parse_miner, argv, capsys)
    assert message in error
    assert "--help" in error


@pytest.mark.parametrize("parse", [parse_miner, parse_validator])
def test_there_is_no_mocked_chain(parse: Parse, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no mocked chain here" in refused(parse, ["--subtensor._mock"], capsys)
    assert parse(["--subtensor._mock", "no"], {}).subtensor.mock is False


def test_json_goes_with_a_question_and_one_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--json goes with --status or --explain" in refused(parse_validator, ["--json"], capsys)
    assert "two questions" in refused(parse_validator, ["explain", "3", "--status"], capsys)
    assert parse_validator(["--json", "--status"], {}).json is True


def test_explain_is_a_command_and_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["explain", "17", "--json"], ["--json", "--explain", "17"], ["explain", "17", "--json", "true"]):
        options = parse_validator(argv, {})
        assert (options.explain, options.json, options.status) == ("17", True, False)
    assert parse_validator([], {}).explain is None
    assert "expected one argument" in refused(parse_validator, ["explain"], capsys)
    assert "unknown argument 'explain'" in refused(parse_validator, ["--netuid", "3", "explain", "17"], capsys)


@pytest.mark.parametrize(
    ("argv", "environ", "network", "endpoint"),
    [
        (["--subtensor.network", "test"], {}, "test", "wss://test.finney.opentensor.ai:443"),
        (LOCAL, {}, "local", "ws://127.0.0.1:9944"),
        (["--subtensor.network", "ws://node.example.org:9944"], {}, *["ws://node.example.org:9944"] * 2),
        (["--subtensor.network", "127.0.0.1:7"], {}, "local", "ws://127.0.0.1:7"),
        (["--subtensor.chain_endpoint", "ws://[::1]:7", "--subtensor.network", "test"], {}, "local", "ws://[::1]:7"),
        ([], {"BT_SUBTENSOR_NETWORK": "archive"}, "archive", "wss://archive.chain.opentensor.ai:443"),
        ([], {"BT_SUBTENSOR_CHAIN_ENDPOINT": "ws://localhost:5"}, "local", "ws://localhost:5"),
        (LOCAL, {"BT_SUBTENSOR_CHAIN_ENDPOINT": "ws://127.0.0.1:5"}, "local", "ws://127.0.0.1:5"),
        (
            ["--subtensor.network", "test"],
            {"BT_SUBTENSOR_CHAIN_ENDPOINT": "ws://127.0.0.1:5"},
            "test",
            "wss://test.finney.opentensor.ai:443",
        ),
        (["--subtensor.chain_endpoint", "wss://entrypoint-finney.opentensor.ai:443"], {}, "finney", None),
    ],
)
def test_which_chain(argv: list[str], environ: dict[str, str], network: str, endpoint: str | None) -> None:
    subtensor = parse_validator(argv, environ).subtensor
    assert subtensor.network == network
    assert endpoint is None or subtensor.endpoint == endpoint
    assert subtensor.is_local is (network == "local")


@pytest.mark.parametrize("host", ["127.0.0.1.example.org", "localhost.example.org", "10.127.0.1"])
def test_a_node_elsewhere_is_never_taken_for_local(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--subtensor.chain_endpoint", f"ws://{host}:9944", "--miner.runtime", "local"]
    assert "needs a chain on this machine" in refused(parse_miner, argv, capsys)


def test_the_local_runtime_answers_at_the_axons_loopback_address() -> None:
    local = [*LOCAL, "--miner.runtime", "local"]
    assert parse_miner(local, {}).ssh_host == "127.0.0.1"
    assert parse_miner([*local, "--axon.external_ip", "127.0.0.3"], {}).ssh_host == "127.0.0.3"
    assert parse_miner([*local, "--axon.external_ip", "203.0.113.7"], {}).ssh_host == "127.0.0.1"
    assert (
        parse_miner([*local, "--axon.external_ip", "127.0.0.3", "--ssh.host", "127.0.0.9"], {}).ssh_host == "127.0.0.9"
    )


def test_containers_answer_everywhere_unless_the_operator_or_a_loopback_axon_says_otherwise() -> None:
    assert parse_miner(["--axon.external_ip", "203.0.113.7"], {}).ssh_host == "0.0.0.0"
    assert parse_miner(["--ssh.host", "203.0.113.7"], {}).ssh_host == "203.0.113.7"
    assert parse_miner([*LOCAL, "--axon.external_ip", "127.0.0.3"], {}).ssh_host == "127.0.0.3"


def test_cores_are_offered_with_either_runtime() -> None:
    for runtime in ("docker", "local"):
        argv = [*LOCAL, "--miner.runtime", runtime, "--miner.cpu.devices", "2"]
        assert parse_miner(argv, {}).cpu_devices == 2


def test_variables_move_defaults_and_the_command_line_wins() -> None:
    environ = {"SQLITE_DB_PATH": "/v.db", "BT_WALLET_NAME": "v", "BT_AXON_PORT": "7", "BT_LOGGING_DEBUG": "false"}
    options = parse_miner(["--wallet.name", "line"], environ)
    assert (options.database, options.wallet.name, options.axon.port) == (Path("/v.db"), "line", 7)
    assert options.logging.debug is False
    assert parse_miner([], {"SQLITE_DB_PATH": ""}).database == Path("database.db")


def test_a_bad_variable_is_a_usage_error_that_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(parse_miner, [], capsys, {"BT_AXON_PORT": "http"})
    assert "environment variable BT_AXON_PORT: 'http' is not a whole number from 1 to 65535" in error
    assert parse_miner(["--axon.port", "5"], {"BT_AXON_EXTERNAL_PORT": ""}).axon.port == 5


@pytest.mark.parametrize("parse", [parse_miner, parse_validator])
def test_help_shows_defaults_and_examples(parse: Parse, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"], {})
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "[default: 27]" in text
    assert "--no-auto_update" in text
    assert "examples:\n  python neurons/" in text
    # The same text whatever the variables are: they are named, not read.
    with pytest.raises(SystemExit):
        parse(["--help"], {"BT_WALLET_NAME": "secret"})
    assert capsys.readouterr().out == text


def test_groups_serve_a_parser_with_sub_commands() -> None:
    """register.py declares the shared groups before and behind its sub-commands."""
    shared = (groups.SubtensorOptions, groups.WalletOptions)
    parser = OptionParser(prog="register")
    add_groups(parser, shared)
    command = parser.add_subparsers(dest="command").add_parser("list")
    add_groups(command, shared)
    namespace = parser.parse_args(["--wallet.name", "before", "list", "--subtensor.network", "test"])
    values = resolve(parser, shared, namespace, {})
    assert groups.WalletOptions.of(values).name == "before"
    assert groups.SubtensorOptions.of(values).network == "test"


def all_options(kind: type[OptionGroup]) -> list[str]:
    """The names of the options in an object of options, those of the groups in it too."""
    nested = [each.default_factory for each in fields(kind)]
    inner = [name for group in nested if isinstance(group, type) for name in all_options(group)]
    return [each.name for each in options_of(kind)] + inner


@pytest.mark.parametrize(
    ("kind", "shown"), [(MinerOptions, MINER), (ValidatorOptions, VALIDATOR), (RenterOptions, RENTER)]
)
def test_what_the_help_shows_is_what_the_program_gets(
    kind: type[OptionGroup], shown: tuple[type[OptionGroup], ...]
) -> None:
    names = [each.name for group in shown for each in options_of(group)]
    assert sorted(names) == sorted(all_options(kind))


def test_help_does_not_import_the_sdk() -> None:
    code = "import sys, compute.miner.options as o\n"
    code += "try: o.parse_miner(['--help'], {})\nfinally: print(sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=True
    )
    modules = done.stdout[done.stdout.rindex("[") :]
    assert "compute.miner.options" in modules
    for heavy in ("bittensor", "torch", "pydantic", "docker", "paramiko", "yaml"):
        assert f"'{heavy}'" not in modules
