"""The end of a subnet's epoch: its neurons into ``yuma``, and the scores back into its neurons.

Emission is computed and shown but paid to nobody: stakes change by staking only, so an experiment stays what it was.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from compute.localnet.pallet import yuma
from compute.localnet.pallet.state import U16_MAX, Hyperparameters, Neuron, Row, Subnet

EMISSION_PER_BLOCK_RAO = 1_000_000_000
_NEVER = 2**62


def end_epoch(subnet: Subnet, block: int) -> Subnet:
    """The subnet after the epoch that ends at ``block``."""
    settings = subnet.hyperparameters
    index = subnet.epoch_index + 1
    commits = tuple(commit for commit in subnet.commits if commit.epoch + settings.commit_reveal_period >= index)
    neurons = _scored(subnet, block) if subnet.neurons else ()
    return replace(subnet, neurons=neurons, commits=commits, epoch_index=index, last_epoch_block=block)


def grant_permits(subnet: Subnet) -> Subnet:
    """Validator permits by today's stake, without waiting for the end of the epoch."""
    if not subnet.neurons:
        return subnet
    stake = _counted_stake(subnet)
    permits = yuma.top_nonzero(stake, subnet.hyperparameters.max_validators)
    neurons = tuple(
        neuron if neuron.validator_permit == permit else replace(neuron, validator_permit=bool(permit))
        for neuron, permit in zip(subnet.neurons, permits, strict=True)
    )
    return replace(subnet, neurons=neurons)


def _scored(subnet: Subnet, block: int) -> tuple[Neuron, ...]:
    neurons = subnet.neurons
    inputs = yuma.Inputs(
        block=block,
        last_step=subnet.last_epoch_block,
        stake=_counted_stake(subnet),
        weights=_matrix([neuron.weights for neuron in neurons]),
        bonds=_matrix([neuron.bonds for neuron in neurons]) / U16_MAX,
        last_update=np.array([neuron.last_update for neuron in neurons], dtype=np.int64),
        registered_at=np.array([neuron.registered_at for neuron in neurons], dtype=np.int64),
        validator_permit=np.array([neuron.validator_permit for neuron in neurons], dtype=bool),
        oldest_commit=_oldest_commits(subnet) if subnet.hyperparameters.commit_reveal_weights_enabled else None,
    )
    outputs = yuma.run_epoch(inputs, _parameters(subnet.hyperparameters))
    emission_rao = EMISSION_PER_BLOCK_RAO * (block - subnet.last_epoch_block)
    scores = zip(
        outputs.active.tolist(),
        outputs.validator_permit.tolist(),
        yuma.to_u16(outputs.stake).tolist(),
        yuma.to_u16(outputs.consensus).tolist(),
        yuma.to_u16(outputs.incentive).tolist(),
        yuma.to_u16(outputs.dividends).tolist(),
        yuma.to_u16(outputs.validator_trust).tolist(),
        (outputs.emission * emission_rao).astype(np.int64).tolist(),
        yuma.to_u16(outputs.bonds).tolist(),
        strict=True,
    )
    return tuple(
        replace(
            neuron,
            active=active,
            validator_permit=permit,
            stake_weight=stake_weight,
            consensus=consensus,
            incentive=incentive,
            dividends=dividends,
            validator_trust=validator_trust,
            emission=emission,
            bonds=_row(bonds),
        )
        for neuron, (
            active,
            permit,
            stake_weight,
            consensus,
            incentive,
            dividends,
            validator_trust,
            emission,
            bonds,
        ) in zip(neurons, scores, strict=True)
    )


def _counted_stake(subnet: Subnet) -> yuma.Floats:
    """Stake by uid, zero where it is below the threshold."""
    stake = np.array([subnet.stake_of(neuron.hotkey) for neuron in subnet.neurons], dtype=np.float64)
    return np.where(stake >= subnet.hyperparameters.stake_threshold, stake, 0.0)


def _oldest_commits(subnet: Subnet) -> yuma.Integers:
    """The block of each neuron's oldest commit that is still open, far in the future where there is none."""
    oldest = {commit.hotkey: commit.block for commit in reversed(subnet.commits)}
    return np.array([oldest.get(neuron.hotkey, _NEVER) for neuron in subnet.neurons], dtype=np.int64)


def _parameters(settings: Hyperparameters) -> yuma.Parameters:
    return yuma.Parameters(
        tempo=settings.tempo,
        activity_cutoff=settings.activity_cutoff,
        max_validators=settings.max_validators,
        kappa=settings.kappa / U16_MAX,
        bonds_penalty=settings.bonds_penalty / U16_MAX,
        bonds_moving_average=settings.bonds_moving_avg / 1_000_000,
        liquid_alpha=settings.liquid_alpha_enabled,
        alpha_low=settings.alpha_low / U16_MAX,
        alpha_high=settings.alpha_high / U16_MAX,
        alpha_steepness=float(settings.alpha_sigmoid_steepness),
    )


def _matrix(rows: list[Row]) -> yuma.Floats:
    matrix = np.zeros((len(rows), len(rows)))
    for uid, row in enumerate(rows):
        for target, value in row:
            matrix[uid, target] = value
    return matrix


def _row(values: list[int]) -> Row:
    return tuple((uid, value) for uid, value in enumerate(values) if value)
