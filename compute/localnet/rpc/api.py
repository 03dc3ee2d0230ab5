"""Runtime APIs: what ``state_call`` answers, from the state of a block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compute.localnet.pallet.state import Neuron, State, Subnet
from compute.localnet.substrate.codec import key_to_address
from compute.localnet.substrate.metadata import ApiMethod
from compute.localnet.substrate.runtime_types import METAGRAPH_FIELDS

_NO_ACCOUNT = key_to_address(bytes(32))
_RHO = 10
_NAME = list(b"localnet")
_SYMBOL = list("λ".encode())
_PRICE_ONE = {"bits": 1 << 32}
_ONE_ALPHA_RAO = 1_000_000_000


def _neurons(state: State, netuid: int, *, with_rows: bool) -> list[dict[str, Any]]:
    subnet = state.subnets.get(netuid)
    if subnet is None:
        return []
    return [_neuron(subnet, netuid, uid, neuron, with_rows) for uid, neuron in enumerate(subnet.neurons)]


def _one_neuron(state: State, netuid: int, uid: int, *, with_rows: bool) -> dict[str, Any] | None:
    subnet = state.subnets.get(netuid)
    if subnet is None or uid >= len(subnet.neurons):
        return None
    return _neuron(subnet, netuid, uid, subnet.neurons[uid], with_rows)


def _neuron(subnet: Subnet, netuid: int, uid: int, neuron: Neuron, with_rows: bool) -> dict[str, Any]:
    info = {
        "hotkey": neuron.hotkey,
        "coldkey": neuron.coldkey,
        "uid": uid,
        "netuid": netuid,
        "active": neuron.active,
        "axon_info": vars(neuron.axon),
        "prometheus_info": vars(neuron.prometheus),
        "stake": [(neuron.coldkey, subnet.stake_of(neuron.hotkey))],
        "rank": 0,
        "emission": neuron.emission,
        "incentive": neuron.incentive,
        "consensus": neuron.consensus,
        "trust": 0,
        "validator_trust": neuron.validator_trust,
        "dividends": neuron.dividends,
        "last_update": neuron.last_update,
        "validator_permit": neuron.validator_permit,
        "pruning_score": 0,
    }
    return {**info, "weights": neuron.weights, "bonds": neuron.bonds} if with_rows else info


def _per_uid(subnet: Subnet) -> dict[str, list[Any]]:
    neurons = subnet.neurons
    stakes = [subnet.stake_of(neuron.hotkey) for neuron in neurons]
    nothing = [0] * len(neurons)
    return {
        "hotkeys": [neuron.hotkey for neuron in neurons],
        "coldkeys": [neuron.coldkey for neuron in neurons],
        "active": [neuron.active for neuron in neurons],
        "validator_permit": [neuron.validator_permit for neuron in neurons],
        "pruning_score": nothing,
        "last_update": [neuron.last_update for neuron in neurons],
        "emission": [neuron.emission for neuron in neurons],
        "dividends": [neuron.dividends for neuron in neurons],
        "incentives": [neuron.incentive for neuron in neurons],
        "consensus": [neuron.consensus for neuron in neurons],
        "trust": nothing,
        "rank": nothing,
        "block_at_registration": [neuron.registered_at for neuron in neurons],
        "alpha_stake": stakes,
        "tao_stake": nothing,
        "total_stake": stakes,
    }


def _subnet_state(state: State, netuid: int) -> dict[str, Any] | None:
    subnet = state.subnets.get(netuid)
    return None if subnet is None else {"netuid": netuid, **_per_uid(subnet), "emission_history": []}


def _metagraph(state: State, netuid: int, mechanism: int, positions: list[int]) -> dict[str, Any] | None:
    subnet = state.subnets.get(netuid)
    if subnet is None or mechanism != 0:
        return None
    settings = subnet.hyperparameters
    # Position 0 is the netuid, which is always there; what this chain does not have is zero.
    wanted = {METAGRAPH_FIELDS[position - 1][0] for position in positions if 1 <= position <= len(METAGRAPH_FIELDS)}
    values: dict[str, Any] = {
        **dict.fromkeys((name for name, _ in METAGRAPH_FIELDS), 0),
        **{name: getattr(settings, name) for name, _ in METAGRAPH_FIELDS if hasattr(settings, name)},
        **_per_uid(subnet),
        "name": _NAME,
        "symbol": _SYMBOL,
        "identity": None,
        "network_registered_at": subnet.registered_at,
        "owner_hotkey": _NO_ACCOUNT,
        "owner_coldkey": _NO_ACCOUNT,
        "block": state.number,
        "last_step": subnet.last_epoch_block,
        "blocks_since_last_step": state.number - subnet.last_epoch_block,
        "moving_price": _PRICE_ONE,
        "rho": _RHO,
        "num_uids": len(subnet.neurons),
        "max_uids": settings.max_allowed_uids,
        "burn": subnet.burn,
        "pow_registration_allowed": False,
        "identities": [None] * len(subnet.neurons),
        "axons": [vars(neuron.axon) for neuron in subnet.neurons],
        "tao_dividends_per_hotkey": [],
        "alpha_dividends_per_hotkey": [],
        "validators": [],
        "commitments": [],
    }
    selected = {name: values[name] if name in wanted else None for name, _ in METAGRAPH_FIELDS}
    return {"netuid": netuid, **selected}


def _dynamic_info(state: State, netuid: int) -> dict[str, Any] | None:
    subnet = state.subnets.get(netuid)
    if subnet is None:
        return None
    return {
        "netuid": netuid,
        "owner_hotkey": _NO_ACCOUNT,
        "owner_coldkey": _NO_ACCOUNT,
        "subnet_name": _NAME,
        "token_symbol": _SYMBOL,
        "tempo": subnet.hyperparameters.tempo,
        "last_step": subnet.last_epoch_block,
        "blocks_since_last_step": state.number - subnet.last_epoch_block,
        "emission": 0,
        "alpha_in": 0,
        "alpha_out": sum(map(subnet.stake_of, subnet.stakes)),
        "tao_in": 0,
        "alpha_out_emission": 0,
        "alpha_in_emission": 0,
        "tao_in_emission": 0,
        "pending_alpha_emission": 0,
        "pending_root_emission": 0,
        "subnet_volume": 0,
        "network_registered_at": subnet.registered_at,
        "subnet_identity": None,
        "moving_price": _PRICE_ONE,
    }


_HYPERPARAMETER_KINDS: Mapping[str, str] = {
    "kappa": "U16",
    "immunity_period": "U16",
    "min_allowed_weights": "U16",
    "max_weights_limit": "U16",
    "tempo": "U16",
    "weights_version": "U64",
    "weights_rate_limit": "U64",
    "activity_cutoff": "U16",
    "registration_allowed": "Bool",
    "min_burn": "TaoBalance",
    "max_burn": "TaoBalance",
    "bonds_moving_avg": "U64",
    "serving_rate_limit": "U64",
    "max_validators": "U16",
    "commit_reveal_period": "U64",
    "commit_reveal_weights_enabled": "Bool",
    "alpha_high": "U16",
    "alpha_low": "U16",
    "liquid_alpha_enabled": "Bool",
}


def _hyperparameters(state: State, netuid: int) -> list[dict[str, Any]] | None:
    subnet = state.subnets.get(netuid)
    if subnet is None:
        return None
    return [
        {"name": name.encode(), "value": {kind: getattr(subnet.hyperparameters, name)}}
        for name, kind in _HYPERPARAMETER_KINDS.items()
    ]


def _next_epoch_start(state: State, netuid: int) -> int | None:
    subnet = state.subnets.get(netuid)
    return None if subnet is None else subnet.last_epoch_block + subnet.hyperparameters.tempo


def _stake_info(state: State, hotkey: str, coldkey: str, netuid: int) -> dict[str, Any]:
    subnet = state.subnets.get(netuid)
    stake = subnet.stakes.get(hotkey, {}).get(coldkey, 0) if subnet else 0
    return {
        "hotkey": hotkey,
        "coldkey": coldkey,
        "netuid": netuid,
        "stake": stake,
        "locked": 0,
        "emission": 0,
        "tao_emission": 0,
        "drain": 0,
        "is_registered": subnet is not None and subnet.uid_of(hotkey) is not None,
    }


def _stakes_of(state: State, coldkey: str) -> list[dict[str, Any]]:
    return [
        _stake_info(state, hotkey, coldkey, netuid)
        for netuid, subnet in state.subnets.items()
        for hotkey, stakes in subnet.stakes.items()
        if coldkey in stakes
    ]


def _swapped(amount: int) -> dict[str, int]:
    """One TAO is one alpha, without fee or slippage."""
    return {
        "tao_amount": amount,
        "alpha_amount": amount,
        "tao_fee": 0,
        "alpha_fee": 0,
        "tao_slippage": 0,
        "alpha_slippage": 0,
    }


_NETUID = ("netuid", "NetUid")
_UID = ("uid", "u16")

APIS: Mapping[str, Mapping[str, ApiMethod]] = {
    "NeuronInfoRuntimeApi": {
        "get_neurons": ApiMethod(
            (_NETUID,), "Vec<NeuronInfo>", lambda state, netuid: _neurons(state, netuid, with_rows=True)
        ),
        "get_neuron": ApiMethod(
            (_NETUID, _UID),
            "Option<NeuronInfo>",
            lambda state, netuid, uid: _one_neuron(state, netuid, uid, with_rows=True),
        ),
        "get_neurons_lite": ApiMethod(
            (_NETUID,), "Vec<NeuronInfoLite>", lambda state, netuid: _neurons(state, netuid, with_rows=False)
        ),
        "get_neuron_lite": ApiMethod(
            (_NETUID, _UID),
            "Option<NeuronInfoLite>",
            lambda state, netuid, uid: _one_neuron(state, netuid, uid, with_rows=False),
        ),
    },
    "SubnetInfoRuntimeApi": {
        "get_subnet_state": ApiMethod((_NETUID,), "Option<SubnetState>", _subnet_state),
        "get_selective_mechagraph": ApiMethod(
            (_NETUID, ("subid", "MechId"), ("metagraph_indexes", "Vec<u16>")),
            "Option<SelectiveMetagraph>",
            _metagraph,
        ),
        "get_selective_metagraph": ApiMethod(
            (_NETUID, ("metagraph_indexes", "Vec<u16>")),
            "Option<SelectiveMetagraph>",
            lambda state, netuid, positions: _metagraph(state, netuid, 0, positions),
        ),
        "get_subnet_hyperparams_v3": ApiMethod((_NETUID,), "Option<Vec<HyperparamEntry>>", _hyperparameters),
        "get_dynamic_info": ApiMethod((_NETUID,), "Option<DynamicInfo>", _dynamic_info),
        "get_all_dynamic_info": ApiMethod(
            (), "Vec<Option<DynamicInfo>>", lambda state: [_dynamic_info(state, netuid) for netuid in state.subnets]
        ),
        "get_next_epoch_start_block": ApiMethod((_NETUID,), "Option<u64>", _next_epoch_start),
    },
    "StakeInfoRuntimeApi": {
        "get_stake_info_for_hotkey_coldkey_netuid": ApiMethod(
            (("hotkey", "AccountId"), ("coldkey", "AccountId"), _NETUID), "StakeInfo", _stake_info
        ),
        "get_stake_info_for_coldkey": ApiMethod((("coldkey", "AccountId"),), "Vec<StakeInfo>", _stakes_of),
        "get_stake_info_for_coldkeys": ApiMethod(
            (("coldkeys", "Vec<AccountId>"),),
            "Vec<(AccountId,Vec<StakeInfo>)>",
            lambda state, coldkeys: [(coldkey, _stakes_of(state, coldkey)) for coldkey in coldkeys],
        ),
    },
    "SwapRuntimeApi": {
        "current_alpha_price": ApiMethod((_NETUID,), "u64", lambda *_: _ONE_ALPHA_RAO),
        "current_alpha_price_all": ApiMethod(
            (),
            "Vec<SubnetPrice>",
            lambda state: [{"netuid": netuid, "price": _ONE_ALPHA_RAO} for netuid in state.subnets],
        ),
        "sim_swap_tao_for_alpha": ApiMethod(
            (_NETUID, ("tao", "Tao")), "SimSwapResult", lambda _state, _netuid, amount: _swapped(amount)
        ),
        "sim_swap_alpha_for_tao": ApiMethod(
            (_NETUID, ("alpha", "Alpha")), "SimSwapResult", lambda _state, _netuid, amount: _swapped(amount)
        ),
    },
}
