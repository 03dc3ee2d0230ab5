from __future__ import annotations

import contextlib

import pytest
from bittensor_wallet import Keypair
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compute.localnet.pallet.errors import BAD_FORMAT, INVALID, UNKNOWN_VALIDITY, PoolError
from compute.localnet.pallet.ledger import Ledger
from compute.localnet.pallet.store import Store
from compute.localnet.substrate.codec import Codec
from compute.localnet.substrate.extrinsics import MAX_BYTES, Era, decode_extrinsic, timestamp_extrinsic
from compute.localnet.substrate.runtime import BLOCK_HASH_COUNT
from compute.localnet.substrate.scale import compact


def _register(chain) -> bytes:
    return chain.call("burned_register", netuid=chain.netuid, hotkey=chain.alice.ss58_address)


def _refused(chain, raw: bytes) -> PoolError:
    with pytest.raises(PoolError) as caught:
        chain.ledger.submit(raw)
    return caught.value


def test_a_signed_extrinsic_is_taken_apart(chain) -> None:
    raw = chain.sign(chain.alice, _register(chain), nonce=5, era=Era(64, 3))
    extrinsic = decode_extrinsic(raw, chain.codec)
    assert extrinsic.signer == chain.alice.ss58_address
    assert (extrinsic.nonce, extrinsic.era) == (5, Era(64, 3))
    assert extrinsic.call == "burned_register"
    assert extrinsic.arguments == {"netuid": chain.netuid, "hotkey": chain.alice.ss58_address}


@pytest.mark.parametrize("key_type", [0, 1])
def test_ed25519_and_sr25519_signatures_are_taken(chain, key_type: int) -> None:
    key = Keypair.create_from_uri("//Eve", crypto_type=key_type)
    chain.fund(key)
    raw = bytearray(chain.sign(key, _register(chain)))
    position = len(compact(len(raw) - 2)) + 34
    assert raw[position] == 1
    raw[position] = key_type
    chain.ledger.submit(bytes(raw))
    assert len(chain.ledger.seal().included) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"signature": bytes(64)},
        {"genesis": bytes(32)},
        {"anchor": bytes(32)},
        {"spec_version": 424},
    ],
    ids=["signature", "another chain", "another fork", "another runtime"],
)
def test_what_was_signed_for_something_else_has_a_bad_signature(chain, changes: dict) -> None:
    error = _refused(chain, chain.sign(chain.alice, _register(chain), **changes))
    assert (error.code, error.data) == (INVALID, "Transaction has a bad signature")


def test_a_call_changed_on_the_way_has_a_bad_signature(chain) -> None:
    raw = bytearray(chain.sign(chain.alice, _register(chain)))
    raw[-33] ^= 1  # the netuid
    assert _refused(chain, bytes(raw)).data == "Transaction has a bad signature"


def test_a_transaction_of_another_chain_is_refused(chain, codec: Codec, clock) -> None:
    subnet = chain.subnet.hyperparameters
    other = Ledger(Store(None), codec, clock, netuid=chain.netuid, settings=subnet)
    assert other.genesis.hash != chain.ledger.genesis.hash
    raw = chain.sign(chain.alice, _register(chain), genesis=other.genesis.hash)
    other.submit(raw)
    assert _refused(chain, raw).data == "Transaction has a bad signature"


def test_a_long_payload_is_signed_by_its_hash(chain) -> None:
    chain.set(commit_reveal_weights_enabled=True, stake_threshold=0)
    call = chain.call(
        "commit_timelocked_mechanism_weights",
        netuid=chain.netuid,
        mecid=0,
        commit=bytes(400),
        reveal_round=1,
        commit_reveal_version=4,
    )
    extrinsic = chain.ledger.submit(chain.sign(chain.alice, call))
    assert extrinsic.arguments["commit"] == bytes(400)


# eras


@given(st.integers(2, 16), st.integers(0, 2**16), st.integers(0, 10**6))
def test_an_era_holds_its_birth_and_ends_one_period_later(exponent: int, phase: int, current: int) -> None:
    period = 2**exponent
    era = Era(period, phase % period)
    birth = era.birth(current)
    assert birth % period == era.phase
    assert era.death(current) == birth + period
    if current >= era.phase:
        assert birth <= current < era.death(current)


def test_an_era_ends(chain) -> None:
    chain.fund(chain.alice)
    chain.seal(6)
    era = Era(4, chain.ledger.head.number % 4)
    raw = chain.sign(chain.alice, _register(chain), era=era)
    chain.seal(2)
    chain.ledger.submit(raw)  # the next block is the last that may have it
    chain.seal()
    late = chain.sign(chain.alice, _register(chain), nonce=1, era=era, anchor=chain.ledger.block(7).hash)
    # Seen from block 11 the era began in block 11, and seen from block 12 it began in another than was signed.
    assert _refused(chain, late).data == "Transaction has an ancient birth block"
    chain.seal()
    assert _refused(chain, late).data == "Transaction has a bad signature"


def test_an_era_that_began_before_the_oldest_known_block_is_ancient(chain) -> None:
    chain.seal()
    chain.ledger._blocks[chain.ledger.head.number + BLOCK_HASH_COUNT + 5] = chain.ledger.head
    raw = chain.sign(chain.alice, _register(chain), era=Era(65536, 2 * 16), anchor=bytes(32))
    assert _refused(chain, raw).data == "Transaction has an ancient birth block"


# nonces


def test_a_nonce_is_used_once(chain) -> None:
    chain.fund(chain.alice)
    raw = chain.sign(chain.alice, _register(chain))
    chain.ledger.submit(raw)
    assert _refused(chain, raw).message == "Transaction Already Imported"
    chain.seal()
    error = _refused(chain, raw)
    assert (error.code, error.data) == (INVALID, "Transaction is outdated")


def test_a_place_in_the_pool_is_taken_once(chain) -> None:
    chain.ledger.submit(chain.sign(chain.alice, _register(chain), nonce=0))
    other = chain.call("burned_register", netuid=chain.netuid, hotkey=chain.bob.ss58_address)
    assert _refused(chain, chain.sign(chain.alice, other, nonce=0)).message == "Priority is too low"


def test_a_nonce_ahead_of_its_time_waits_for_those_before_it(chain) -> None:
    chain.fund(chain.alice)
    late = chain.sign(chain.alice, _register(chain), nonce=1)
    chain.ledger.submit(late)
    assert chain.ledger.seal().included == ()
    assert chain.ledger.next_nonce(chain.alice.ss58_address) == 0
    other = chain.call("burned_register", netuid=chain.netuid, hotkey=chain.bob.ss58_address)
    chain.ledger.submit(chain.sign(chain.alice, other, nonce=0))
    assert chain.ledger.next_nonce(chain.alice.ss58_address) == 2
    assert [extrinsic.nonce for extrinsic in chain.ledger.seal().included] == [0, 1]


# what is no extrinsic


def test_oversized_extrinsics_are_refused(chain) -> None:
    error = _refused(chain, bytes(MAX_BYTES + 1))
    assert (error.code, error.data) == (INVALID, "Transaction would exhaust the block limits")


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:-1],
        lambda raw: raw + b"\x00",
        lambda raw: raw[1:],
        lambda raw: compact(3) + b"\x85\x00\x00",
        lambda raw: compact(1) + b"\x84",
        lambda raw: compact(2) + b"\x84\x00",
    ],
)
def test_damaged_extrinsics_have_a_bad_format(chain, damage) -> None:
    raw = chain.sign(chain.alice, _register(chain))
    assert _refused(chain, damage(raw)).code == BAD_FORMAT


def test_unknown_calls_and_bytes_behind_the_arguments_have_a_bad_format(chain) -> None:
    assert "no call 07ff" in _refused(chain, chain.sign(chain.alice, b"\x07\xff")).data
    assert "behind the arguments" in _refused(chain, chain.sign(chain.alice, _register(chain) + b"\x00")).data


@pytest.mark.parametrize("era", ["1000", "4100", "f100"])
def test_eras_that_cannot_be_have_a_bad_format(chain, era: str) -> None:
    raw = chain.sign(chain.alice, _register(chain))
    offset = len(compact(len(raw))) + 1 + 33 + 65
    body = raw[len(compact(len(raw))) : offset] + bytes.fromhex(era) + raw[offset + 1 :]
    assert _refused(chain, compact(len(body)) + body).code == BAD_FORMAT


def test_unsigned_extrinsics_are_not_for_the_pool(chain) -> None:
    assert _refused(chain, timestamp_extrinsic(5)).code == UNKNOWN_VALIDITY


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_bytes_come_the_pool_answers_with_an_error_of_its_own(chain, data) -> None:
    raw = bytearray(chain.sign(chain.alice, _register(chain)))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    for mutated in (bytes(raw), bytes(raw[:cut])):
        with contextlib.suppress(PoolError):
            decode_extrinsic(mutated, chain.codec)
