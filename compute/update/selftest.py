"""What a commit says of itself before it is taken: it imports, understands the command line, and reads its settings.

The release that runs calls the one that might follow it: ``neurons/ROLE.py --self-test DESCRIPTOR NONCE ARGV…``. That
line and the answer, one JSON object on the descriptor, are an interface between releases.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
from collections.abc import Sequence

import compute
from compute.incentive.config import load_config
from compute.update.trial import ROOT


def answer(role: str, arguments: Sequence[str]) -> int:
    """Test this code as ``role`` would run it, and answer on the descriptor; returns the exit code."""
    descriptor, nonce, *argv = arguments
    # By name: an update knows its two roles, and imports neither.
    parse = getattr(importlib.import_module(f"compute.{role}.options"), f"parse_{role}")
    options = parse(argv, os.environ)
    load_config(options.config_file)
    for module in pkgutil.walk_packages(compute.__path__, "compute."):
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)
    importlib.import_module(f"compute.{role}.program")
    document = {"nonce": nonce, "root": str(ROOT), "version": compute.__version__}
    os.write(int(descriptor), json.dumps(document).encode())
    return 0
