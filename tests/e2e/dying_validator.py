"""The validator, killed by SIGKILL at one step of setting weights: ``dying_validator.py STEP VALIDATOR-OPTIONS…``.

The step ``none`` lets it live. Commits are locked until drand's round 1000, which is over: offline, the signature of a
coming one cannot be had.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import bittensor.core.extrinsics.weights as sdk
import bittensor_drand

from compute.chain.subtensor import SubtensorChain
from compute.localnet.substrate.scale import compact
from compute.update.guard import leave
from compute.validator import program
from compute.validator.options import parse_validator
from compute.validator.store import FactStore, ScoreFact, WeightsState

ROUND = 1000

step = "none"


def reach(name: str) -> None:
    """Die here, if this is the step."""
    if name == step:
        os.kill(os.getpid(), signal.SIGKILL)


class DyingFacts(FactStore):
    """Dies before or after it writes something down."""

    def record_scores(self, scores: Iterable[ScoreFact], *, at: float, block: int) -> None:
        super().record_scores(scores, at=at, block=block)
        reach("scores")

    def begin_weights(self, weights: Mapping[int, int], *, at: float, block: int) -> int:
        reach("before-intent")
        entry = super().begin_weights(weights, at=at, block=block)
        reach("intent")
        return entry

    def advance_weights(self, entry: int, state: WeightsState, detail: str = "") -> None:
        reach(f"before-{state.value}")
        super().advance_weights(entry, state, detail)
        reach(state.value)


class DyingChain(SubtensorChain):
    """Dies when the chain has taken the weights, and nobody has written it down."""

    async def set_weights(self, weights: Mapping[int, int]) -> None:
        await super().set_weights(weights)
        reach("submission")


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
    leave(program.run(parse_validator(sys.argv[2:], os.environ), chain_type=DyingChain, facts_type=DyingFacts))
