"""The environment of child processes that run this package."""

from __future__ import annotations

import os
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


def child_environment() -> dict[str, str]:
    """This process's own, in which ``python -m compute.…`` runs this very code, whatever the current folder is."""
    search_path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": search_path}
