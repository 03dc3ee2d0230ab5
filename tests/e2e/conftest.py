"""The real pm2, for tests that need it.

Without pm2 they are skipped, or fail where COMPUTE_REQUIRE_PM2=1 says that there must be one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
_SECONDS = 120


class Pm2:
    """A pm2 of its own: its home is in ``folder``, and ``close`` ends it with all that it runs."""

    def __init__(self, folder: Path, cwd: Path, **variables: str) -> None:
        self._cwd = cwd
        self._home = folder / "pm2"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("BT_", "PM2_"))}
        self.environment = {
            **inherited,
            "PM2_HOME": str(self._home),
            "HOME": str(folder),
            # As in an activated virtual environment.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "WANDB_MODE": "offline",
            **variables,
        }

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(
            ["pm2", *arguments],
            cwd=self._cwd,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def processes(self) -> dict[str, dict[str, Any]]:
        """What pm2 knows of each process, by name."""
        listed = json.loads(self("jlist").splitlines()[-1])
        return {process["name"]: process for process in listed}

    def state(self, name: str) -> tuple[str, int]:
        """(status, restarts) of a process."""
        about = self.processes()[name]["pm2_env"]
        return about["status"], about["restart_time"]

    def pid(self, name: str) -> int:
        return int(self.processes()[name]["pid"])

    @property
    def journal(self) -> str:
        """What pm2 itself writes down."""
        return (self._home / "pm2.log").read_text(encoding="utf-8")

    def log(self, name: str) -> str:
        """What a process has written to its standard error."""
        (file,) = self._home.glob(f"logs/{name}-error*.log")
        return file.read_text(encoding="utf-8")

    def close(self) -> None:
        self("kill")


MakePm2 = Callable[..., Pm2]


@pytest.fixture
def make_pm2(tmp_path: Path) -> Iterator[MakePm2]:
    if shutil.which("pm2") is None:
        how = "there is no pm2. Install it with: npm install -g pm2"
        if os.environ.get("COMPUTE_REQUIRE_PM2") == "1":
            pytest.fail(f"COMPUTE_REQUIRE_PM2=1, but {how}")
        pytest.skip(how)
    made: list[Pm2] = []

    def make(cwd: Path = ROOT, **variables: str) -> Pm2:
        made.append(Pm2(tmp_path, cwd, **variables))
        return made[-1]

    yield make
    for pm2 in made:
        pm2.close()
