"""Weights, set and read back: intent → submitted → confirmed, each step in the journal before the next.

A crash between any two steps is repaired by the next call: what the chain holds decides, not what was meant.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from compute.base.clock import Clock
from compute.base.errors import ExtrinsicRefused
from compute.chain.subtensor import Chain, ChainRules, Neuron
from compute.incentive.weights import matches, to_chain
from compute.validator.store import FactStore, WeightsEntry, WeightsState

logger = logging.getLogger(__name__)

REFUSAL_BLOCKS = 25
"""So many blocks after a refusal, five minutes on finney, the chain is asked again: what it refused may have changed,
and a validator that is refused for days must fill neither the chain's pool nor its own log."""

_UNFINISHED = (WeightsState.INTENT, WeightsState.SUBMITTED)
_TOO_FAST = ("SettingWeightsTooFast", "CommittingWeightsTooFast")
_RULES_CHANGED = "The subnet's rules have changed meanwhile: they are read anew before the next try"
_ADVICE = {
    "NotEnoughStakeToSetWeights": "Stake more to this hotkey",
    "NeuronNoValidatorPermit": "Only the hotkeys with the most stake have a validator permit: stake more to this one",
    "IncorrectWeightVersionKey": "The subnet demands a newer release: update this one",
    "IncorrectCommitRevealVersion": "The chain demands another release of the bittensor package: update",
    "TooManyUnrevealedCommits": "The chain reveals earlier commits first",
    "CommitRevealEnabled": _RULES_CHANGED,
    "CommitRevealDisabled": _RULES_CHANGED,
    "WeightVecLengthIsLow": _RULES_CHANGED,
    "MaxWeightExceeded": _RULES_CHANGED,
    "UidVecContainInvalidOne": "The subnet has fewer uids than it had: it is read anew before the next try",
    "UidsLengthExceedUidsInSubNet": "The subnet has fewer uids than it had: it is read anew before the next try",
}
"""What a person can do, or what happens by itself, by the chain's error name."""


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
        wait = self._blocks_to_wait(own, block, rules)
        if wait > 0:
            return SetResult(Outcome.TOO_EARLY, {}, f"the chain takes the next weights in {wait} blocks")
        weights = to_chain(scores, rules.weights, uids)
        if not weights:
            return SetResult(Outcome.NOTHING_TO_SET, {}, "no miner has a score above 0: the chain keeps what it holds")
        entry = self._facts.begin_weights(weights, at=self._clock.now(), block=block)
        try:
            await self._chain.set_weights(weights)
        except ExtrinsicRefused as error:
            detail = f"{error.name}: {error}".rstrip(".")
            if error.name in _ADVICE:
                detail += f". {_ADVICE[error.name]}"
            self._facts.advance_weights(entry, WeightsState.REFUSED, detail)
            return SetResult(Outcome.TOO_EARLY if error.name in _TOO_FAST else Outcome.REFUSED, weights, detail)
        self._facts.advance_weights(entry, WeightsState.SUBMITTED)
        submitted = self._facts.last_weights((WeightsState.SUBMITTED,))
        result = await self._settle(submitted, own.uid, rules) if submitted is not None else None
        return result or SetResult(Outcome.REFUSED, weights, "the chain does not hold what was submitted")

    def _blocks_to_wait(self, own: Neuron, block: int, rules: ChainRules) -> int:
        """Until the chain takes weights, and after a refusal until it is asked again; by nothing but what is stored."""
        wait = rules.weights_rate_limit + 1 - (block - own.last_update)
        last = self._facts.last_weights()
        if last is not None and last.state is WeightsState.REFUSED:
            wait = max(wait, REFUSAL_BLOCKS - (block - last.block))
        return wait

    async def _settle(self, entry: WeightsEntry, own_uid: int, rules: ChainRules) -> SetResult | None:
        """Decide an unfinished entry by what the chain holds; None where the entry is over and a new one is due."""
        # In this order: what is revealed between the two questions is seen by the second.
        commits = await self._chain.open_commits() if rules.commit_reveal else ()
        held = await self._chain.held_weights(own_uid)
        if matches(entry.weights, held):
            self._facts.advance_weights(entry.id, WeightsState.CONFIRMED)
            return SetResult(Outcome.CONFIRMED, entry.weights)
        if any(committed_at > entry.block for committed_at in commits):
            # The chain reveals by itself. Where we crashed after the submission, this is how we learn of it.
            if entry.state is WeightsState.INTENT:
                self._facts.advance_weights(entry.id, WeightsState.SUBMITTED)
            return SetResult(Outcome.PENDING, entry.weights, "committed; the chain has not revealed it yet")
        detail = f"the chain holds {len(held)} weights that are not these"
        self._facts.advance_weights(entry.id, WeightsState.FAILED, detail)
        logger.warning("weights of block %d were not kept: %s", entry.block, detail)
        return None
