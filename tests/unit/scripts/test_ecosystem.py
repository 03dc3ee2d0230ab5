"""What ``ecosystem.config.js`` tells pm2, as node reads it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from compute.base.process import EXIT_CONFIG
from compute.miner.options import parse_miner
from compute.validator.options import parse_validator

ROOT = Path(__file__).resolve().parents[3]
_SECONDS_OF_A_LEASE = 30
"""How long a miner may need to end while a lease begins."""


def apps(**variables: str) -> dict[str, dict[str, Any]]:
    """The file's programs by name, as they are under these variables."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node, which comes with pm2")
    done = subprocess.run(
        [node, "--print", "JSON.stringify(require('./ecosystem.config.js'))"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return {app["name"]: app for app in json.loads(done.stdout)["apps"]}


def test_both_neurons_are_started_with_options_that_they_know() -> None:
    found = apps()
    assert {name: app["script"] for name, app in found.items()} == {
        "miner": "neurons/miner.py",
        "validator": "neurons/validator.py",
    }
    assert all((ROOT / app["script"]).is_file() and app["cwd"] == str(ROOT) for app in found.values())
    # What they do not know would end the program.
    parse_miner(found["miner"]["args"].split(), {})
    parse_validator(found["validator"]["args"].split(), {})


def test_the_variables_replace_the_options_of_one_neuron_each() -> None:
    found = apps(MINER_OPTIONS="--netuid 15")
    assert found["miner"]["args"] == "--netuid 15"
    assert found["validator"]["args"] == apps()["validator"]["args"]


def test_what_pm2_does_when_a_neuron_ends() -> None:
    for app in apps().values():
        assert app["stop_exit_codes"] == [EXIT_CONFIG]
        assert app["exp_backoff_restart_delay"] == 1000
        assert app["kill_timeout"] > 1000 * _SECONDS_OF_A_LEASE
        assert "autorestart" not in app
