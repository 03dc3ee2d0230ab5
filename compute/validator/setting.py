"""Weights, set and read back: intent → submitted → confirmed, each step in the journal before the next.

A crash between any two steps is repaired by the next call: what the chain holds decides, not what was meant.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from compute.chain import Chain, ChainRules, Neuron
from compute.clock import Clock
from compute.errors import ExtrinsicRefused
from compute.validator.facts import FactStore, WeightsEntry, WeightsState
from compute.weights import matches, to_chain

logger = logging.getLogger(__name__)

_UNFINISHED = (WeightsState.INTENT, WeightsState.SUBMITTED)


class Outcome(str, Enum):
    """What one call of ``WeightSetter.set`` did."""

    CONFIRMED = "confirmed"
    PENDING = "pending"
    TOO_EARLY = "too_early"
    NOTHING_TO_SET = "nothing_to_set"
    REFUSED = "refused"


@dataclass(frozen=True)
class SetResult:
    """The outcome, with the u16 weights by uid that the chain holds or was offered, and a text for the log."""

    outcome: Outcome
    weights: Mapping[int, int]
    detail: str = ""


class WeightSetter:
    """Brings the chain's weights in line with scores, as often as the chain's own rate limit allows."""

    def __init__(self, chain: Chain, facts: FactStore, clock: Clock) -> None:
        self._chain = chain
        self._facts = facts
        self._clock = clock

    async def set(self, scores: Mapping[int, float], own: Neuron, *, uids: int, block: int) -> SetResult:
        """Set weights for ``scores`` (by uid) if it is time, then read back what the chain holds.

        Args:
            own: this validator's neuron, as the chain has it at ``block``.
            uids: the number of uids on the subnet.

        Raises:
            ChainError: the chain did not answer; the journal holds how far it got, and the next call goes on there.
            StoreError: the journal cannot be written: then nothing is submitted.
        """
        rules = await self._chain.rules()
        unfinished = self._facts.last_weights(_UNFINISHED)
        if unfinished is not None:
            settled = await self._settle(unfinished, own.uid, rules)
            if settled is not None:
                return settled
        if block - own.last_update <= rules.weights_rate_limit:
            wait = rules.weights_rate_limit + 1 - (block - own.last_update)
            return SetResult(Outcome.TOO_EARLY, {}, f"the chain takes the next weights in {wait} blocks")
        weights = to_chain(scores, rules.weights, uids)
        if not weights:
            return SetResult(Outcome.NOTHING_TO_SET, {}, "no miner has a score above 0: the chain keeps what it holds")
        entry = self._facts.begin_weights(weights, at=self._clock.now(), block=block)
        try:
            await self._chain.set_weights(weights)
        except ExtrinsicRefused as error:
            self._facts.advance_weights(entry, WeightsState.FAILED, f"{error.name}: {error}")
            return SetResult(Outcome.REFUSED, weights, f"{error.name}: {error}")
        self._facts.advance_weights(entry, WeightsState.SUBMITTED)
        submitted = self._facts.last_weights((WeightsState.SUBMITTED,))
        result = await self._settle(submitted, own.uid, rules) if submitted is not None else None
        return result or SetResult(Outcome.REFUSED, weights, "the chain does not hold what was submitted")

    async def _settle(self, entry: WeightsEntry, own_uid: int, rules: ChainRules) -> SetResult | None:
        """Decide an unfinished entry by what the chain holds; None where the entry is over and a new one is due."""
        held = await self._chain.held_weights(own_uid)
        if matches(entry.weights, held):
            self._facts.advance_weights(entry.id, WeightsState.CONFIRMED)
            return SetResult(Outcome.CONFIRMED, entry.weights)
        if rules.commit_reveal and entry.state is WeightsState.SUBMITTED:
            block = await self._chain.block()
            # The chain reveals by itself, some tempos after the commit.
            if block - entry.block <= 4 * rules.tempo:
                return SetResult(Outcome.PENDING, entry.weights, "committed; the chain has not revealed it yet")
        detail = f"the chain holds {len(held)} weights that are not these"
        self._facts.advance_weights(entry.id, WeightsState.FAILED, detail)
        logger.warning("weights of block %d were not kept: %s", entry.block, detail)
        return None
