"""The codec against an independent one: cyscale, which the bittensor SDK decodes with, over the same metadata."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scalecodec import ScaleBytes
from scalecodec.base import RuntimeConfigurationObject
from scalecodec.type_registry import load_type_registry_preset

from compute.localnet.pallet.state import Hyperparameters, Neuron, State, Subnet
from compute.localnet.rpc.api import APIS
from compute.localnet.substrate.codec import Codec, address_to_key, key_to_address
from compute.localnet.substrate.metadata import encode_metadata
from compute.localnet.substrate.runtime import RUNTIME
from compute.localnet.substrate.scale import TypeRegistry

ALICE = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
CODEC = Codec(RUNTIME)


class Reference:
    """Decodes by metadata alone."""

    def __init__(self) -> None:
        self._registry = TypeRegistry(RUNTIME.all_types)
        self._configuration = RuntimeConfigurationObject(ss58_format=42, implements_scale_info=True)
        self._configuration.update_type_registry(load_type_registry_preset(name="core"))
        blob = encode_metadata(RUNTIME)
        self.metadata = self._configuration.create_scale_object("MetadataVersioned", data=ScaleBytes(blob))
        self.metadata.decode()
        self._configuration.add_portable_registry(self.metadata)
        self._numbers = {name: api.result for api in APIS.values() for name, api in api.items()}

    def decode_api(self, api: str, method: str, data: bytes) -> Any:
        apis = {entry["name"]: entry for entry in self.metadata.value[1]["V15"]["apis"]}
        methods = {entry["name"]: entry for entry in apis[api]["methods"]}
        number = methods[method]["output"]
        return self._configuration.create_scale_object(f"scale_info::{number}", data=ScaleBytes(data)).decode()

    def decode_storage(self, pallet: str, item: str, data: bytes) -> Any:
        pallets = {entry["name"]: entry for entry in self.metadata.value[1]["V15"]["pallets"]}
        entries = {entry["name"]: entry for entry in pallets[pallet]["storage"]["entries"]}
        kind = entries[item]["type"]
        number = kind["Plain"] if "Plain" in kind else kind["Map"]["value"]
        return self._configuration.create_scale_object(f"scale_info::{number}", data=ScaleBytes(data)).decode()


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


def _state() -> State:
    neurons = tuple(
        Neuron(ALICE, ALICE, registered_at=uid, last_update=uid, weights=((0, 65535), (uid, 7)), bonds=((1, 70),))
        for uid in range(3)
    )
    subnet = Subnet(0, Hyperparameters(), burn=5, last_epoch_block=0, neurons=neurons)
    return State(number=9, subnets={27: subnet.with_stake(ALICE, ALICE, 2**63)})


def test_every_runtime_api_answer_is_read_by_the_reference(reference: Reference) -> None:
    state = _state()
    arguments: dict[str, Any] = {
        "netuid": 27,
        "uid": 1,
        "subid": 0,
        "metagraph_indexes": list(range(80)),
        "hotkey": ALICE,
        "coldkey": ALICE,
        "coldkeys": [ALICE],
        "tao": 5,
        "alpha": 6,
    }
    for api, methods in APIS.items():
        for name, method in methods.items():
            answer = method.answer(state, *(arguments[argument] for argument, _ in method.arguments))
            decoded = reference.decode_api(api, name, CODEC.encode(method.result, answer))
            assert decoded is not None, (api, name)


def test_neurons_survive_the_reference(reference: Reference) -> None:
    method = APIS["NeuronInfoRuntimeApi"]["get_neurons"]
    decoded = reference.decode_api(
        "NeuronInfoRuntimeApi", "get_neurons", CODEC.encode(method.result, method.answer(_state(), 27))
    )
    assert [neuron["uid"] for neuron in decoded] == [0, 1, 2]
    assert decoded[2]["weights"] == [(0, 65535), (2, 7)]
    assert decoded[2]["stake"] == [(ALICE, 3 * 0 + 2**63)]
    assert decoded[1]["hotkey"] == ALICE


def test_every_storage_item_is_read_by_the_reference(reference: Reference) -> None:
    state = _state().with_owner(ALICE, ALICE)
    for pallet in RUNTIME.pallets:
        for item in pallet.storage:
            for value in item.entries(state).values():
                reference.decode_storage(pallet.name, item.name, CODEC.encode(item.value, value))
            if item.default is not None:
                reference.decode_storage(pallet.name, item.name, item.default)


def test_events_are_read_by_the_reference(reference: Reference) -> None:
    phase = {"ApplyExtrinsic": 1}
    info = {"weight": {"ref_time": 0, "proof_size": 0}, "class": "Normal", "pays_fee": "No"}
    module = {"index": 7, "error": [76, 0, 0, 0]}
    state = (
        State()
        .with_event(phase, "System", "ExtrinsicSuccess", {"dispatch_info": info})
        .with_event(phase, "System", "ExtrinsicFailed", {"dispatch_error": {"Module": module}, "dispatch_info": info})
    )
    decoded = reference.decode_storage("System", "Events", CODEC.encode("Vec<EventRecord>", list(state.events)))
    assert [event["event"]["event_id"] for event in decoded] == ["ExtrinsicSuccess", "ExtrinsicFailed"]


@settings(max_examples=50)
@given(
    st.sampled_from(
        [
            ("u8", st.integers(0, 255)),
            ("u128", st.integers(0, 2**128 - 1)),
            ("NetUid", st.integers(0, 65535)),
            ("Compact<u64>", st.integers(0, 2**64 - 1)),
            ("bool", st.booleans()),
            ("Vec<u8>", st.binary(max_size=70)),
            ("Vec<u16>", st.lists(st.integers(0, 65535), max_size=70)),
            ("AccountId", st.binary(min_size=32, max_size=32).map(key_to_address)),
        ]
    ).flatmap(lambda pair: st.tuples(st.just(pair[0]), pair[1])),
    st.binary(max_size=3),
)
def test_what_is_encoded_is_decoded(named: tuple[str, Any], rest: bytes) -> None:
    name, value = named
    encoded = CODEC.encode(name, value)
    assert CODEC.decode(name, encoded + rest) == (value, len(encoded))
    for end in range(len(encoded)):
        with pytest.raises(ValueError, match=r"bytes|compact"):
            CODEC.decode(name, encoded[:end])


def test_a_vector_that_claims_more_items_than_there_are_bytes_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="cannot hold 1073741823 items"):
        CODEC.decode("Vec<u16>", bytes.fromhex("feffffff0000"))


def test_addresses() -> None:
    assert key_to_address(address_to_key(ALICE)) == ALICE
    for bad in ("", "5Grw", ALICE[:-1] + "Z", "0x" + "00" * 32, "\udc80"):
        with pytest.raises(ValueError, match="not an ss58 address"):
            address_to_key(bad)
