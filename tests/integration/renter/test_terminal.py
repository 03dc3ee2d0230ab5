"""``register.py`` as people and scripts use it: at a terminal of 80 columns, in a pipe, without either, with --json.

A real chain and a real miner stand at the other end. The program is a process of its own only where that matters: at a
terminal and in a pipe.
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import psutil
import pytest
from rich.text import Text

from compute.demo.cast import Actor, Kind
from compute.demo.stage import VALIDATOR, Stage
from tests.waiting import DEADLINE_SECONDS, until

from .in_process import Ran, in_process

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = [sys.executable, str(ROOT / "neurons" / "register.py")]
COLUMNS = 80
CTRL_C, CTRL_D = "\x03", "\x04"
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

    def run(self, *words: str, width: int | None = None, **variables: str) -> Ran:
        """Without a terminal."""
        return in_process(words, {**self.environment, **variables}, width=width)

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

        def is_said() -> bool:
            if words in self.text:
                return True
            assert self._read() or words in self.text, f"ended without {words!r}: {self.text}"
            return words in self.text

        until(is_said, f"it says {words!r}", dump=lambda: self.text)
        said, _, self.text = self.text.partition(words)
        return said + words

    def type(self, keys: str) -> None:
        os.write(self._here, keys.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C once the program waits for keys.

        Before that it may be lost: Python looks for signals and then waits for a key. No fingers come in between, but a
        test does.
        """
        process = psutil.Process(self._process.pid)
        until(lambda: process.status() == psutil.STATUS_SLEEPING, "it waits for keys", dump=lambda: self.text)
        self.type(CTRL_C)

    def end(self) -> tuple[int, str]:
        """The exit code, and what was said until the end."""
        until(lambda: not self._read(), "it ends", dump=lambda: self.text)
        return self._process.wait(DEADLINE_SECONDS), self.text

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
    renting = Renting(stage, folder)
    until(lambda: renting.json("offers"), "the miner has an offer", dump=lambda: stage.log_tail("miner"))


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


def test_what_people_read_fits_80_columns(rented: Renting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    assert rented.run("penalize", rented.miner, "--note", "slow").returncode == 0
    for words in (["offers", "--all"], ["list"], ["show", "mine"], ["penalized"], ["--help"], ["allocate"]):
        ran = rented.run(*words, width=COLUMNS)
        assert ran.returncode == (5 if words == ["allocate"] else 0), ran.stderr
        assert ran.stdout if words != ["allocate"] else ran.stderr
        assert fits(ran.stdout), ran.stdout
        assert "Traceback" not in ran.stderr


def test_a_machine_is_given_back_at_a_terminal_only_when_that_is_meant(rented: Renting) -> None:
    with rented.at_terminal("deallocate", "mine") as terminal:
        terminal.until("give back mine? What is stored there is lost. [y/N] ")
        terminal.interrupt()
        code, said = terminal.end()
    assert (code, said.splitlines()[-1]) == (130, "interrupted")
    assert fits(said), said
    assert "Traceback" not in said
    assert [each["name"] for each in rented.json("list")] == ["mine"]


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
        # Nothing, a no and Ctrl-D are no.
        for answer in ("\n", "n\n", CTRL_D):
            terminal.type(f"d {name}\n")
            terminal.until("[y/N] ")
            terminal.type(answer)
            said = terminal.until(prompt)
            assert "To do it without being asked, add --yes." in said, said
            assert "Traceback" not in said
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
        ["bash", "-c", script],
        env=rented.environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert (ran.returncode, ran.stdout.split()[:2]) == (0, ["UID", "GPU"]), ran.stderr
    lines = subprocess.run(
        PROGRAM,
        env=rented.environment,
        input="list_ah\nexit\n",
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
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
    miner.wait(DEADLINE_SECONDS)
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
