"""What a neuron publishes of itself on Weights & Biases, and the signatures that say it is its own. Pure.

Nothing in this project decides anything by what is published there: whoever reads it for people checks it first, with
``is_genuine``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from compute.signing import Signer, Verifier

ENTITY = "neuralinternet"
PROJECT = "opencompute"
_CONTENT_TAG = b"compute-subnet published content v1\n"
_SIGNATURES = ("signature", "content_signature")
_INTERNAL = "_wandb"


def signed(content: Mapping[str, Any], run_id: str, hotkey: Signer) -> dict[str, Any]:
    """``content`` with the signatures of ``hotkey``.

    ``signature`` is the network's: over sha256 of the run's id, so that it says whose run this is and nothing of what
    is in it. ``content_signature`` covers the run's id and all the rest.
    """
    signature = hotkey.sign(hashlib.sha256(run_id.encode()).digest()).hex()
    return {
        **content,
        "signature": signature,
        "content_signature": hotkey.sign(_content_bytes(content, run_id)).hex(),
    }


def is_genuine(config: Mapping[str, Any], run_id: str, verify: Verifier) -> bool:
    """Whether the hotkey named in a run's ``config`` has signed all of it, for this very run."""
    hotkey = config.get("hotkey")
    content = {key: value for key, value in config.items() if key not in (*_SIGNATURES, _INTERNAL)}
    try:
        signature, content_signature = (bytes.fromhex(str(config.get(name, ""))) for name in _SIGNATURES)
        return (
            isinstance(hotkey, str)
            and verify(hotkey, hashlib.sha256(run_id.encode()).digest(), signature)
            and verify(hotkey, _content_bytes(content, run_id), content_signature)
        )
    except (ValueError, TypeError, RecursionError):
        return False


def run_name(role: str, hotkey: str) -> str:
    return f"{role}-{hotkey}"


def _content_bytes(content: Mapping[str, Any], run_id: str) -> bytes:
    text = json.dumps([run_id, content], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return _CONTENT_TAG + text.encode()
