"""Signature checks over the SDK's keypairs."""

from __future__ import annotations

import bittensor


def verify_signature(hotkey: str, message: bytes, signature: bytes) -> bool:
    """Whether ``signature`` is ``hotkey``'s (an ss58 address, sr25519) over ``message``. Never raises on bad input."""
    try:
        return bool(bittensor.Keypair(ss58_address=hotkey).verify(message, signature))
    except (ValueError, TypeError):
        return False
