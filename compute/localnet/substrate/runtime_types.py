"""The types of the subtensor runtime that this chain's calls, storage and runtime APIs use."""

from __future__ import annotations

from collections.abc import Mapping

from compute.localnet.substrate.scale import Enum, Fields, Struct, Variant

_INFO = "pallet_subtensor::rpc_info::"
_PALLET = "pallet_subtensor::pallet::"
_COMMON = "subtensor_runtime_common::"


def _compact(target: str, *names: str) -> Fields:
    return tuple((name, f"Compact<{target}>") for name in names)


def _plain(target: str, *names: str) -> Fields:
    return tuple((name, target) for name in names)


def _vectors(target: str, *names: str) -> Fields:
    return tuple((name, f"Vec<Compact<{target}>>") for name in names)


def _unit_variants(*names: str) -> tuple[Variant, ...]:
    return tuple(Variant(name, index) for index, name in enumerate(names))


_ROW = "Vec<(Compact<u16>,Compact<u16>)>"

_NEURON: Fields = (
    *_plain("AccountId", "hotkey", "coldkey"),
    *_compact("u16", "uid"),
    *_compact("NetUid", "netuid"),
    ("active", "bool"),
    ("axon_info", "AxonInfo"),
    ("prometheus_info", "PrometheusInfo"),
    ("stake", "Vec<(AccountId,Compact<Alpha>)>"),
    *_compact("u16", "rank"),
    *_compact("Alpha", "emission"),
    *_compact("u16", "incentive", "consensus", "trust", "validator_trust", "dividends"),
    *_compact("u64", "last_update"),
    ("validator_permit", "bool"),
)

_PER_UID: Fields = (
    *_plain("Vec<bool>", "active", "validator_permit"),
    *_vectors("u16", "pruning_score"),
    *_vectors("u64", "last_update"),
    *_vectors("Alpha", "emission"),
    *_vectors("u16", "dividends", "incentives", "consensus", "trust", "rank"),
    *_vectors("u64", "block_at_registration"),
    *_vectors("Alpha", "alpha_stake"),
    *_vectors("Tao", "tao_stake", "total_stake"),
)

# The metagraph that clients ask for field by field, by position; each field is absent unless asked for.
METAGRAPH_FIELDS: Fields = (
    *_vectors("u8", "name", "symbol"),
    ("identity", "Option<SubnetIdentity>"),
    *_compact("u64", "network_registered_at"),
    *_plain("AccountId", "owner_hotkey", "owner_coldkey"),
    *_compact("u64", "block"),
    *_compact("u16", "tempo"),
    *_compact("u64", "last_step", "blocks_since_last_step", "subnet_emission"),
    *_compact("Alpha", "alpha_in", "alpha_out"),
    *_compact("Tao", "tao_in"),
    *_compact("Alpha", "alpha_out_emission", "alpha_in_emission"),
    *_compact("Tao", "tao_in_emission"),
    *_compact("Alpha", "pending_alpha_emission"),
    *_compact("Tao", "pending_root_emission"),
    *_compact("u128", "subnet_volume"),
    ("moving_price", "I96F32"),
    *_compact("u16", "rho", "kappa", "min_allowed_weights", "max_weights_limit"),
    *_compact("u64", "weights_version", "weights_rate_limit", "activity_cutoff"),
    *_compact("u16", "max_validators", "num_uids", "max_uids"),
    *_compact("Tao", "burn"),
    *_compact("u64", "difficulty"),
    *_plain("bool", "registration_allowed", "pow_registration_allowed"),
    *_compact("u16", "immunity_period"),
    *_compact("u64", "min_difficulty", "max_difficulty"),
    *_compact("Tao", "min_burn", "max_burn"),
    *_compact("u64", "adjustment_alpha"),
    *_compact("u16", "adjustment_interval", "target_regs_per_interval", "max_regs_per_block"),
    *_compact("u64", "serving_rate_limit"),
    ("commit_reveal_weights_enabled", "bool"),
    *_compact("u64", "commit_reveal_period"),
    ("liquid_alpha_enabled", "bool"),
    *_compact("u16", "alpha_high", "alpha_low"),
    *_compact("u64", "bonds_moving_avg"),
    *_plain("Vec<AccountId>", "hotkeys", "coldkeys"),
    ("identities", "Vec<Option<ChainIdentity>>"),
    ("axons", "Vec<AxonInfo>"),
    *_PER_UID,
    ("tao_dividends_per_hotkey", "Vec<(AccountId,Compact<Tao>)>"),
    ("alpha_dividends_per_hotkey", "Vec<(AccountId,Compact<Alpha>)>"),
    *_vectors("u16", "validators"),
    ("commitments", "Vec<(AccountId,Vec<Compact<u8>>)>"),
)

TYPES: Mapping[str, Struct | Enum] = {
    "AccountId": Struct("sp_core::crypto::AccountId32", (("", "[u8;32]"),)),
    "H256": Struct("primitive_types::H256", (("", "[u8;32]"),)),
    "NetUid": Struct(_COMMON + "NetUid", (("", "u16"),)),
    "MechId": Struct(_COMMON + "MechId", (("", "u8"),)),
    "StorageIndex": Struct(_COMMON + "NetUidStorageIndex", (("", "u16"),)),
    "Alpha": Struct(_COMMON + "currency::AlphaBalance", (("", "u64"),)),
    "Tao": Struct(_COMMON + "currency::TaoBalance", (("", "u64"),)),
    "I96F32": Struct("substrate_fixed::FixedI128", (("bits", "i128"),)),
    "MultiAddress": Enum(
        "sp_runtime::multiaddress::MultiAddress",
        (
            Variant("Id", 0, (("", "AccountId"),)),
            Variant("Index", 1, (("", "Compact<()>"),)),
            Variant("Raw", 2, (("", "Vec<u8>"),)),
            Variant("Address32", 3, (("", "[u8;32]"),)),
            Variant("Address20", 4, (("", "[u8;20]"),)),
        ),
    ),
    "MultiSignature": Enum(
        "sp_runtime::MultiSignature",
        (
            Variant("Ed25519", 0, (("", "[u8;64]"),)),
            Variant("Sr25519", 1, (("", "[u8;64]"),)),
            Variant("Ecdsa", 2, (("", "[u8;65]"),)),
        ),
    ),
    "UncheckedExtrinsic": Struct(
        "sp_runtime::generic::unchecked_extrinsic::UncheckedExtrinsic",
        (("", "Vec<u8>"),),
        (("Address", "MultiAddress"), ("Call", "RuntimeCall"), ("Signature", "MultiSignature")),
    ),
    "Runtime": Struct("node_subtensor_runtime::Runtime"),
    "Era": Enum(
        "sp_runtime::generic::era::Era",
        (Variant("Immortal", 0), *(Variant(f"Mortal{index}", index, (("", "u8"),)) for index in range(1, 256))),
    ),
    "MetadataHashMode": Enum("frame_metadata_hash_extension::Mode", _unit_variants("Disabled", "Enabled")),
    "Weight": Struct("sp_weights::weight_v2::Weight", _compact("u64", "ref_time", "proof_size")),
    "DispatchClass": Enum(
        "frame_support::dispatch::DispatchClass", _unit_variants("Normal", "Operational", "Mandatory")
    ),
    "Pays": Enum("frame_support::dispatch::Pays", _unit_variants("Yes", "No")),
    "DispatchInfo": Struct(
        "frame_system::DispatchEventInfo", (("weight", "Weight"), ("class", "DispatchClass"), ("pays_fee", "Pays"))
    ),
    "ModuleError": Struct("sp_runtime::ModuleError", (("index", "u8"), ("error", "[u8;4]"))),
    "DispatchError": Enum(
        "sp_runtime::DispatchError",
        (*_unit_variants("Other", "CannotLookup", "BadOrigin"), Variant("Module", 3, (("", "ModuleError"),))),
    ),
    "Phase": Enum(
        "frame_system::Phase",
        (Variant("ApplyExtrinsic", 0, (("", "u32"),)), Variant("Finalization", 1), Variant("Initialization", 2)),
    ),
    "EventRecord": Struct(
        "frame_system::EventRecord", (("phase", "Phase"), ("event", "RuntimeEvent"), ("topics", "Vec<H256>"))
    ),
    "AccountData": Struct(
        "pallet_balances::types::AccountData", (*_plain("u64", "free", "reserved", "frozen"), ("flags", "u128"))
    ),
    "AccountInfo": Struct(
        "frame_system::AccountInfo",
        (*_plain("u32", "nonce", "consumers", "providers", "sufficients"), ("data", "AccountData")),
    ),
    "AxonInfo": Struct(
        _PALLET + "AxonInfo",
        (
            *(("block", "u64"), ("version", "u32"), ("ip", "u128"), ("port", "u16")),
            *_plain("u8", "ip_type", "protocol", "placeholder1", "placeholder2"),
        ),
    ),
    "PrometheusInfo": Struct(
        _PALLET + "PrometheusInfo",
        (("block", "u64"), ("version", "u32"), ("ip", "u128"), ("port", "u16"), ("ip_type", "u8")),
    ),
    "NeuronInfoLite": Struct(_INFO + "neuron_info::NeuronInfoLite", (*_NEURON, *_compact("u16", "pruning_score"))),
    "NeuronInfo": Struct(
        _INFO + "neuron_info::NeuronInfo",
        (*_NEURON, *_plain(_ROW, "weights", "bonds"), *_compact("u16", "pruning_score")),
    ),
    "SubnetState": Struct(
        _INFO + "show_subnet::SubnetState",
        (
            *_compact("NetUid", "netuid"),
            *_plain("Vec<AccountId>", "hotkeys", "coldkeys"),
            *_PER_UID,
            ("emission_history", "Vec<Vec<Compact<Alpha>>>"),
        ),
    ),
    "SubnetIdentity": Struct(
        _PALLET + "SubnetIdentityV3",
        _plain(
            "Vec<u8>",
            *("subnet_name", "github_repo", "subnet_contact", "subnet_url"),
            *("discord", "description", "logo_url", "additional"),
        ),
    ),
    "ChainIdentity": Struct(
        _PALLET + "ChainIdentityV2",
        _plain("Vec<u8>", "name", "url", "github_repo", "image", "discord", "description", "additional"),
    ),
    "SelectiveMetagraph": Struct(
        _INFO + "metagraph::SelectiveMetagraph",
        (*_compact("NetUid", "netuid"), *((name, f"Option<{target}>") for name, target in METAGRAPH_FIELDS)),
    ),
    "HyperparamValue": Enum(
        _INFO + "subnet_info::HyperparamValue",
        (
            Variant("Bool", 0, (("", "bool"),)),
            Variant("U16", 1, (("", "Compact<u16>"),)),
            Variant("U32", 2, (("", "Compact<u32>"),)),
            Variant("U64", 3, (("", "Compact<u64>"),)),
            Variant("U128", 4, (("", "Compact<u128>"),)),
            Variant("TaoBalance", 5, (("", "Compact<Tao>"),)),
        ),
    ),
    "HyperparamEntry": Struct(
        _INFO + "subnet_info::HyperparamEntry", (("name", "Vec<u8>"), ("value", "HyperparamValue"))
    ),
    "StakeInfo": Struct(
        _INFO + "stake_info::StakeInfo",
        (
            *_plain("AccountId", "hotkey", "coldkey"),
            *_compact("NetUid", "netuid"),
            *_compact("Alpha", "stake", "locked", "emission"),
            *_compact("Tao", "tao_emission"),
            *_compact("u64", "drain"),
            ("is_registered", "bool"),
        ),
    ),
    "DynamicInfo": Struct(
        _INFO + "dynamic_info::DynamicInfo",
        (
            *_compact("NetUid", "netuid"),
            *_plain("AccountId", "owner_hotkey", "owner_coldkey"),
            *_vectors("u8", "subnet_name", "token_symbol"),
            *_compact("u16", "tempo"),
            *_compact("u64", "last_step", "blocks_since_last_step", "emission"),
            *_compact("Alpha", "alpha_in", "alpha_out"),
            *_compact("Tao", "tao_in"),
            *_compact("Alpha", "alpha_out_emission", "alpha_in_emission"),
            *_compact("Tao", "tao_in_emission"),
            *_compact("Alpha", "pending_alpha_emission"),
            *_compact("Tao", "pending_root_emission"),
            *_compact("u128", "subnet_volume"),
            *_compact("u64", "network_registered_at"),
            ("subnet_identity", "Option<SubnetIdentity>"),
            ("moving_price", "I96F32"),
        ),
    ),
    "SubnetPrice": Struct("pallet_subtensor_swap_runtime_api::SubnetPrice", (("netuid", "NetUid"), ("price", "u64"))),
    "SimSwapResult": Struct(
        "pallet_subtensor_swap_runtime_api::SimSwapResult",
        (
            *(("tao_amount", "Tao"), ("alpha_amount", "Alpha"), ("tao_fee", "Tao"), ("alpha_fee", "Alpha")),
            *(("tao_slippage", "Tao"), ("alpha_slippage", "Alpha")),
        ),
    ),
}
