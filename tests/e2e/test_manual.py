"""The localnet's page of the manual, followed command by command, as it stands there."""

from __future__ import annotations

import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from compute.testing.rates import easy_config
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "localnet.md").read_text(encoding="utf-8")
_COMMAND_SECONDS = 600
"""For a command that hangs. One of them measures this machine, and takes the longer the busier that is."""
MakePm2 = Callable[..., Any]


class Receiver:
    """Takes the notices of a validator, on the loopback."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, str]] = []
        bodies = self.bodies

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/a-secret-path"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Reader:
    """Somebody who types what the page says, in an empty directory and with an empty home."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self.endpoint = ""
        self.receiver = Receiver()
        stack.callback(self.receiver.close)

    def argv(self, line: str) -> list[str]:
        words = shlex.split(line.replace("neurons/", f"{ROOT}/neurons/"))
        assert words[0] == "python"
        if words[2:4] == ["compute.localnet", "node"]:
            # Two readers on one machine must not meet: the system chooses the port, and everybody is told.
            return [sys.executable, *line.replace("9944", "0").split()[1:]]
        if words[2:4] == ["compute.localnet", "register"]:
            words += ["--endpoint", self.endpoint]
        text = [sys.executable, *words[1:]]
        if "--subtensor.network" in text:
            at = text.index("--subtensor.network")
            assert text[at + 1] == "local"
            text[at : at + 2] = ["--subtensor.chain_endpoint", self.endpoint]
        return text

    def environment(self) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("BT_")}
        return {
            **inherited,
            "HOME": str(self._folder),
            "PYTHONPATH": str(ROOT),
            "WANDB_MODE": "offline",
            "DEALLOCATION_NOTIFY_URL": self.receiver.url,
            "STATUS_NOTIFY_URL": self.receiver.url,
        }

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(encoding="utf-8")

    def kept_runs(self, name: str) -> list[Path]:
        """What the neuron ``name`` has kept for Weights & Biases."""
        return list(self._folder.glob(f"local-{name}.data/wandb/offline-run-*/*.wandb"))

    def forget_the_rates(self, line: str) -> None:
        """Put rates that every machine reaches into the file that ``line`` wrote with those of this one."""
        path = self._folder / line.partition(" > ")[2]
        assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) == set(yaml.safe_load(easy_config()))
        path.write_text(easy_config(), encoding="utf-8")

    def start(self, line: str, name: str) -> subprocess.Popen[str]:
        log = self._stack.enter_context((self._folder / f"{name}.log").open("w", encoding="utf-8"))
        process = subprocess.Popen(
            self.argv(line), cwd=self._folder, env=self.environment(), stdout=subprocess.PIPE, stderr=log, text=True
        )
        self._stack.callback(_end, process)
        return process

    def run(self, line: str) -> str:
        command, _, file = line.partition(" > ")
        done = subprocess.run(
            self.argv(command),
            cwd=self._folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        if file:
            (self._folder / file).write_text(done.stdout, encoding="utf-8")
        return done.stdout


def _end(process: subprocess.Popen[str]) -> None:
    with process:
        process.terminate()
        process.wait(30)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    with ExitStack() as stack:
        yield Reader(tmp_path, stack)


def lines_of(part: str) -> list[str]:
    """The commands under a heading of the page, in order; without one, those before the first."""
    text = PAGE.split(f"\n## {part}\n")[1] if part else PAGE
    blocks = re.findall(r"```bash\n(.*?)```", text.partition("\n## ")[0], flags=re.DOTALL)
    return [line for block in blocks for line in block.strip().splitlines()]


PREPARED, BY_HAND, UNDER_PM2 = lines_of("")[:4], lines_of("")[4:], lines_of("Under pm2")
STATUS, EXPLAIN, OFFERS = re.findall(r"`(python neurons/[^`]*)`", PAGE)


def prepare(reader: Reader) -> None:
    node, register_miner, register_validator, config = PREPARED
    chain = reader.start(node, "node")
    assert chain.stdout is not None
    reader.endpoint = json.loads(chain.stdout.readline())["endpoint"]
    assert "local-miner is uid 0" in reader.run(register_miner)
    assert "local-validator is uid 1" in reader.run(register_validator)
    reader.run(config)
    reader.forget_the_rates(config)


def wait_until_paid(reader: Reader) -> None:
    def is_paid() -> bool:
        rows = json.loads(reader.run(f"{STATUS} --json"))
        return bool(rows) and rows[0]["verdict"]["reason"] == "ok" and rows[0]["weight"] == 1.0

    # Each look takes a processor from the proof for a moment.
    until(is_paid, "the miner is proven and paid", pause_seconds=0.5)


def test_every_command_of_the_page_is_run_by_one_of_these_tests() -> None:
    assert len(re.findall(r"```bash\n", PAGE)) == 5
    assert len(PREPARED) + len(BY_HAND) + len(UNDER_PM2) == sum(
        len(block.strip().splitlines()) for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    )


@pytest.mark.e2e
@pytest.mark.long
def test_the_page_leads_to_a_paid_miner(reader: Reader) -> None:
    miner, validator, allocate, execute, deallocate = BY_HAND
    prepare(reader)
    reader.start(miner, "miner")
    reader.start(validator, "validator")
    wait_until_paid(reader)
    assert "Localnet CPU core" in reader.run(STATUS)
    assert "Localnet CPU core" in reader.run(EXPLAIN)
    assert "Localnet CPU core" in reader.run(OFFERS)

    reader.run(allocate)
    assert reader.run(execute).strip()
    until(lambda: "rented machine is alive" in reader.log("validator"), "the validator sees the rental")
    reader.run(deallocate)
    until(lambda: bool(reader.receiver.bodies), "the end of the rental is told")
    assert [body["status"] for body in reader.receiver.bodies] == ["DEALLOCATION"]
    assert "a-secret-path" not in reader.log("validator")
    assert len(reader.kept_runs("miner")) == len(reader.kept_runs("validator")) == 1


@pytest.mark.e2e
@pytest.mark.long
def test_the_page_leads_to_a_paid_miner_under_pm2(reader: Reader, tmp_path: Path, make_pm2: MakePm2) -> None:
    miner_options, validator_options, start, restart, stop, delete = UNDER_PM2
    prepare(reader)
    variables = {}
    for line in (miner_options, validator_options):
        name, value = re.fullmatch(r'export (\w+)="(.*)"', line).groups()
        variables[name] = value.replace("--subtensor.network local", f"--subtensor.chain_endpoint {reader.endpoint}")
    # The file works in its own folder, and the reader's is a copy of the repository.
    shutil.copy(ROOT / "ecosystem.config.js", tmp_path)
    (tmp_path / "neurons").symlink_to(ROOT / "neurons")
    pm2 = make_pm2(tmp_path, **variables)
    for line in (start, restart):
        pm2(*shlex.split(line)[1:])
    wait_until_paid(reader)
    assert pm2.state("miner") == ("online", 1)
    assert pm2.state("validator") == ("online", 0)
    pm2(*shlex.split(stop)[1:])
    assert {pm2.state(name)[0] for name in ("miner", "validator")} == {"stopped"}
    pm2(*shlex.split(delete)[1:])
    assert pm2.processes() == {}
