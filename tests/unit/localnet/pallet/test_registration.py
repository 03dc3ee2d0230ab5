from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compute.localnet.pallet.errors import DispatchError
from compute.localnet.pallet.registration import (
    EXISTENTIAL_DEPOSIT,
    MIN_STAKE,
    add_stake,
    burned_register,
    decayed_burn,
    uid_to_prune,
)
from compute.localnet.pallet.state import Account, Axon, Hyperparameters, Neuron, State, Subnet

NETUID = 27
BURN = 1_000_000


def _neuron(name: str, *, registered_at: int = 0, emission: int = 0, **fields: object) -> Neuron:
    return Neuron(name, "cold", registered_at=registered_at, last_update=registered_at, emission=emission, **fields)


def _state(*neurons: Neuron, block: int = 100, free: int = 10**12, burn: int = BURN, **settings: object) -> State:
    hyperparameters = Hyperparameters(min_burn=100, immunity_period=50)
    for name, value in settings.items():
        hyperparameters = hyperparameters.with_value(name, value)
    subnet = Subnet(0, hyperparameters, burn=burn, last_epoch_block=0, neurons=neurons)
    return State(block, accounts={"cold": Account(0, free)}, subnets={NETUID: subnet})


def test_registration_appends_a_neuron_takes_the_burn_and_raises_it() -> None:
    after = burned_register(_state(_neuron("old")), "cold", netuid=NETUID, hotkey="new")
    subnet = after.subnets[NETUID]
    assert subnet.uid_of("new") == 1
    assert subnet.neurons[1] == Neuron("new", "cold", registered_at=100, last_update=100)
    assert after.account("cold").free == 10**12 - BURN
    assert after.owners == {"new": "cold"}
    assert subnet.burn == BURN * 126 // 100


@pytest.mark.parametrize(
    ("changes", "arguments", "error"),
    [
        ({}, {"netuid": 0}, "RegistrationNotPermittedOnRootSubnet"),
        ({}, {"netuid": 28}, "SubnetNotExists"),
        ({"registration_allowed": False}, {}, "SubNetRegistrationDisabled"),
        ({}, {"hotkey": "old"}, "HotKeyAlreadyRegisteredInSubNet"),
        ({"free": BURN + EXISTENTIAL_DEPOSIT - 1}, {}, "NotEnoughBalanceToStake"),
        ({}, {"hotkey": "of another"}, "NonAssociatedColdKey"),
    ],
)
def test_each_rule_has_its_name(changes: dict, arguments: dict, error: str) -> None:
    state = _state(_neuron("old"), **changes).with_owner("of another", "another")
    with pytest.raises(DispatchError) as caught:
        burned_register(state, "cold", **{"netuid": NETUID, "hotkey": "new", **arguments})
    assert caught.value.name == error


def test_the_last_rao_above_the_deposit_is_enough() -> None:
    state = _state(free=BURN + EXISTENTIAL_DEPOSIT)
    assert burned_register(state, "cold", netuid=NETUID, hotkey="new").account("cold").free == EXISTENTIAL_DEPOSIT


def test_a_full_subnet_replaces_the_lowest_and_forgets_what_was_its() -> None:
    low = _neuron("low", emission=1, axon=Axon(block=3, ip=9), weights=((0, 5),), bonds=((0, 5),), incentive=7)
    high = _neuron("high", emission=9, weights=((0, 65535), (1, 30)))
    state = _state(low, high, max_allowed_uids=2, min_non_immune_uids=0)
    subnet = burned_register(state, "cold", netuid=NETUID, hotkey="new").subnets[NETUID]
    assert [neuron.hotkey for neuron in subnet.neurons] == ["new", "high"]
    assert subnet.neurons[0] == Neuron("new", "cold", registered_at=100, last_update=100)
    assert subnet.neurons[1].weights == ((0, 0), (1, 30))


def test_the_lowest_emission_goes_first_then_the_oldest_then_the_lowest_uid() -> None:
    def pruned(*neurons: Neuron) -> int | None:
        return uid_to_prune(_state(*neurons, min_non_immune_uids=0).subnets[NETUID], 1000)

    assert pruned(_neuron("a", emission=5), _neuron("b", emission=4)) == 1
    assert pruned(_neuron("a", registered_at=7), _neuron("b", registered_at=3)) == 1
    assert pruned(_neuron("a"), _neuron("b")) == 0
    assert pruned() is None


def test_the_immune_are_spared_while_enough_others_are_there() -> None:
    old, young = _neuron("old", registered_at=0, emission=100), _neuron("young", registered_at=60)
    subnet = _state(young, old, min_non_immune_uids=0).subnets[NETUID]
    assert uid_to_prune(subnet, 109) == 1
    assert uid_to_prune(subnet, 110) == 0  # its immunity has ended
    guarded = replace(subnet, hyperparameters=subnet.hyperparameters.with_value("min_non_immune_uids", 1))
    assert uid_to_prune(guarded, 109) == 0


def test_a_subnet_without_a_candidate_refuses() -> None:
    old = _neuron("old", registered_at=0)
    with pytest.raises(DispatchError, match="NoNeuronIdAvailable"):
        burned_register(_state(old, max_allowed_uids=1, min_non_immune_uids=1), "cold", netuid=NETUID, hotkey="new")


def test_the_burn_halves_in_its_half_life() -> None:
    subnet = _state(burn=10**9, burn_half_life=360).subnets[NETUID]
    for _ in range(360):
        subnet = replace(subnet, burn=decayed_burn(subnet))
    assert subnet.burn == pytest.approx(5 * 10**8, rel=1e-4)


@given(st.integers(0, 10**12), st.integers(0, 1000))
def test_the_burn_stays_within_its_bounds(burn: int, half_life: int) -> None:
    state = _state(burn=burn, burn_half_life=half_life, min_burn=500, max_burn=10**6, free=10**15)
    subnet = state.subnets[NETUID]
    assert 500 <= decayed_burn(subnet) <= 10**6
    assert 500 <= burned_register(state, "cold", netuid=NETUID, hotkey="new").subnets[NETUID].burn <= 10**6


# staking


def test_staking_moves_balance_to_the_hotkey() -> None:
    state = _state(_neuron("hot"), free=10**10).with_owner("hot", "someone")
    after = add_stake(state, "cold", hotkey="hot", netuid=NETUID, amount_staked=MIN_STAKE)
    after = add_stake(after, "cold", hotkey="hot", netuid=NETUID, amount_staked=MIN_STAKE)
    assert after.account("cold").free == 10**10 - 2 * MIN_STAKE
    assert after.subnets[NETUID].stakes == {"hot": {"cold": 2 * MIN_STAKE}}
    assert after.subnets[NETUID].stake_of("hot") == 2 * MIN_STAKE


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"netuid": 28}, "SubnetNotExists"),
        ({"amount_staked": MIN_STAKE - 1}, "AmountTooLow"),
        ({"amount_staked": 10**10 - EXISTENTIAL_DEPOSIT + 1}, "NotEnoughBalanceToStake"),
        ({"hotkey": "stranger"}, "HotKeyAccountNotExists"),
    ],
)
def test_each_rule_of_staking_has_its_name(arguments: dict, error: str) -> None:
    state = _state(_neuron("hot"), free=10**10).with_owner("hot", "cold")
    with pytest.raises(DispatchError) as caught:
        add_stake(state, "cold", **{"hotkey": "hot", "netuid": NETUID, "amount_staked": MIN_STAKE, **arguments})
    assert caught.value.name == error
