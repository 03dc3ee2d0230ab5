"""Registering and staking: the chain's rules, in the chain's order (subnets/registration.rs, staking/add_stake.rs).

Staking here buys one alpha for one TAO, without fee or slippage: there is no market on this chain.
"""

from __future__ import annotations

from dataclasses import replace

from compute.localnet.pallet.errors import ensure
from compute.localnet.pallet.state import Neuron, State, Subnet

EXISTENTIAL_DEPOSIT = 500
MIN_STAKE = 2_000_000
_ROOT = 0


def burned_register(state: State, coldkey: str, *, netuid: int, hotkey: str) -> State:
    """Register a hotkey at the burn price, which rises; a full subnet gives up its least useful neuron.

    Raises:
        DispatchError: with the first rule that is broken.
    """
    ensure(netuid != _ROOT, "RegistrationNotPermittedOnRootSubnet")
    ensure(netuid in state.subnets, "SubnetNotExists")
    subnet = state.subnets[netuid]
    ensure(subnet.hyperparameters.registration_allowed, "SubNetRegistrationDisabled")
    ensure(subnet.uid_of(hotkey) is None, "HotKeyAlreadyRegisteredInSubNet")
    account = state.account(coldkey)
    ensure(account.free - EXISTENTIAL_DEPOSIT >= subnet.burn, "NotEnoughBalanceToStake")
    ensure(state.owners.get(hotkey, coldkey) == coldkey, "NonAssociatedColdKey")
    subnet = replace(_with_registered(subnet, hotkey, coldkey, state.number), burn=_raised_burn(subnet))
    return (
        state.with_account(coldkey, replace(account, free=account.free - state.subnets[netuid].burn))
        .with_owner(hotkey, coldkey)
        .with_subnet(netuid, subnet)
    )


def add_stake(state: State, coldkey: str, *, hotkey: str, netuid: int, amount_staked: int) -> State:
    """Stake free balance to a hotkey.

    Raises:
        DispatchError: with the first rule that is broken.
    """
    ensure(netuid in state.subnets, "SubnetNotExists")
    ensure(amount_staked >= MIN_STAKE, "AmountTooLow")
    account = state.account(coldkey)
    ensure(account.free - EXISTENTIAL_DEPOSIT >= amount_staked, "NotEnoughBalanceToStake")
    ensure(hotkey in state.owners, "HotKeyAccountNotExists")
    return state.with_account(coldkey, replace(account, free=account.free - amount_staked)).with_subnet(
        netuid, state.subnets[netuid].with_stake(hotkey, coldkey, amount_staked)
    )


def decayed_burn(subnet: Subnet) -> int:
    """The burn price one block later: it halves in ``burn_half_life`` blocks, within its bounds."""
    settings = subnet.hyperparameters
    burn = subnet.burn
    if settings.burn_half_life:
        burn = int(burn * 0.5 ** (1 / settings.burn_half_life))
    return min(max(burn, settings.min_burn), settings.max_burn)


def uid_to_prune(subnet: Subnet, block: int) -> int | None:
    """The uid that a registration into a full subnet replaces: lowest emission, then oldest, then lowest uid.

    Neurons in their immunity period are spared as long as more than ``min_non_immune_uids`` others are there.
    """
    settings = subnet.hyperparameters
    ranked = sorted((neuron.emission, neuron.registered_at, uid) for uid, neuron in enumerate(subnet.neurons))
    immune = [uid for _, registered_at, uid in ranked if block - registered_at < settings.immunity_period]
    others = [uid for _, registered_at, uid in ranked if block - registered_at >= settings.immunity_period]
    if len(others) > settings.min_non_immune_uids:
        return others[0]
    return immune[0] if immune else None


def _with_registered(subnet: Subnet, hotkey: str, coldkey: str, block: int) -> Subnet:
    neuron = Neuron(hotkey, coldkey, registered_at=block, last_update=block)
    if len(subnet.neurons) < subnet.hyperparameters.max_allowed_uids:
        return replace(subnet, neurons=(*subnet.neurons, neuron))
    uid = uid_to_prune(subnet, block)
    ensure(uid is not None, "NoNeuronIdAvailable")
    assert uid is not None
    return replace(subnet, neurons=tuple(_without_weight_on(uid, other) for other in subnet.neurons)).with_neuron(
        uid, neuron
    )


def _without_weight_on(uid: int, neuron: Neuron) -> Neuron:
    """Weights set for a uid's former owner count for nothing."""
    if all(target != uid or value == 0 for target, value in neuron.weights):
        return neuron
    return replace(neuron, weights=tuple((target, 0 if target == uid else value) for target, value in neuron.weights))


def _raised_burn(subnet: Subnet) -> int:
    settings = subnet.hyperparameters
    burn = subnet.burn * settings.burn_increase_percent // 100
    return min(max(burn, settings.min_burn), settings.max_burn)
