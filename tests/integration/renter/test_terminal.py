"""``register.py`` as people and scripts use it: at a terminal of 80 columns, in a pipe, without either, with --json.

A real chain and a real miner stand at the other end.
"""

from __future__ import annotations

import codecs
import fcntl
import json
import os
import pty
import re
import select
import shlex
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import psutil
import pytest
from rich.text import Text

from compute.demo.cast import Actor, Kind
from compute.demo.stage import VALIDATOR, Stage

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = [sys.executable, str(ROOT / "neurons" / "register.py")]
COLUMNS = 80
CTRL_C, CTRL_D = "\x03", "\x04"
_SECONDS = 60
_ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]")
_UNFINISHED = re.compile(r"\r?(\x1b(\[[0-9;?]*)?)?\Z")
"""What may only be understood with what comes next: the beginning of the end of a line, or of a sequence."""


class Renting:
    """Somebody with a wallet, whose environment says where everything is."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.miner = stage.hotkey("miner")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("BT_", "SQLITE_"))}
        self.environment = {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "HOME": str(folder),
            "TERM": "xterm",
            "BT_SUBTENSOR_CHAIN_ENDPOINT": stage.node.endpoint,
            "BT_WALLET_PATH": str(stage.folder / "wallets"),
            "BT_WALLET_NAME": VALIDATOR,
            "SQLITE_DB_PATH": str(folder / "renter.db"),
        }

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Without a terminal."""
        return subprocess.run(
            [*PROGRAM, *words],
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )

    def json(self, *words: str) -> object:
        ran = self.run(*words, "--json")
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    def at_terminal(self, *words: str) -> Terminal:
        return Terminal([*PROGRAM, *words], self.environment)


class Terminal:
    """A program at a terminal of 80 columns, and somebody who waits for what it says before typing on."""

    def __init__(self, argv: Sequence[str], environment: dict[str, str]) -> None:
        self._here, there = pty.openpty()
        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
        # The terminal must be the session's own, or Ctrl-C would be a letter.
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *argv], stdin=there, stdout=there, stderr=there, env=environment
        )
        os.close(there)
        self.text = self._unfinished = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process:
            if self._process.poll() is None:
                self._process.kill()
        os.close(self._here)

    def until(self, words: str) -> str:
        """What is said up to and with ``words``; the next call begins after it."""
        deadline = time.monotonic() + _SECONDS
        while words not in self.text:
            assert time.monotonic() < deadline, f"never said {words!r}: {self.text}"
            assert self._read() or words in self.text, f"ended without {words!r}: {self.text}"
        said, _, self.text = self.text.partition(words)
        return said + words

    def type(self, keys: str) -> None:
        os.write(self._here, keys.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C once the program waits for keys.

        Before that it may be lost: Python looks for signals and then waits for a key. No fingers come in between, but a
        test does.
        """
        deadline = time.monotonic() + _SECONDS
        while psutil.Process(self._process.pid).status() != psutil.STATUS_SLEEPING:
            assert time.monotonic() < deadline, "never waited for keys"
            time.sleep(0.01)
        self.type(CTRL_C)

    def end(self) -> tuple[int, str]:
        """The exit code, and what was said until the end."""
        deadline = time.monotonic() + _SECONDS
        while self._read():
            assert time.monotonic() < deadline, f"never ended: {self.text}"
        return self._process.wait(_SECONDS), self.text

    def _read(self) -> bool:
        """False at the end."""
        if select.select([self._here], [], [], 0.2)[0]:
            try:
                data = os.read(self._here, 65536)
            except OSError:
                return False  # Linux says "input/output error" once the program has closed its side
            read = _ANSI.sub("", self._unfinished + self._decoder.decode(data))
            finished = _UNFINISHED.sub("", read)
            self._unfinished = read[len(finished) :]
            # A spinner draws its line again and again: each is one here.
            self.text += re.sub(r"\r\n?", "\n", finished)
        return True


def serve(stage: Stage, folder: Path) -> None:
    """Start the miner, and wait until somebody sees its machine."""
    stage.start_miner(stage.actors[0])
    deadline = time.monotonic() + _SECONDS
    while not Renting(stage, folder).json("offers"):
        assert time.monotonic() < deadline, stage.log_tail("miner")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("stage"), [Actor("miner", Kind.HONEST, 2)], block_seconds=0.25)
    try:
        stage.start_chain()
        for name in (VALIDATOR, "miner"):
            stage.register(name)
        serve(stage, tmp_path_factory.mktemp("first"))
        yield stage
    finally:
        stage.close()


@pytest.fixture
def renting(stage: Stage, tmp_path: Path) -> Iterator[Renting]:
    renting = Renting(stage, tmp_path)
    yield renting
    # What a failed test has left is given back; nothing else would free the machine for the next.
    renting.run("deallocate", "--all", "--yes")


@pytest.fixture
def rented(renting: Renting) -> Renting:
    assert renting.run("allocate", "--name", "mine", "--days", "1").returncode == 0
    return renting


def fits(text: str) -> bool:
    """Whether every line has room on the terminal, so that it broke none of them."""
    return all(Text(line).cell_len <= COLUMNS for line in text.splitlines())


def test_what_people_read_fits_80_columns(rented: Renting) -> None:
    assert rented.run("penalize", rented.miner, "--note", "slow").returncode == 0
    for words in (["offers", "--all"], ["list"], ["show", "mine"], ["penalized"], ["--help"], ["allocate"]):
        with rented.at_terminal(*words) as terminal:
            code, said = terminal.end()
        assert code == (5 if words == ["allocate"] else 0), said
        assert fits(said), said
        assert "Traceback" not in said


def test_a_machine_is_rented_and_given_back_at_a_terminal(renting: Renting) -> None:
    with renting.at_terminal("allocate", "--count", "2", "--name", "mine", "--days", "1") as terminal:
        code, said = terminal.end()
    assert code == 0
    assert said.endswith("log in with: register.py ssh mine\n")
    question = "give back mine? What is stored there is lost. [y/N] "
    for answer, expected in (("\n", 2), ("n\n", 2), (CTRL_C, 130), (CTRL_D, 2)):
        with renting.at_terminal("deallocate", "mine") as terminal:
            terminal.until(question)
            if answer == CTRL_C:
                terminal.interrupt()
            else:
                terminal.type(answer)
            code, said = terminal.end()
        assert code == expected, said
        assert "Traceback" not in said
        assert code == 2 or said.splitlines()[-1] == "interrupted"
        assert code == 130 or said.splitlines()[-1] == "To do it without being asked, add --yes."
    with renting.at_terminal("deallocate", "mine") as terminal:
        terminal.until(question)
        terminal.type("y\n")
        code, said = terminal.end()
    assert code == 0
    assert said.splitlines()[-1] == "mine: given back"


def test_the_shell_at_a_terminal(renting: Renting) -> None:
    prompt = "register> "
    with renting.at_terminal() as terminal:
        terminal.until(prompt)
        for line, expected in (
            ("help", "allocate by requirement"),
            ("list_r", "2"),
            ("frob", "Type help for the words."),
            ("list_a", "no allocations yet"),
            ("a {'gpu':", "Type help for the words."),
        ):
            terminal.type(f"{line}\n")
            said = terminal.until(prompt)
            assert expected in said, said
            assert fits(said), said
        terminal.type("a {'gpu':{'count':1}}\n")
        terminal.until("days [90]: ")
        terminal.type("1\n")
        name = re.findall(r"^name +(\S+)$", terminal.until(prompt), flags=re.MULTILINE)[0]
        # Ctrl-C ends what is asked, not the shell.
        terminal.type("d\n")
        terminal.until("name or hotkey: ")
        terminal.interrupt()
        assert "interrupted" in terminal.until(prompt)
        terminal.type(f"d {name}\n")
        terminal.until("[y/N] ")
        terminal.type("y\n")
        assert f"{name}: given back" in terminal.until(prompt)
        terminal.type("exit\n")
        code, _ = terminal.end()
    assert code == 0


@pytest.mark.skipif(shutil.which("ssh") is None, reason="OpenSSH's client is not installed")
def test_ssh_takes_the_terminal_and_ends_with_the_remote_code(rented: Renting) -> None:
    with rented.at_terminal("ssh", "mine") as terminal:
        terminal.type("stty size; exit 4\n")
        terminal.until(f"50 {COLUMNS}")
        code, _ = terminal.end()
    assert code == 4


def test_a_pipe_has_whole_lines_and_may_be_closed(rented: Renting) -> None:
    row = rented.run("list").stdout.splitlines()[2]
    assert row.split()[0] == "mine"
    assert rented.miner in row
    program = shlex.join([*PROGRAM, "offers", "--all"])
    script = f"set -o pipefail; {program} | head -n 1"
    ran = subprocess.run(
        ["bash", "-c", script], env=rented.environment, capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    assert (ran.returncode, ran.stdout.split()[:2]) == (0, ["UID", "GPU"]), ran.stderr
    lines = subprocess.run(
        PROGRAM,
        env=rented.environment,
        input="list_ah\nexit\n",
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert (lines.returncode, lines.stdout) == (0, f"{rented.miner}\n")


def test_without_a_terminal_the_line_to_run_instead_does_it(rented: Renting) -> None:
    for words in (["restart", "mine"], ["deallocate", "mine"]):
        refused = rented.run(*words)
        assert (refused.returncode, refused.stdout) == (2, "")
        start, _, line = refused.stderr.splitlines()[-1].partition("register.py ")
        assert start == "To do it, run: "
        assert rented.run(*shlex.split(line)).returncode == 0
    assert rented.json("list") == []


def test_every_command_speaks_json(renting: Renting) -> None:
    done = {"done": ["mine"]}
    (offer,) = renting.json("offers")
    assert (offer["free"], len(offer["claims"]["gpus"])) == (True, 2)
    (ranked,) = renting.json("allocate", "--explain")
    assert ranked["rank"] == 1
    grant = renting.json("allocate-hotkey", renting.miner, "--name", "mine")
    assert isinstance(grant, dict)
    assert (grant["name"], grant["state"]) == ("mine", "active")
    assert isinstance(shown := renting.json("show", "mine"), dict)
    assert shown["live"] is True
    ran = renting.run("exec", "mine", "--json", "--", "sh", "-c", "echo out; echo err >&2; exit 9")
    assert (ran.returncode, json.loads(ran.stdout)) == (9, {"exit_code": 9, "stdout": "out\n", "stderr": "err\n"})
    for words in (["pause", "mine"], ["resume", "mine"], ["restart", "mine", "--yes"], ["exchange-key", "mine"]):
        assert renting.json(*words) == done
    assert isinstance(extended := renting.json("extend", "mine", "--days", "200"), dict)
    assert extended["ends_at"] > grant["ends_at"]
    assert renting.json("penalize", renting.miner) == renting.json("unpenalize", renting.miner)
    assert renting.json("penalized") == []
    assert renting.json("deallocate", "mine", "--yes") == done
    refused = renting.run("show", "mine", "--json")
    assert (refused.returncode, refused.stdout) == (5, "")
    assert set(json.loads(refused.stderr)) == {"error", "reason", "next"}


def test_errors_end_with_the_next_thing_to_do(rented: Renting) -> None:
    for code, words, next_step in (
        (2, ["allocate", "--days", "0"], "--help"),
        (2, ["allocate", "{'gpu': 1"], "All options: register.py allocate --help"),
        (2, ["allocate-hotkey", rented.miner], "See it: register.py show mine"),
        (2, ["deallocate"], "See what there is: register.py list"),
        (3, ["offers", "--subtensor.chain_endpoint", "ws://127.0.0.1:9"], "--subtensor.chain_endpoint ws://HOST:PORT"),
        (3, ["offers", "--netuid", "9"], "--subtensor.chain_endpoint"),
        (5, ["show", "nope"], "register.py list"),
        (5, ["allocate", "--gpu", "H200"], "register.py offers --all"),
    ):
        ran = rented.run(*words)
        assert (ran.returncode, ran.stdout) == (code, ""), ran.stderr
        assert next_step in ran.stderr.splitlines()[-1]
        assert "Traceback" not in ran.stderr


def test_a_miner_that_refuses_is_six_and_one_that_is_gone_is_four(
    rented: Renting, stage: Stage, tmp_path: Path
) -> None:
    other = {"SQLITE_DB_PATH": f"{rented.environment['HOME']}/other.db"}
    ran = rented.run("allocate-hotkey", rented.miner, **other)
    assert ran.returncode == 6, ran.stderr
    assert ran.stderr.splitlines()[-1].endswith("register.py offers")
    rented.run("pause", "mine")
    ran = rented.run("exec", "mine", "--", "true")
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1] == "Thaw it first: register.py resume mine"

    miner = stage.processes.pop("miner")
    miner.terminate()
    miner.wait(_SECONDS)
    try:
        ran = rented.run("resume", "mine")
        assert ran.returncode == 4, ran.stderr
        assert ran.stderr.splitlines()[-1].endswith("register.py offers")
        assert rented.run("deallocate", "mine", "--yes").returncode == 4
        assert rented.run("deallocate", "mine", "--yes", "--forget").returncode == 0
    finally:
        # The lease, whose owner has forgotten it, is not the next test's affair.
        stage.database_path("miner").unlink()
        serve(stage, tmp_path)
