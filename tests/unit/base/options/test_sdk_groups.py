"""Our declarations of the SDK's options are the installed SDK's: names, types, defaults and variables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from compute.base.options import shared as groups
from compute.base.options.option import OptionParser, options_of, read
from tests.waiting import DEADLINE_SECONDS

# The SDK reads its variables while it is imported, so each question is asked in a process of its own.
ASK = """
import argparse, json, sys
import bittensor as bt
parser = argparse.ArgumentParser()
for part in (bt.Subtensor, bt.Wallet, bt.logging, bt.Axon):
    part.add_args(parser)
rows = []
for action in parser._actions:
    if action.dest == "help":
        continue
    default = action.type(action.default) if action.type and isinstance(action.default, str) else action.default
    kind = "bool" if isinstance(action, argparse._StoreTrueAction) else (action.type or str).__name__
    rows.append([action.option_strings, action.dest, kind, default])
sys.stderr.write("ANSWER" + json.dumps(rows))
"""
SAMPLES = {"bool": "false", "int": "17", "str": "127.0.0.2"}
GROUPS = (groups.SubtensorOptions, groups.WalletOptions, groups.LoggingOptions, groups.AxonOptions)
OPTIONS = [option for group in GROUPS for option in options_of(group) if option.name != "logging.json"]


def sdk_options(variables: dict[str, str]) -> dict[str, tuple[str, Any]]:
    """Name -> (type, default), as the SDK declares them under these variables."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("BT_")}
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env={**environ, **variables},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=True,
    )
    rows = json.loads(done.stderr[done.stderr.index("ANSWER") + len("ANSWER") :])
    for strings, dest, _, _ in rows:
        assert strings == [f"--{dest}"]
    return {dest: (kind, default) for _, dest, kind, default in rows}


def our_defaults(variables: dict[str, str]) -> dict[str, object]:
    return {
        option.name: option.parse(variables[option.variable])
        if option.variable and variables.get(option.variable)
        else option.default
        for option in OPTIONS
    }


def test_names_types_and_defaults_are_the_sdks() -> None:
    sdk = sdk_options({})
    assert our_defaults({}) == {name: default for name, (_, default) in sdk.items()}
    for option in OPTIONS:
        kind = sdk[option.name][0]
        sample = "ws://127.0.0.2:7" if option.name.startswith("subtensor.") and kind == "str" else SAMPLES[kind]
        assert type(option.parse(sample)).__name__ == kind


def test_variables_are_the_sdks() -> None:
    variables = {
        "BT_SUBTENSOR_NETWORK": "test",
        "BT_SUBTENSOR_CHAIN_ENDPOINT": "ws://127.0.0.1:5",
        "BT_WALLET_NAME": "name",
        "BT_WALLET_HOTKEY": "hot",
        "BT_WALLET_PATH": "/path",
        "BT_LOGGING_INFO": "1",
        "BT_LOGGING_LOGGING_DIR": "/tmp",
        "BT_AXON_PORT": "11",
        "BT_AXON_IP": "0.0.0.0",
        "BT_AXON_EXTERNAL_PORT": "12",
        "BT_AXON_EXTERNAL_IP": "127.0.0.3",
        "BT_AXON_MAX_WORKERS": "13",
    }
    sdk = {name: default for name, (_, default) in sdk_options(variables).items()}
    assert our_defaults(variables) == sdk


@pytest.mark.parametrize(("word", "expected"), [("0", False), ("false", False), ("1", True)])
def test_a_logging_variable_that_says_false_is_false_here(word: str, expected: bool) -> None:
    """The one deliberate difference: the SDK takes any text in these variables, "0" and "false" too, for true."""
    values = read(OptionParser(), [groups.LoggingOptions], [], {"BT_LOGGING_DEBUG": word})
    assert groups.LoggingOptions.of(values).debug is expected
