"""The validator, killed by SIGKILL once the chain has its weights: ``dying_validator.py submission OPTIONS…``.

With ``none`` in place of ``submission`` it lives. Commits are locked until drand's round 1000, which is over: offline,
the signature of a coming one cannot be had.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

import bittensor.core.extrinsics.weights as sdk
import bittensor_drand

from compute.chain.subtensor import SubtensorChain
from compute.localnet.substrate.scale import compact
from compute.update.guard import leave
from compute.validator import program
from compute.validator.options import parse_validator

ROUND = 1000

step = "none"


class DyingChain(SubtensorChain):
    """Dies when the chain has taken the weights, and nobody has written it down."""

    async def set_weights(self, weights: Mapping[int, int]) -> None:
        await super().set_weights(weights)
        if step == "submission":
            os.kill(os.getpid(), signal.SIGKILL)


def commit_for_a_round_that_is_over(
    *, uids: list[int], weights: list[int], version_key: int, hotkey: bytes, **_: Any
) -> tuple[bytes, int]:
    """What the SDK's ``get_encrypted_commit_v2`` makes of weights, for another round."""
    content = compact(len(hotkey)) + hotkey
    for numbers in (uids, weights):
        content += compact(len(numbers)) + b"".join(number.to_bytes(2, "little") for number in numbers)
    locked, _ = bittensor_drand.encrypt_at_round(content + version_key.to_bytes(8, "little"), ROUND)
    return bytes(locked)[:-8], ROUND


if __name__ == "__main__":
    step = sys.argv[1]
    sdk.get_encrypted_commit_v2 = commit_for_a_round_that_is_over
    leave(program.run(parse_validator(sys.argv[2:], os.environ), chain_type=DyingChain))
