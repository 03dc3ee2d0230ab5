"""Setting and committing weights: the chain's rules, in the chain's order (subnets/weights.rs)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from compute.localnet.pallet.errors import ensure
from compute.localnet.pallet.state import U16_MAX, Commit, State, Subnet

COMMIT_REVEAL_VERSION = 4
_MAX_UNREVEALED_COMMITS = 10
_ROOT = 0
_MAIN_MECHANISM = 0


def set_weights(
    state: State,
    hotkey: str,
    *,
    netuid: int,
    dests: Sequence[int],
    weights: Sequence[int],
    version_key: int,
    mecid: int = _MAIN_MECHANISM,
) -> State:
    """Store a validator's weights, scaled so that the largest is 65535.

    Raises:
        DispatchError: with the first rule that is broken.
    """
    subnet = state.subnets.get(netuid)
    is_direct = subnet is None or not subnet.hyperparameters.commit_reveal_weights_enabled
    ensure(is_direct, "CommitRevealEnabled")
    return store_weights(
        state, hotkey, netuid=netuid, dests=dests, weights=weights, version_key=version_key, mecid=mecid
    )


def store_weights(
    state: State,
    hotkey: str,
    *,
    netuid: int,
    dests: Sequence[int],
    weights: Sequence[int],
    version_key: int,
    mecid: int = _MAIN_MECHANISM,
) -> State:
    """What setting and revealing have in common. Revealed weights have no rate limit: their commit had.

    Raises:
        DispatchError: with the first rule that is broken.
    """
    ensure(netuid != _ROOT, "CanNotSetRootNetworkWeights")
    ensure(len(dests) == len(weights), "WeightVecNotEqualSize")
    subnet = _mechanism(state, netuid, mecid)
    settings = subnet.hyperparameters
    ensure(len(dests) <= len(subnet.neurons), "UidsLengthExceedUidsInSubNet")
    uid = _registered(subnet, hotkey)
    ensure(subnet.stake_of(hotkey) >= settings.stake_threshold, "NotEnoughStakeToSetWeights")
    ensure(settings.weights_version == 0 or version_key >= settings.weights_version, "IncorrectWeightVersionKey")
    is_revealed = settings.commit_reveal_weights_enabled
    ensure(is_revealed or _is_allowed_by_rate(subnet, uid, state.number), "SettingWeightsTooFast")
    is_self_weight = len(weights) == 1 and dests[0] == uid
    ensure(is_self_weight or subnet.neurons[uid].validator_permit, "NeuronNoValidatorPermit")
    ensure(len(set(dests)) == len(dests), "DuplicateUids")
    ensure(all(target < len(subnet.neurons) for target in dests), "UidVecContainInvalidOne")
    required = min(settings.min_allowed_weights, len(subnet.neurons))
    ensure(is_self_weight or len(weights) >= required, "WeightVecLengthIsLow")
    scaled = scale_by_maximum(weights)
    is_limited = settings.max_weights_limit == U16_MAX or is_self_weight
    ensure(is_limited or _is_within(scaled, settings.max_weights_limit), "MaxWeightExceeded")
    neuron = replace(subnet.neurons[uid], weights=tuple(zip(dests, scaled, strict=True)))
    if not is_revealed:
        neuron = replace(neuron, last_update=state.number)
    return state.with_subnet(netuid, subnet.with_neuron(uid, neuron))


def commit_timelocked(
    state: State,
    hotkey: str,
    *,
    netuid: int,
    mecid: int,
    commit: bytes,
    reveal_round: int,
    commit_reveal_version: int,
) -> State:
    """Store encrypted weights until their reveal round.

    Raises:
        DispatchError: with the first rule that is broken.
    """
    subnet = _mechanism(state, netuid, mecid)
    ensure(subnet.hyperparameters.commit_reveal_weights_enabled, "CommitRevealDisabled")
    ensure(commit_reveal_version == COMMIT_REVEAL_VERSION, "IncorrectCommitRevealVersion")
    uid = _registered(subnet, hotkey)
    ensure(_is_allowed_by_rate(subnet, uid, state.number), "CommittingWeightsTooFast")
    open_commits = sum(other.hotkey == hotkey and other.epoch == subnet.epoch_index for other in subnet.commits)
    ensure(open_commits < _MAX_UNREVEALED_COMMITS, "TooManyUnrevealedCommits")
    stored = Commit(hotkey, subnet.epoch_index, state.number, commit, reveal_round)
    neuron = replace(subnet.neurons[uid], last_update=state.number)
    subnet = replace(subnet, commits=(*subnet.commits, stored)).with_neuron(uid, neuron)
    return state.with_subnet(netuid, subnet)


def guard_weights(state: State, hotkey: str, netuid: int, *, too_fast: str) -> None:
    """What the pool checks of a call that sets or commits weights, before it is in any block.

    Raises:
        DispatchError: ``NotEnoughStakeToSetWeights``, or ``too_fast`` within the rate limit.
    """
    subnet = state.subnets.get(netuid)
    if subnet is None:
        return
    enough = subnet.stake_of(hotkey) >= subnet.hyperparameters.stake_threshold
    ensure(enough, "NotEnoughStakeToSetWeights")
    if too_fast == "SettingWeightsTooFast" and subnet.hyperparameters.commit_reveal_weights_enabled:
        return
    uid = subnet.uid_of(hotkey)
    ensure(uid is None or _is_allowed_by_rate(subnet, uid, state.number), too_fast)


def scale_by_maximum(values: Sequence[int]) -> list[int]:
    """Scale 16-bit values so that the largest is 65535, with the rounding of the chain's 32-bit fractions.

    All zero stays all zero. The formula is ``vec_max_upscale_to_u16`` in epoch/math.
    """
    largest = max(values, default=0)
    if largest == 0:
        return list(values)
    half = 1 << 31
    if largest > 32_768:
        ratio = (U16_MAX << 32) // largest
        return [(value * ratio + half) >> 32 for value in values]
    return [((value * U16_MAX << 32) // largest + half) >> 32 for value in values]


def _mechanism(state: State, netuid: int, mecid: int) -> Subnet:
    ensure(netuid in state.subnets, "SubnetNotExists")
    ensure(mecid == _MAIN_MECHANISM, "MechanismDoesNotExist")
    return state.subnets[netuid]


def _registered(subnet: Subnet, hotkey: str) -> int:
    uid = subnet.uid_of(hotkey)
    ensure(uid is not None, "HotKeyNotRegisteredInSubNet")
    assert uid is not None
    return uid


def _is_allowed_by_rate(subnet: Subnet, uid: int, block: int) -> bool:
    """A ``last_update`` of 0 counts as never, also for a neuron that registered in block 0."""
    last_update = subnet.neurons[uid].last_update
    return last_update == 0 or block - last_update >= subnet.hyperparameters.weights_rate_limit


def _is_within(values: Sequence[int], limit: int) -> bool:
    """Whether the largest value's share of the sum is at most ``limit`` of 65535."""
    total = sum(values)
    return total == 0 or max(values) * U16_MAX <= limit * total
