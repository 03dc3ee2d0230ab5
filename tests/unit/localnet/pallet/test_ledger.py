from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compute.localnet.pallet import ledger as ledger_module
from compute.localnet.pallet.errors import PoolError
from compute.localnet.pallet.ledger import RECENT_STATES
from compute.localnet.pallet.pool import MAX_TRANSACTIONS
from compute.localnet.substrate.runtime import BLOCK_HASH_COUNT, RUNTIME

TAO = 10**9


def test_the_chain_begins_with_one_empty_subnet(chain) -> None:
    assert chain.ledger.head.number == 0
    assert list(chain.ledger.head_state.subnets) == [chain.netuid]
    assert chain.subnet.neurons == ()


def test_blocks_follow_each_other(chain, clock) -> None:
    clock.advance(5)
    first = chain.ledger.seal().block
    assert (first.number, first.parent_hash) == (1, chain.ledger.genesis.hash)
    assert chain.ledger.number_of(first.hash) == 1
    assert chain.ledger.head_state.timestamp_milliseconds == int(clock.now() * 1000)
    second = chain.ledger.seal().block
    assert second.parent_hash == first.hash
    # The clock stood still; a block's time does not.
    assert chain.ledger.head_state.timestamp_milliseconds == int(clock.now() * 1000) + 1


def test_a_refused_call_is_in_its_block_and_changes_nothing_but_the_nonce(chain) -> None:
    chain.fund(chain.alice, rao=10 * TAO)
    before = chain.ledger.head_state
    error = chain.run(chain.alice, "burned_register", netuid=28, hotkey=chain.alice.ss58_address)
    after = chain.ledger.head_state
    assert error == "SubnetNotExists"
    assert after.subnets[chain.netuid].neurons == ()
    assert after.account(chain.alice.ss58_address).free == before.account(chain.alice.ss58_address).free
    assert after.account(chain.alice.ss58_address).nonce == 1
    assert len(chain.ledger.head.extrinsics) == 2


def test_calls_of_one_block_see_each_other(chain) -> None:
    chain.fund(chain.alice, chain.bob)
    for key in (chain.alice, chain.bob):
        chain.submit(key, "burned_register", netuid=chain.netuid, hotkey=chain.carol.ss58_address)
    sealed = chain.ledger.seal()
    assert [extrinsic.signer for extrinsic in sealed.included] == [chain.alice.ss58_address, chain.bob.ss58_address]
    assert chain.last_error() == "HotKeyAlreadyRegisteredInSubNet"
    assert [neuron.coldkey for neuron in chain.subnet.neurons] == [chain.alice.ss58_address]


def test_what_the_pool_s_checks_refuse_meanwhile_is_dropped(validator) -> None:
    chain = validator
    for nonce in (1, 2):
        call = chain.call("set_weights", netuid=chain.netuid, dests=[1], weights=[nonce], version_key=0)
        chain.ledger.submit(chain.sign(chain.alice, call, nonce=nonce))
    sealed = chain.ledger.seal()
    assert [extrinsic.nonce for extrinsic in sealed.included] == [1]
    assert [extrinsic.nonce for extrinsic in sealed.dropped] == [2]
    assert chain.ledger.head_state.account(chain.alice.ss58_address).nonce == 2


def test_a_transaction_that_waits_too_long_is_dropped(chain) -> None:
    from compute.localnet.substrate.extrinsics import Era

    call = chain.call("burned_register", netuid=chain.netuid, hotkey=chain.alice.ss58_address)
    chain.ledger.submit(chain.sign(chain.alice, call, nonce=7, era=Era(4, 0)))
    assert [len(chain.ledger.seal().dropped) for _ in range(5)] == [0, 0, 0, 1, 0]


def test_an_unregistered_hotkey_is_refused_by_dispatch_where_the_pool_lets_it_pass(validator) -> None:
    chain = validator
    chain.set(stake_threshold=0)
    arguments = {"netuid": chain.netuid, "dests": [0], "weights": [1], "version_key": 0}
    assert chain.run(chain.carol, "set_weights", **arguments) == "HotKeyNotRegisteredInSubNet"


def test_an_amendment_is_a_block_of_its_own(chain) -> None:
    chain.fund(chain.alice, rao=5)
    assert chain.ledger.head.number == 1
    assert chain.ledger.head_state.account(chain.alice.ss58_address).free == 5
    assert chain.ledger.state(0).account(chain.alice.ss58_address).free == 0


def test_states_and_blocks_are_forgotten_in_their_time(chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "RECENT_STATES", 3)
    monkeypatch.setattr(ledger_module, "BLOCK_HASH_COUNT", 5)
    chain.seal(12)
    assert [number for number in range(13) if chain.ledger.state(number)] == [10, 11, 12]
    assert [number for number in range(13) if chain.ledger.block(number)] == [0, 7, 8, 9, 10, 11, 12]
    assert chain.ledger.genesis.number == 0
    assert RECENT_STATES >= 256
    assert BLOCK_HASH_COUNT >= 4096


def test_the_pool_has_a_limit(chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compute.localnet.pallet.pool.MAX_TRANSACTIONS", 2)
    call = chain.call("burned_register", netuid=chain.netuid, hotkey=chain.alice.ss58_address)
    for nonce in (0, 1):
        chain.ledger.submit(chain.sign(chain.alice, call, nonce=nonce))
    with pytest.raises(PoolError, match="Immediately Dropped"):
        chain.ledger.submit(chain.sign(chain.alice, call, nonce=2))
    assert MAX_TRANSACTIONS > 256


def test_the_burn_falls_from_block_to_block(chain) -> None:
    chain.register(chain.alice, chain.bob)
    burn = chain.subnet.burn
    chain.seal(20)
    assert chain.subnet.hyperparameters.min_burn <= chain.subnet.burn < burn


def test_an_epoch_ends_every_tempo_blocks(chain) -> None:
    ends = []
    for _ in range(35):
        chain.seal()
        if chain.subnet.last_epoch_block == chain.ledger.head.number:
            ends.append(chain.ledger.head.number)
    assert ends == [10, 20, 30]
    assert chain.subnet.epoch_index == 3


def test_a_validator_s_weights_become_incentive_and_dividends(validator) -> None:
    chain = validator
    arguments = {"netuid": chain.netuid, "dests": [1], "weights": [9], "version_key": 0}
    assert chain.run(chain.alice, "set_weights", **arguments) is None
    chain.seal(10)
    alice, bob = chain.subnet.neurons
    assert (alice.dividends, alice.incentive, bob.incentive, bob.dividends) == (65535, 0, 65535, 0)
    assert (alice.validator_trust, bob.consensus) == (65535, 65535)
    assert alice.emission == bob.emission == 5 * TAO
    assert alice.bonds == ((1, 6553),)
    assert alice.validator_permit
    assert not bob.validator_permit


_ARGUMENTS = {
    "NetUid": st.sampled_from([27, 27, 27, 0, 28]),
    "MechId": st.sampled_from([0, 0, 1]),
    "AccountId": st.sampled_from([f"5{'x' * 10}", "alice", "bob"]),
    "Tao": st.integers(0, 2**64 - 1),
    "u8": st.integers(0, 255),
    "u16": st.integers(0, 65535),
    "u32": st.integers(0, 2**32 - 1),
    "u64": st.integers(0, 2**64 - 1),
    "u128": st.integers(0, 2**128 - 1),
    "Vec<u8>": st.binary(max_size=50),
    "Vec<u16>": st.lists(st.integers(0, 2) | st.integers(0, 65535), max_size=4),
}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_is_called_with_whatever_the_chain_goes_on(validator, data) -> None:
    """Calls end in a pallet error or in a state that can be run through an epoch and encoded in every way."""
    chain = validator
    chain.set(
        stake_threshold=data.draw(st.sampled_from([0, 1000 * TAO])),
        weights_rate_limit=0,
        commit_reveal_weights_enabled=data.draw(st.booleans()),
    )
    addresses = {"alice": chain.alice.ss58_address, "bob": chain.bob.ss58_address}
    subtensor = RUNTIME.pallets[-1]
    for _ in range(data.draw(st.integers(1, 5))):
        call = data.draw(st.sampled_from(subtensor.calls))
        arguments = {name: data.draw(_ARGUMENTS[target]) for name, target in call.arguments}
        if "hotkey" in arguments:
            arguments["hotkey"] = addresses.get(arguments["hotkey"], chain.carol.ss58_address)
        with contextlib.suppress(PoolError):
            chain.submit(data.draw(st.sampled_from([chain.alice, chain.bob])), call.name, **arguments)
        chain.seal()
    chain.seal(11)
    for pallet in RUNTIME.pallets:
        for item in pallet.storage:
            for value in item.entries(chain.ledger.head_state).values():
                chain.codec.encode(item.value, value)
    neurons = RUNTIME.apis["NeuronInfoRuntimeApi"]["get_neurons"]
    chain.codec.encode(neurons.result, neurons.answer(chain.ledger.head_state, 27))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from(["register", "stake"])), max_size=12))
def test_money_is_burned_or_staked_but_never_made(chain, steps: list[tuple[int, int, str]]) -> None:
    keys = [chain.alice, chain.bob, chain.carol, chain.dave]
    chain.fund(*keys, rao=10 * TAO)

    def total() -> int:
        state = chain.ledger.head_state
        return sum(each.free for each in state.accounts.values()) + sum(
            chain.subnet.stake_of(hotkey) for hotkey in chain.subnet.stakes
        )

    before = total()
    for who, hotkey, action in steps:
        burn = chain.subnet.burn
        registered = len(chain.subnet.neurons)
        address = keys[hotkey].ss58_address
        if action == "register":
            chain.run(keys[who], "burned_register", netuid=chain.netuid, hotkey=address)
        else:
            chain.run(keys[who], "add_stake", netuid=chain.netuid, hotkey=address, amount_staked=3 * TAO)
        assert before - total() in ((0,) if len(chain.subnet.neurons) == registered else range(1, burn + 1))
        before = total()
        hotkeys = [neuron.hotkey for neuron in chain.subnet.neurons]
        assert len(set(hotkeys)) == len(hotkeys)
        assert all(account.free >= 0 for account in chain.ledger.head_state.accounts.values())
