"""Yuma consensus, version 3: from stake, weights and bonds to incentive, dividends, trust and new bonds.

The formulas are those of ``epoch_mechanism`` in epoch/run_epoch of the subtensor repository, in floating point instead
of 32-bit fractions. Shapes: n neurons; vectors are [n], matrices [n, n] with validators as rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

_U16 = 65_535


@dataclass(frozen=True)
class Parameters:
    """Proportions in [0, 1] and block counts. ``bonds_moving_average`` is the share that old bonds keep per epoch."""

    tempo: int
    activity_cutoff: int
    max_validators: int
    kappa: float = 32_767 / _U16
    bonds_penalty: float = 1.0
    bonds_moving_average: float = 0.9
    liquid_alpha: bool = False
    alpha_low: float = 0.7
    alpha_high: float = 0.9
    alpha_steepness: float = 1000.0


@dataclass(frozen=True)
class Inputs:
    """A subnet at the end of an epoch. ``stake`` in any unit, zero below the threshold; ``weights`` unnormalised;
    ``bonds`` in [0, 1]; block numbers elsewhere. ``last_step`` is the block of the epoch before, 0 for none.
    ``oldest_commit`` is the block of each neuron's oldest open commit where weights are committed and revealed."""

    block: int
    last_step: int
    stake: Floats
    weights: Floats
    bonds: Floats
    last_update: Integers
    registered_at: Integers
    validator_permit: Booleans
    oldest_commit: Integers | None = None


@dataclass(frozen=True)
class Outputs:
    """Every score is in [0, 1]; incentive, dividends, stake and emission each sum to 1 or are all zero."""

    stake: Floats
    active: Booleans
    validator_permit: Booleans
    consensus: Floats
    validator_trust: Floats
    incentive: Floats
    dividends: Floats
    emission: Floats
    bonds: Floats


def run_epoch(inputs: Inputs, parameters: Parameters) -> Outputs:
    """One epoch of one subnet."""
    active = inputs.last_update + parameters.activity_cutoff >= inputs.block
    stake = _normalized(inputs.stake)
    new_permit = top_nonzero(stake, parameters.max_validators)
    active_stake = _normalized(np.where(active & inputs.validator_permit, stake, 0.0))

    weights = _rows_normalized(_counted_weights(inputs))
    consensus = _consensus(active_stake, weights, parameters.kappa)
    clipped = np.minimum(weights, consensus)
    incentive = _normalized(active_stake @ clipped)

    old_bonds = np.where(_is_newcomer(inputs, parameters.tempo)[None, :], 0.0, inputs.bonds)
    for_bonds = weights + parameters.bonds_penalty * (clipped - weights)
    alpha = _bond_alpha(for_bonds, old_bonds, consensus, parameters)
    bonds = np.clip((1 - alpha) * old_bonds + alpha * for_bonds, 0.0, 1.0)
    dividends = _normalized((_columns_normalized(bonds) @ incentive) * active_stake)

    emission = _normalized(incentive + dividends)
    if not emission.any():
        emission = active_stake if active_stake.any() else stake
    return Outputs(
        stake=stake,
        active=active,
        validator_permit=new_permit,
        consensus=consensus,
        validator_trust=clipped.sum(axis=1),
        incentive=incentive,
        dividends=dividends,
        emission=emission,
        bonds=_kept_bonds(bonds, inputs, new_permit),
    )


def to_u16(values: Floats) -> Integers:
    """Proportions as the chain stores them: truncated to 16 bits."""
    # The tolerance undoes what floating point lost where the chain's fractions are exact (1.0, 0.5, …).
    return np.clip(np.floor(values * _U16 + 1e-6), 0, _U16).astype(np.int64)


def _counted_weights(inputs: Inputs) -> Floats:
    """Weights of permitted validators, without those on themselves and those older than their target."""
    outdated = inputs.last_update[:, None] <= inputs.registered_at[None, :]
    if inputs.oldest_commit is not None:
        outdated |= inputs.oldest_commit[:, None] < inputs.registered_at[None, :]
    ignored = outdated | ~inputs.validator_permit[:, None] | np.eye(len(inputs.stake), dtype=bool)
    return np.asarray(np.where(ignored, 0.0, inputs.weights))


def _consensus(active_stake: Floats, weights: Floats, kappa: float) -> Floats:
    """For each column the highest weight that more than 1 - kappa of the stake supports: the stake-weighted median."""
    voters = active_stake > 0
    if not voters.any():
        return np.zeros(weights.shape[1])
    stake, votes = _normalized(active_stake[voters]), weights[voters]
    order = np.argsort(votes, axis=0, kind="stable")
    ranked = np.take_along_axis(votes, order, axis=0)
    ranked_stake = stake[order]
    stake_before = np.cumsum(ranked_stake, axis=0) - ranked_stake
    # Of equal weights only the first counts, for the stake below it.
    is_first = np.ones_like(ranked, dtype=bool)
    is_first[1:] = ranked[1:] != ranked[:-1]
    supported = is_first & (stake_before <= 1 - kappa + 1e-12)
    return np.asarray(np.where(supported, ranked, 0.0).max(axis=0))


def _is_newcomer(inputs: Inputs, tempo: int) -> Booleans:
    """Neurons that registered since the epoch before: bonds to them belong to their uid's former owner."""
    last_tempo = inputs.last_step + 1 if inputs.last_step else max(inputs.block - tempo, 0)
    return inputs.registered_at >= last_tempo


def _bond_alpha(weights: Floats, bonds: Floats, consensus: Floats, parameters: Parameters) -> Floats | float:
    """How much of the new weights enters the bonds: one share for all, or with liquid alpha one for each pair."""
    if not parameters.liquid_alpha or not consensus.any():
        return 1 - parameters.bonds_moving_average
    buying, selling = np.clip(weights - consensus, 0, 1), np.clip(bonds - weights, 0, 1)
    difference = np.where(weights >= bonds, buying, selling)
    exponent = np.clip(-parameters.alpha_steepness / 100 * (difference - 0.5), -20, 20)
    spread = parameters.alpha_high - parameters.alpha_low
    alpha = parameters.alpha_low + spread / (1 + np.exp(exponent))
    return np.asarray(np.clip(alpha, parameters.alpha_low, parameters.alpha_high), dtype=np.float64)


def _kept_bonds(bonds: Floats, inputs: Inputs, new_permit: Booleans) -> Floats:
    """New bonds of those who hold a permit, none for those who lost it, the old ones for those who had none."""
    untouched = np.where(inputs.validator_permit[:, None], 0.0, inputs.bonds)
    return np.where(new_permit[:, None], bonds, untouched)


def top_nonzero(stake: Floats, count: int) -> Booleans:
    """Who is among the ``count`` largest and not zero; of equal ones the higher uids are."""
    top = np.zeros(len(stake), dtype=bool)
    top[np.argsort(stake, kind="stable")[-count:]] = True
    return top & (stake > 0)


def _normalized(vector: Floats) -> Floats:
    total = vector.sum()
    return vector / total if total else np.zeros_like(vector)


def _rows_normalized(matrix: Floats) -> Floats:
    totals = matrix.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(matrix, totals, out=np.zeros_like(matrix), where=totals != 0))


def _columns_normalized(matrix: Floats) -> Floats:
    totals = matrix.sum(axis=0)
    return np.asarray(np.divide(matrix, totals, out=np.zeros_like(matrix), where=totals != 0))
