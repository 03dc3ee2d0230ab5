"""A remote, an operator's clone of it, and a small neuron in it that updates itself by the real code."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.waiting import DEADLINE_SECONDS, until

ROOT = Path(__file__).resolve().parents[3]
# The small neuron, its options and its self-test; more would only make each start slow.
_KEPT = (
    "compute.miner.options, compute.validator, compute.base.logs, compute.update.self_update, compute.incentive.config"
)

PROGRAM = '''\
"""Stands in for the service; everything around it is the real neuron's."""

import asyncio
import json
import os
import sqlite3
import time

from compute.base import logs, tasks
from compute.base.clock import SystemClock
from compute.base.process import run_neuron
from compute.update.self_update import Pace, SelfUpdate

WORD = "{word}"


def note(options, **more):
    line = {{"word": WORD, "pid": os.getpid(), "files": len(os.listdir("/proc/self/fd")), **more}}
    with open(options.database.parent / "events", "a") as file:
        file.write(json.dumps(line) + "\\n")


def run(options):
    update = SelfUpdate("miner", options, SystemClock(), pace=Pace(look=0.3, up={up}, calm={calm}))
    note(options)
    {at_start}

    async def main():
        logs.configure(options.logging, program="miner")
        up = asyncio.Event()

        async def service():
            {in_service}
            up.set()
            await asyncio.Event().wait()

        async def safe():
            pass

        await update.beside(service(), up=up, safe=safe)

    return update.finish(run_neuron(main))
'''


def git(folder: Path, *arguments: str) -> str:
    """Run git there."""
    identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.com"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Lab:
    """``remote`` (bare), ``author`` who pushes to it, ``clone`` of the operator, and the neuron's ``home``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.remote, self.author, self.clone = folder / "remote.git", folder / "author", folder / "clone"
        self.home = folder / "home"
        self.home.mkdir()
        self.python = sys.executable
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(("BT_", "PIP_"))}
        self.environment |= {"HOME": str(self.home), "GIT_CONFIG_GLOBAL": "/dev/null"}
        self.environment.pop("PYTHONPATH", None)
        self.processes: list[subprocess.Popen[bytes]] = []

    def publish(
        self, word: str, *, requirements: str | None = None, up: float = 30, calm: float = 0.3, **program: str
    ) -> str:
        """Push a release; returns its commit."""
        filled = {"at_start": "pass", "in_service": "pass", **program}
        text = PROGRAM.format(word=word, up=up, calm=calm, **filled)
        files = {"requirements.txt": requirements} if requirements else {}
        return self.push({"compute/miner/program.py": text, **files}, word)

    def push(self, files: dict[str, str | None], message: str) -> str:
        """Commit files (None removes one) and push."""
        for name, text in files.items():
            path = self.author / name
            if text is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
        git(self.author, "add", "--all")
        git(self.author, "commit", "--quiet", "--allow-empty", "-m", message)
        git(self.author, "push", "--quiet", "origin", "main")
        return git(self.author, "rev-parse", "HEAD")

    def head(self) -> str:
        return git(self.clone, "rev-parse", "HEAD")

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """Start the neuron, as a shell would."""
        with open(self.home / "log", "ab") as log:
            process = subprocess.Popen(
                [self.python, str(self.clone / "neurons" / "miner.py"), *options],
                cwd=self.home,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def events(self) -> list[dict[str, object]]:
        file = self.home / "events"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def words(self) -> list[object]:
        return [event["word"] for event in self.events()]

    def last_words(self) -> dict[object, object]:
        """What each process runs now."""
        return {event["pid"]: event["word"] for event in self.events()}

    def tables(self) -> str:
        """What is in the neuron's database, where it has one."""
        with contextlib.closing(sqlite3.connect(self.home / "database.db")) as connection:
            return "\n".join(connection.iterdump())

    def log(self) -> str:
        return (self.home / "log").read_text(encoding="utf-8")

    def state(self, pattern: str) -> list[Path]:
        """Files that the clone keeps of its updates."""
        return sorted((self.clone / ".git" / "compute-update").glob(pattern))

    def trial(self) -> list[Path]:
        """The file of the commit that is on trial."""
        return self.state("trial")

    def failures(self) -> dict[str, dict[str, object]]:
        files = self.state("failures")
        return json.loads(files[0].read_text()) if files else {}

    def until(self, condition: Callable[[], object], what: str) -> None:
        until(condition, what, dump=lambda: self.log()[-6000:])

    def until_settled(self, word: str) -> None:
        """``word`` runs, and is on trial no more."""
        self.until(lambda: self.words()[-1:] == [word] and not self.trial(), f"{word} is up")

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(DEADLINE_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@pytest.fixture(scope="session")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first commit: this project, cut down to what a neuron needs to update itself."""
    folder = tmp_path_factory.mktemp("seed") / "tree"
    ours = "[module.__file__ for name, module in sys.modules.items() if name.startswith('compute')]"
    code = f"import {_KEPT}, json, sys; print(json.dumps({ours}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    program = [ROOT / "neurons" / name for name in ("__init__.py", "miner.py")]
    for file in (*map(Path, json.loads(done.stdout)), *program, ROOT / "config.yaml", ROOT / ".gitignore"):
        target = folder / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    (folder / "requirements.txt").write_text("# nothing more than is there\n")
    return folder


@pytest.fixture
def lab(tmp_path: Path, seed: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", str(lab.remote))
    shutil.copytree(seed, lab.author)
    git(lab.author, "init", "--quiet", "--initial-branch=main")
    git(lab.author, "remote", "add", "origin", lab.remote.as_uri())
    lab.publish("one")
    git(tmp_path, "clone", "--quiet", lab.remote.as_uri(), str(lab.clone))
    try:
        yield lab
    finally:
        lab.stop()
