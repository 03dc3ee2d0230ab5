from __future__ import annotations

from scalecodec import ScaleBytes
from scalecodec.base import RuntimeConfigurationObject
from scalecodec.type_registry import load_type_registry_preset

from compute.localnet.pallet.errors import PALLET_ERRORS
from compute.localnet.substrate.metadata import encode_metadata
from compute.localnet.substrate.runtime import RUNTIME


def _decoded() -> dict:
    configuration = RuntimeConfigurationObject(ss58_format=42, implements_scale_info=True)
    configuration.update_type_registry(load_type_registry_preset(name="core"))
    metadata = configuration.create_scale_object("MetadataVersioned", data=ScaleBytes(encode_metadata(RUNTIME)))
    metadata.decode()
    return metadata.value[1]["V15"]


def test_metadata_is_version_15_with_its_magic() -> None:
    assert encode_metadata(RUNTIME)[:5] == b"meta\x0f"


def test_encoding_twice_gives_the_same_bytes() -> None:
    assert encode_metadata(RUNTIME) == encode_metadata(RUNTIME)


def test_a_reader_finds_pallets_calls_and_storage_at_the_real_chain_s_places() -> None:
    pallets = {pallet["name"]: pallet for pallet in _decoded()["pallets"]}
    assert {name: pallet["index"] for name, pallet in pallets.items()} == {
        "System": 0,
        "Timestamp": 2,
        "Balances": 5,
        "TransactionPayment": 6,
        "SubtensorModule": 7,
    }
    storage = {entry["name"]: entry for entry in pallets["SubtensorModule"]["storage"]["entries"]}
    assert storage["Weights"]["type"]["Map"]["hashers"] == ["Identity", "Identity"]
    assert storage["Uids"]["modifier"] == "Optional"
    assert storage["Tempo"]["modifier"] == "Default"


def test_calls_have_the_real_chain_s_indices() -> None:
    calls = {call.name: (pallet.index, call.index) for pallet in RUNTIME.pallets for call in pallet.calls}
    assert calls == {
        "set": (2, 0),
        "set_weights": (7, 0),
        "add_stake": (7, 2),
        "serve_axon": (7, 4),
        "serve_prometheus": (7, 5),
        "burned_register": (7, 7),
        "commit_timelocked_mechanism_weights": (7, 118),
        "set_mechanism_weights": (7, 119),
    }


def test_errors_are_at_the_real_chain_s_positions_without_gaps() -> None:
    types = {entry["id"]: entry["type"] for entry in _decoded()["types"]["types"]}
    errors = next(entry for entry in types.values() if entry["path"] == ["pallet_subtensormodule", "pallet", "Error"])
    variants = errors["def"]["variant"]["variants"]
    assert [variant["index"] for variant in variants] == list(range(len(variants)))
    assert [variant["name"] for variant in variants] == list(PALLET_ERRORS)
    assert len(set(PALLET_ERRORS)) == len(PALLET_ERRORS)
    assert variants[4]["name"] == "HotKeyNotRegisteredInSubNet"
    assert PALLET_ERRORS.index("UidsLengthExceedUidsInSubNet") == 32


def test_every_error_has_a_text_for_the_sdk_to_show() -> None:
    types = [entry["type"] for entry in _decoded()["types"]["types"]]
    errors = next(entry for entry in types if entry["path"] == ["pallet_subtensormodule", "pallet", "Error"])
    assert all(variant["docs"] for variant in errors["def"]["variant"]["variants"])
