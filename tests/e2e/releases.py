"""A clone that neurons run from, and its remote, where an author publishes what a test wants."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def git(folder: Path, *arguments: str) -> str:
    """What git says."""
    command = ["git", "-c", "user.name=someone", "-c", "user.email=someone@example.com", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


class Releases:
    """The remote is ``folder/author``, the clone ``folder/clone``. Its neurons look for a release every 3 s."""

    def __init__(self, folder: Path) -> None:
        self._author, self.clone = folder / "author", folder / "clone"
        for name in ("compute", "neurons"):
            shutil.copytree(ROOT / name, self._author / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("config.yaml", "requirements.txt", "ecosystem.config.js", ".gitignore"):
            shutil.copy(ROOT / name, self._author / name)
        # Half an hour is long for a test; this is the one line that differs from what operators run.
        self.edit("compute/update/self_update.py", "look: float = 1800.0", "look: float = 3.0")
        git(self._author, "init", "--quiet", "--initial-branch=main")
        self.publish()
        git(folder, "clone", "--quiet", self._author.as_uri(), str(self.clone))

    def edit(self, name: str, before: str, after: str) -> None:
        """Put ``after`` where ``before`` stands in a file of the author's, once."""
        path = self._author / name
        text = path.read_text(encoding="utf-8")
        assert text.count(before) == 1
        path.write_text(text.replace(before, after), encoding="utf-8")

    def number(self, before: str, after: str) -> None:
        """Give the next release its version."""
        self.edit("compute/__init__.py", f'__version__ = "{before}"', f'__version__ = "{after}"')

    def start_with(self, statement: str) -> None:
        """Let a neuron of the next release begin with ``statement``, after all that its check runs."""
        self.edit("compute/base/process.py", "    gc.collect()\n    gc.freeze()\n", f"    {statement}\n")

    def publish(self) -> str:
        """The commit that the remote has from now on."""
        git(self._author, "add", "--all")
        git(self._author, "commit", "--quiet", "--message", "release")
        return git(self._author, "rev-parse", "HEAD")

    def taken(self) -> str:
        """The commit that the clone is at."""
        return git(self.clone, "rev-parse", "HEAD")
