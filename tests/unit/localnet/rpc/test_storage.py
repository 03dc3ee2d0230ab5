from __future__ import annotations

import pytest

from compute.localnet.rpc.storage import Storage, hash_key, twox_128
from compute.localnet.substrate.codec import Codec
from compute.localnet.substrate.runtime import RUNTIME

SYSTEM_ACCOUNT = bytes.fromhex("26aa394eea5630e07c48ae0c9558cef7b99d880ec681799c0cf30e8886371da9")


@pytest.fixture
def storage(codec: Codec) -> Storage:
    return Storage(RUNTIME, codec)


def _key(codec: Codec, item: str, *keys: tuple[str, str, object]) -> bytes:
    hashed = b"".join(hash_key(hasher, codec.encode(target, value)) for hasher, target, value in keys)
    return twox_128(b"SubtensorModule") + twox_128(item.encode()) + hashed


def test_names_hash_as_in_every_substrate_chain() -> None:
    assert twox_128(b"System") + twox_128(b"Account") == SYSTEM_ACCOUNT


def test_hashers() -> None:
    assert hash_key("identity", b"ab") == b"ab"
    # twox64("") and blake2_128("") are published test vectors of the two algorithms.
    assert hash_key("twox64_concat", b"").hex() == "99e9d85137db46ef"
    assert hash_key("blake2_128_concat", b"").hex() == "cae66941d9efbd404e4d88758ea67670"


def test_values_maps_and_double_maps_are_read(validator, storage: Storage, codec: Codec) -> None:
    state = validator.ledger.head_state
    netuid = ("identity", "NetUid", validator.netuid)
    hotkey = ("blake2_128_concat", "AccountId", validator.bob.ss58_address)
    number = twox_128(b"System") + twox_128(b"Number")
    assert storage.read(state, number) == validator.ledger.head.number.to_bytes(4, "little")
    assert storage.read(state, _key(codec, "Tempo", netuid)) == (10).to_bytes(2, "little")
    assert storage.read(state, _key(codec, "Uids", netuid, hotkey)) == (1).to_bytes(2, "little")
    assert storage.read(state, _key(codec, "IsNetworkMember", hotkey, netuid)) == b"\x01"
    account = SYSTEM_ACCOUNT + hash_key("blake2_128_concat", codec.encode("AccountId", validator.bob.ss58_address))
    assert storage.read(state, account)[:4] == (1).to_bytes(4, "little")  # the nonce


def test_absent_entries_and_keys_of_nobody_are_none(validator, storage: Storage, codec: Codec) -> None:
    state = validator.ledger.head_state
    tempo = _key(codec, "Tempo", ("identity", "NetUid", validator.netuid))
    for key in (b"", b"x", bytes(32), tempo[:-1], tempo + b"\x00", _key(codec, "Tempo", ("identity", "NetUid", 28))):
        assert storage.read(state, key) is None
    uids = _key(codec, "Uids", ("identity", "NetUid", validator.netuid))
    wrong_hash = bytes(16) + codec.encode("AccountId", validator.bob.ss58_address)
    assert storage.read(state, uids + wrong_hash) is None


def test_keys_come_in_order_and_in_pages(validator, storage: Storage) -> None:
    state = validator.ledger.head_state
    prefix = twox_128(b"SubtensorModule") + twox_128(b"Keys")
    keys = storage.keys(state, prefix, 10, None)
    assert len(keys) == 2
    assert keys == sorted(keys)
    assert storage.keys(state, prefix, 1, None) == keys[:1]
    assert storage.keys(state, prefix, 10, keys[0]) == keys[1:]
    assert storage.keys(state, prefix, 10, keys[1]) == []
    assert storage.keys(state, keys[1], 10, None) == keys[1:]


def test_every_key_that_is_listed_can_be_read(validator, storage: Storage) -> None:
    validator.submit(validator.alice, "set_weights", netuid=validator.netuid, dests=[1], weights=[1], version_key=0)
    validator.seal(12)
    state = validator.ledger.head_state
    keys = storage.keys(state, b"", 10_000, None)
    assert twox_128(b"SubtensorModule") + twox_128(b"Bonds") in {key[:32] for key in keys}
    assert [key.hex() for key in keys if storage.read(state, key) is None] == []
