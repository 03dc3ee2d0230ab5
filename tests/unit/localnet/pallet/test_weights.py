"""The rules for weights: each error by its name, and the order in which they are checked."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compute.localnet.pallet.errors import DispatchError, PoolError
from compute.localnet.pallet.state import Hyperparameters, Neuron, State, Subnet
from compute.localnet.pallet.weights import commit_timelocked, guard_weights, scale_by_maximum, set_weights

NETUID = 27
BLOCK = 100
VALIDATOR, MINER, POOR, STRANGER = "validator", "miner", "poor", "stranger"


def _state(**settings: object) -> State:
    """Uid 0 is a validator with a permit, uid 1 a miner, uid 2 has too little stake and no permit."""
    hyperparameters = Hyperparameters(weights_rate_limit=10, stake_threshold=1000)
    for name, value in settings.items():
        hyperparameters = hyperparameters.with_value(name, value)
    neurons = (
        Neuron(VALIDATOR, "cold", registered_at=1, last_update=50, validator_permit=True),
        Neuron(MINER, "cold", registered_at=1, last_update=50),
        Neuron(POOR, "cold", registered_at=1, last_update=50),
    )
    stakes = {VALIDATOR: {"cold": 5000}, MINER: {"cold": 1000}, POOR: {"cold": 999}, STRANGER: {"cold": 5000}}
    subnet = Subnet(0, hyperparameters, burn=1, last_epoch_block=90, neurons=neurons, stakes=stakes)
    return State(number=BLOCK, subnets={NETUID: subnet})


def _set(state: State, hotkey: str = VALIDATOR, **changes: object) -> State:
    arguments = {"netuid": NETUID, "dests": [1], "weights": [1], "version_key": 0, **changes}
    return set_weights(state, hotkey, **arguments)


def test_weights_are_scaled_by_the_largest_and_count_as_an_update() -> None:
    neuron = _set(_state(), dests=[2, 1], weights=[100, 50]).subnets[NETUID].neurons[0]
    assert neuron.weights == ((2, 65535), (1, 32768))
    assert neuron.last_update == BLOCK


@pytest.mark.parametrize(
    ("hotkey", "settings", "changes", "error"),
    [
        (VALIDATOR, {"commit_reveal_weights_enabled": True}, {}, "CommitRevealEnabled"),
        (VALIDATOR, {}, {"netuid": 0}, "CanNotSetRootNetworkWeights"),
        (VALIDATOR, {}, {"weights": [1, 2]}, "WeightVecNotEqualSize"),
        (VALIDATOR, {}, {"netuid": 28}, "SubnetNotExists"),
        (VALIDATOR, {}, {"mecid": 1}, "MechanismDoesNotExist"),
        (VALIDATOR, {}, {"dests": [0, 1, 2, 3], "weights": [1] * 4}, "UidsLengthExceedUidsInSubNet"),
        (STRANGER, {}, {}, "HotKeyNotRegisteredInSubNet"),
        (POOR, {}, {}, "NotEnoughStakeToSetWeights"),
        (VALIDATOR, {"weights_version": 5}, {"version_key": 4}, "IncorrectWeightVersionKey"),
        (VALIDATOR, {"weights_rate_limit": 51}, {}, "SettingWeightsTooFast"),
        (MINER, {}, {"dests": [0]}, "NeuronNoValidatorPermit"),
        (VALIDATOR, {}, {"dests": [1, 1], "weights": [1, 1]}, "DuplicateUids"),
        (VALIDATOR, {}, {"dests": [3]}, "UidVecContainInvalidOne"),
        (VALIDATOR, {"min_allowed_weights": 2}, {}, "WeightVecLengthIsLow"),
        (VALIDATOR, {"max_weights_limit": 40000}, {}, "MaxWeightExceeded"),
    ],
)
def test_each_rule_has_its_name(hotkey: str, settings: dict, changes: dict, error: str) -> None:
    with pytest.raises(DispatchError) as caught:
        _set(_state(**settings), hotkey, **changes)
    assert caught.value.name == error


@pytest.mark.parametrize(
    ("hotkey", "settings", "changes"),
    [
        (VALIDATOR, {"weights_version": 5}, {"version_key": 5}),
        (VALIDATOR, {"weights_version": 5}, {"version_key": 6}),
        (VALIDATOR, {"weights_rate_limit": 50}, {}),
        (MINER, {}, {"dests": [1]}),  # a single weight on oneself needs no permit
        (MINER, {"min_allowed_weights": 2, "max_weights_limit": 40000}, {"dests": [1]}),
        (VALIDATOR, {"min_allowed_weights": 100}, {"dests": [0, 1, 2], "weights": [1, 2, 3]}),
        (VALIDATOR, {"max_weights_limit": 40000}, {"dests": [1, 2], "weights": [1, 1]}),
        (VALIDATOR, {"min_allowed_weights": 0}, {"dests": [], "weights": []}),
    ],
)
def test_what_the_rules_allow(hotkey: str, settings: dict, changes: dict) -> None:
    after = _set(_state(**settings), hotkey, **changes)
    assert after.subnets[NETUID].neurons[after.subnets[NETUID].uid_of(hotkey)].last_update == BLOCK


def test_a_neuron_that_never_updated_is_not_too_fast() -> None:
    state = _state(weights_rate_limit=1000)
    subnet = state.subnets[NETUID]
    fresh = subnet.with_neuron(0, replace(subnet.neurons[0], last_update=0))
    _set(state.with_subnet(NETUID, fresh))


def test_rules_are_checked_in_the_chain_s_order() -> None:
    """Each step repairs the first thing that is wrong, and so meets the next."""
    settings = {
        "weights_version": 9,
        "weights_rate_limit": 51,
        "min_allowed_weights": 2,
        "max_weights_limit": 40000,
    }
    met = []

    def attempt(hotkey: str, **changes: object) -> None:
        with pytest.raises(DispatchError) as caught:
            _set(_state(**settings), hotkey, **changes)
        met.append(caught.value.name)

    attempt(STRANGER, netuid=28, dests=[1, 1, 3, 3], weights=[1])
    attempt(STRANGER, netuid=28, dests=[1, 1, 3, 3], weights=[1] * 4)
    attempt(STRANGER, dests=[1, 1, 3, 3], weights=[1] * 4)
    attempt(STRANGER, dests=[3, 3], weights=[1, 1])
    attempt(POOR, dests=[3, 3], weights=[1, 1])
    attempt(MINER, dests=[3, 3], weights=[1, 1])
    attempt(MINER, dests=[3, 3], weights=[1, 1], version_key=9)
    settings["weights_rate_limit"] = 1
    attempt(MINER, dests=[3, 3], weights=[1, 1], version_key=9)
    attempt(VALIDATOR, dests=[3, 3], weights=[1, 1], version_key=9)
    attempt(VALIDATOR, dests=[3], weights=[1], version_key=9)
    attempt(VALIDATOR, dests=[1], weights=[1], version_key=9)
    attempt(VALIDATOR, dests=[1, 2], weights=[9, 1], version_key=9)
    assert met == [
        "WeightVecNotEqualSize",
        "SubnetNotExists",
        "UidsLengthExceedUidsInSubNet",
        "HotKeyNotRegisteredInSubNet",
        "NotEnoughStakeToSetWeights",
        "IncorrectWeightVersionKey",
        "SettingWeightsTooFast",
        "NeuronNoValidatorPermit",
        "DuplicateUids",
        "UidVecContainInvalidOne",
        "WeightVecLengthIsLow",
        "MaxWeightExceeded",
    ]
    _set(_state(**settings), dests=[1, 2], weights=[6, 4], version_key=9)


@given(st.lists(st.integers(0, 65535), max_size=20))
def test_scaling_keeps_order_and_reaches_the_maximum(values: list[int]) -> None:
    scaled = scale_by_maximum(values)
    assert len(scaled) == len(values)
    assert all(0 <= value <= 65535 for value in scaled)
    assert sorted(scaled) == [after for _, after in sorted(zip(values, scaled, strict=True))]
    if any(values):
        assert max(scaled) == 65535
        largest = max(values)
        assert all(abs(after - value * 65535 / largest) <= 0.51 for value, after in zip(values, scaled, strict=True))
    else:
        assert scaled == values


# committing


def _commit(state: State, hotkey: str = VALIDATOR, **changes: object) -> State:
    arguments = {
        "netuid": NETUID,
        "mecid": 0,
        "commit": b"\x00secret",
        "reveal_round": 7,
        "commit_reveal_version": 4,
        **changes,
    }
    return commit_timelocked(state, hotkey, **arguments)


def test_a_commit_is_stored_and_counts_as_an_update() -> None:
    subnet = _commit(_state(commit_reveal_weights_enabled=True)).subnets[NETUID]
    (commit,) = subnet.commits
    assert (commit.hotkey, commit.block, commit.ciphertext, commit.reveal_round) == (VALIDATOR, BLOCK, b"\x00secret", 7)
    assert subnet.neurons[0].last_update == BLOCK
    assert subnet.neurons[0].weights == ()


@pytest.mark.parametrize(
    ("hotkey", "settings", "changes", "error"),
    [
        (VALIDATOR, {"commit_reveal_weights_enabled": False}, {}, "CommitRevealDisabled"),
        (VALIDATOR, {}, {"netuid": 28}, "SubnetNotExists"),
        (VALIDATOR, {}, {"mecid": 1}, "MechanismDoesNotExist"),
        (VALIDATOR, {}, {"commit_reveal_version": 3}, "IncorrectCommitRevealVersion"),
        (STRANGER, {}, {}, "HotKeyNotRegisteredInSubNet"),
        (VALIDATOR, {"weights_rate_limit": 51}, {}, "CommittingWeightsTooFast"),
    ],
)
def test_each_rule_of_committing_has_its_name(hotkey: str, settings: dict, changes: dict, error: str) -> None:
    with pytest.raises(DispatchError) as caught:
        _commit(_state(**{"commit_reveal_weights_enabled": True, **settings}), hotkey, **changes)
    assert caught.value.name == error


def test_ten_commits_an_epoch_are_the_limit() -> None:
    state = _state(commit_reveal_weights_enabled=True, weights_rate_limit=0)
    for _ in range(10):
        state = _commit(state)
    with pytest.raises(DispatchError, match="TooManyUnrevealedCommits"):
        _commit(state)
    next_epoch = replace(state.subnets[NETUID], epoch_index=1)
    _commit(state.with_subnet(NETUID, next_epoch))


# the pool's checks


@pytest.mark.parametrize(
    ("hotkey", "settings", "too_fast", "error"),
    [
        (POOR, {}, "SettingWeightsTooFast", "NotEnoughStakeToSetWeights"),
        (VALIDATOR, {"weights_rate_limit": 51}, "SettingWeightsTooFast", "SettingWeightsTooFast"),
        (VALIDATOR, {"weights_rate_limit": 51}, "CommittingWeightsTooFast", "CommittingWeightsTooFast"),
    ],
)
def test_the_pool_refuses(hotkey: str, settings: dict, too_fast: str, error: str) -> None:
    with pytest.raises(DispatchError) as caught:
        guard_weights(_state(**settings), hotkey, NETUID, too_fast=too_fast)
    assert caught.value.name == error
    assert PoolError.from_guard(caught.value).data == f"Custom error: {1 if hotkey == POOR else 6}"


def test_the_pool_leaves_the_rest_to_dispatch() -> None:
    guard_weights(_state(), VALIDATOR, 28, too_fast="SettingWeightsTooFast")
    guard_weights(_state(), STRANGER, NETUID, too_fast="SettingWeightsTooFast")
    busy = _state(weights_rate_limit=51, commit_reveal_weights_enabled=True)
    guard_weights(busy, VALIDATOR, NETUID, too_fast="SettingWeightsTooFast")
