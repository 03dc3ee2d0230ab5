"""What clients can read from storage: each item's type, its keys, and the entries that a state has under it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from compute.localnet.pallet.state import Neuron, State, Subnet
from compute.localnet.substrate.metadata import Entries, StorageItem
from compute.localnet.substrate.scale import Fields

_NETUID: Fields = (("identity", "NetUid"),)
_INDEX: Fields = (("identity", "StorageIndex"),)
_UID: Fields = (("identity", "u16"),)
_HOTKEY: Fields = (("blake2_128_concat", "AccountId"),)


def account_info(state: State, address: str) -> dict[str, Any]:
    """``frame_system::AccountInfo`` of an account."""
    account = state.account(address)
    data = {"free": account.free, "reserved": 0, "frozen": 0, "flags": 0}
    return {"nonce": account.nonce, "consumers": 0, "providers": 1, "sufficients": 0, "data": data}


def _value(name: str, target: str, size: int, read: Callable[[State], Any]) -> StorageItem:
    return StorageItem(name, target, lambda state: {(): read(state)}, default=bytes(size))


def _by_subnet(
    name: str, target: str, size: int, read: Callable[[State, Subnet], Any], keys: Fields = _NETUID
) -> StorageItem:
    """A map of subnets; on the single mechanism of a subnet, its storage index is its netuid."""

    def entries(state: State) -> dict[tuple[Any, ...], Any]:
        return {(netuid,): read(state, subnet) for netuid, subnet in state.subnets.items()}

    return StorageItem(name, target, entries, keys, bytes(size))


def _setting(name: str, target: str, size: int, field: str) -> StorageItem:
    return _by_subnet(name, target, size, lambda _, subnet: getattr(subnet.hyperparameters, field))


def _scores(name: str, target: str, field: str, keys: Fields = _NETUID) -> StorageItem:
    """One vector for each subnet, with one element for each uid."""
    return _by_subnet(name, target, 1, lambda _, subnet: [getattr(each, field) for each in subnet.neurons], keys)


def _neurons(state: State) -> Iterable[tuple[int, int, Neuron]]:
    for netuid, subnet in state.subnets.items():
        for uid, neuron in enumerate(subnet.neurons):
            yield netuid, uid, neuron


def _by_uid(read: Callable[[Neuron], Any]) -> Entries:
    return lambda state: {(netuid, uid): read(neuron) for netuid, uid, neuron in _neurons(state)}


def _by_hotkey(read: Callable[[int, Neuron], Any]) -> Entries:
    return lambda state: {(netuid, neuron.hotkey): read(uid, neuron) for netuid, uid, neuron in _neurons(state)}


def _rows(field: str) -> Entries:
    """Rows that are empty are absent."""

    def entries(state: State) -> dict[tuple[Any, ...], Any]:
        rows = ((netuid, uid, getattr(neuron, field)) for netuid, uid, neuron in _neurons(state))
        return {(netuid, uid): row for netuid, uid, row in rows if row}

    return entries


def _served(field: str) -> Entries:
    """Endpoints that were never announced are absent."""

    def entries(state: State) -> dict[tuple[Any, ...], Any]:
        served = ((netuid, neuron.hotkey, getattr(neuron, field)) for netuid, _, neuron in _neurons(state))
        return {(netuid, hotkey): vars(endpoint) for netuid, hotkey, endpoint in served if endpoint.block}

    return entries


def _owned_hotkeys(state: State) -> dict[tuple[Any, ...], list[str]]:
    owned: dict[tuple[Any, ...], list[str]] = {}
    for hotkey, coldkey in state.owners.items():
        owned.setdefault((coldkey,), []).append(hotkey)
    return owned


def _timelocked_commits(state: State) -> dict[tuple[Any, ...], list[tuple[Any, ...]]]:
    commits: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for netuid, subnet in state.subnets.items():
        for commit in subnet.commits:
            entry = (commit.hotkey, commit.block, commit.ciphertext, commit.reveal_round)
            commits.setdefault((netuid, commit.epoch), []).append(entry)
    return commits


SYSTEM: tuple[StorageItem, ...] = (
    StorageItem(
        "Account",
        "AccountInfo",
        lambda state: {(address,): account_info(state, address) for address in state.accounts},
        _HOTKEY,
        bytes(16 + 24 + 16),
    ),
    _value("Number", "u32", 4, lambda state: state.number),
    _value("Events", "Vec<EventRecord>", 1, lambda state: list(state.events)),
)

TIMESTAMP: tuple[StorageItem, ...] = (_value("Now", "u64", 8, lambda state: state.timestamp_milliseconds),)

SUBTENSOR: tuple[StorageItem, ...] = (
    _value("TotalNetworks", "u16", 2, lambda state: len(state.subnets)),
    _value("TxRateLimit", "u64", 8, lambda _: 0),
    _by_subnet("NetworksAdded", "bool", 1, lambda *_: True),
    _by_subnet("NetworkRegisteredAt", "u64", 8, lambda _, subnet: subnet.registered_at),
    _by_subnet("SubnetworkN", "u16", 2, lambda _, subnet: len(subnet.neurons)),
    _by_subnet("Burn", "Tao", 8, lambda _, subnet: subnet.burn),
    _by_subnet("Difficulty", "u64", 8, lambda *_: 0),
    _by_subnet("LastEpochBlock", "u64", 8, lambda _, subnet: subnet.last_epoch_block),
    _by_subnet("PendingEpochAt", "u64", 8, lambda *_: 0),
    _by_subnet("SubnetEpochIndex", "u64", 8, lambda _, subnet: subnet.epoch_index),
    _by_subnet("BlocksSinceLastStep", "u64", 8, lambda state, subnet: state.number - subnet.last_epoch_block),
    _setting("Tempo", "u16", 2, "tempo"),
    _setting("Kappa", "u16", 2, "kappa"),
    _setting("WeightsSetRateLimit", "u64", 8, "weights_rate_limit"),
    _setting("WeightsVersionKey", "u64", 8, "weights_version"),
    _setting("MinAllowedWeights", "u16", 2, "min_allowed_weights"),
    _setting("MaxWeightsLimit", "u16", 2, "max_weights_limit"),
    _setting("CommitRevealWeightsEnabled", "bool", 1, "commit_reveal_weights_enabled"),
    _setting("RevealPeriodEpochs", "u64", 8, "commit_reveal_period"),
    _setting("ImmunityPeriod", "u16", 2, "immunity_period"),
    _setting("ActivityCutoff", "u16", 2, "activity_cutoff"),
    _setting("ServingRateLimit", "u64", 8, "serving_rate_limit"),
    _setting("MaxAllowedUids", "u16", 2, "max_allowed_uids"),
    _setting("MaxAllowedValidators", "u16", 2, "max_validators"),
    _setting("MinBurn", "Tao", 8, "min_burn"),
    _setting("MaxBurn", "Tao", 8, "max_burn"),
    _setting("NetworkRegistrationAllowed", "bool", 1, "registration_allowed"),
    _by_subnet("MechanismCountCurrent", "MechId", 1, lambda *_: 1, (("twox64_concat", "NetUid"),)),
    StorageItem("MechanismEmissionSplit", "Vec<u16>", lambda _: {}, (("twox64_concat", "NetUid"),)),
    _scores("Active", "Vec<bool>", "active"),
    _scores("ValidatorPermit", "Vec<bool>", "validator_permit"),
    _scores("ValidatorTrust", "Vec<u16>", "validator_trust"),
    _scores("Consensus", "Vec<u16>", "consensus"),
    _scores("Dividends", "Vec<u16>", "dividends"),
    _scores("StakeWeight", "Vec<u16>", "stake_weight"),
    _scores("Emission", "Vec<Alpha>", "emission"),
    _scores("Incentive", "Vec<u16>", "incentive", _INDEX),
    _scores("LastUpdate", "Vec<u64>", "last_update", _INDEX),
    StorageItem("Uids", "u16", _by_hotkey(lambda uid, _: uid), (*_NETUID, *_HOTKEY)),
    StorageItem("Keys", "AccountId", _by_uid(lambda neuron: neuron.hotkey), (*_NETUID, *_UID), bytes(32)),
    StorageItem(
        "IsNetworkMember",
        "bool",
        lambda state: {(neuron.hotkey, netuid): True for netuid, _, neuron in _neurons(state)},
        (*_HOTKEY, *_NETUID),
        bytes(1),
    ),
    StorageItem(
        "BlockAtRegistration", "u64", _by_uid(lambda neuron: neuron.registered_at), (*_NETUID, *_UID), bytes(8)
    ),
    StorageItem("Axons", "AxonInfo", _served("axon"), (*_NETUID, *_HOTKEY)),
    StorageItem("Prometheus", "PrometheusInfo", _served("prometheus"), (*_NETUID, *_HOTKEY)),
    StorageItem("Weights", "Vec<(u16,u16)>", _rows("weights"), (*_INDEX, *_UID), bytes(1)),
    StorageItem("Bonds", "Vec<(u16,u16)>", _rows("bonds"), (*_INDEX, *_UID), bytes(1)),
    StorageItem(
        "TimelockedWeightCommits",
        "Vec<(AccountId,u64,Vec<u8>,u64)>",
        _timelocked_commits,
        (("twox64_concat", "StorageIndex"), ("twox64_concat", "u64")),
        bytes(1),
    ),
    StorageItem(
        "Owner",
        "AccountId",
        lambda state: {(hotkey,): coldkey for hotkey, coldkey in state.owners.items()},
        _HOTKEY,
        bytes(32),
    ),
    StorageItem("OwnedHotkeys", "Vec<AccountId>", _owned_hotkeys, _HOTKEY, bytes(1)),
    StorageItem(
        "TotalHotkeyAlpha",
        "Alpha",
        lambda state: {
            (hotkey, netuid): subnet.stake_of(hotkey)
            for netuid, subnet in state.subnets.items()
            for hotkey in subnet.stakes
        },
        (*_HOTKEY, *_NETUID),
        bytes(8),
    ),
)
