from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from compute.localnet.__main__ import build_parser, main
from compute.localnet.pallet.state import Hyperparameters

ROOT = Path(__file__).resolve().parents[3]


def test_help_needs_neither_bittensor_nor_websockets() -> None:
    program = (
        "import sys, compute.localnet.__main__ as command\n"
        "try: command.main(['node', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('bittensor', 'websockets', 'numpy', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for option in ("--port", "--block-time", "--state", "--netuid", "--tempo", "--commit-reveal", "--set"):
        assert option in done.stdout


def test_the_defaults_that_help_names_are_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["node", "--help"])
    text = capsys.readouterr().out
    defaults = Hyperparameters()
    assert f"(default: {defaults.tempo}; finney: 360)" in text
    assert f"(default: {defaults.weights_rate_limit}; finney: 100)" in text
    options = build_parser().parse_args(["node"])
    assert (options.port, options.block_time, options.netuid, options.state) == (9944, 1.0, 27, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "'70000' is not an integer from 0 to 65535"),
        (["--port", "x"], "'x' is not an integer"),
        (["--netuid", "0"], "'0' is not an integer from 1"),
        (["--block-time", "-1"], "'-1' is not a number of seconds"),
        (["--block-time", "nan"], "'nan' is not a number of seconds"),
        (["--set", "tempo"], "'tempo' is not NAME=VALUE"),
        (["--set", "tempo=fast"], "neither a number nor true or false"),
    ],
)
def test_bad_options_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["node", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "speed=5"], "unknown hyperparameter 'speed'"),
        (["--tempo", "0"], "tempo is an integer from 1 to 65535, not 0"),
        (["--state", "/dev/null/chain.db"], "cannot open"),
    ],
)
def test_a_node_that_cannot_start_says_why(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["node", "--port", "0", *arguments]) == 1
    assert message in capsys.readouterr().err
