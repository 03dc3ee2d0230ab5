"""The runtime that this chain claims to be: the part of subtensor that a miner and a validator touch.

Indices of pallets and calls, names, hashers and types are the real chain's, so that an SDK made for it needs no change.
"""

from __future__ import annotations

from compute.localnet.pallet.errors import PALLET_ERRORS
from compute.localnet.pallet.registration import EXISTENTIAL_DEPOSIT
from compute.localnet.rpc.api import APIS
from compute.localnet.rpc.storage_items import SUBTENSOR, SYSTEM, TIMESTAMP
from compute.localnet.substrate.metadata import Call, Constant, Event, Pallet, Runtime, SignedExtension
from compute.localnet.substrate.runtime_types import TYPES

SPEC_NAME = "node-subtensor"
SPEC_VERSION = 425
TRANSACTION_VERSION = 1
SS58_FORMAT = 42
BLOCK_HASH_COUNT = 4096

_NETUID = ("netuid", "NetUid")
_WEIGHTS = (("dests", "Vec<u16>"), ("weights", "Vec<u16>"), ("version_key", "u64"))
_ENDPOINT = (_NETUID, ("version", "u32"), ("ip", "u128"), ("port", "u16"), ("ip_type", "u8"))

_SYSTEM = Pallet(
    "System",
    0,
    storage=SYSTEM,
    events=(
        Event("ExtrinsicSuccess", 0, (("dispatch_info", "DispatchInfo"),)),
        Event("ExtrinsicFailed", 1, (("dispatch_error", "DispatchError"), ("dispatch_info", "DispatchInfo"))),
    ),
    constants=(
        Constant("BlockHashCount", "u32", BLOCK_HASH_COUNT.to_bytes(4, "little")),
        Constant("SS58Prefix", "u16", SS58_FORMAT.to_bytes(2, "little")),
    ),
)
_TIMESTAMP = Pallet("Timestamp", 2, storage=TIMESTAMP, calls=(Call("set", 0, (("now", "Compact<u64>"),)),))
_BALANCES = Pallet(
    "Balances", 5, constants=(Constant("ExistentialDeposit", "u64", EXISTENTIAL_DEPOSIT.to_bytes(8, "little")),)
)
_TRANSACTION_PAYMENT = Pallet(
    "TransactionPayment",
    6,
    events=(Event("TransactionFeePaid", 0, (("who", "AccountId"), ("actual_fee", "u64"), ("tip", "u64"))),),
)
_SUBTENSOR = Pallet(
    "SubtensorModule",
    7,
    storage=SUBTENSOR,
    calls=(
        Call("set_weights", 0, (_NETUID, *_WEIGHTS)),
        Call("add_stake", 2, (("hotkey", "AccountId"), _NETUID, ("amount_staked", "Tao"))),
        Call("serve_axon", 4, (*_ENDPOINT, ("protocol", "u8"), ("placeholder1", "u8"), ("placeholder2", "u8"))),
        Call("serve_prometheus", 5, _ENDPOINT),
        Call("burned_register", 7, (_NETUID, ("hotkey", "AccountId"))),
        Call(
            "commit_timelocked_mechanism_weights",
            118,
            (
                _NETUID,
                ("mecid", "MechId"),
                ("commit", "Vec<u8>"),
                ("reveal_round", "u64"),
                ("commit_reveal_version", "u16"),
            ),
        ),
        Call("set_mechanism_weights", 119, (_NETUID, ("mecid", "MechId"), *_WEIGHTS)),
    ),
    errors=PALLET_ERRORS,
)

RUNTIME = Runtime(
    types=TYPES,
    pallets=(_SYSTEM, _TIMESTAMP, _BALANCES, _TRANSACTION_PAYMENT, _SUBTENSOR),
    apis=APIS,
    extensions=(
        SignedExtension("CheckNonZeroSender", "()", "()"),
        SignedExtension("CheckSpecVersion", "()", "u32"),
        SignedExtension("CheckTxVersion", "()", "u32"),
        SignedExtension("CheckGenesis", "()", "H256"),
        SignedExtension("CheckMortality", "Era", "H256"),
        SignedExtension("CheckNonce", "Compact<u32>", "()"),
        SignedExtension("CheckWeight", "()", "()"),
        SignedExtension("ChargeTransactionPayment", "Compact<u64>", "()"),
        SignedExtension("CheckMetadataHash", "MetadataHashMode", "Option<[u8;32]>"),
    ),
)
SUBTENSOR_INDEX = _SUBTENSOR.index
TIMESTAMP_INDEX = _TIMESTAMP.index
