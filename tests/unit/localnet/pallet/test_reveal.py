"""Committed weights are opened by drand's signature of their round, here round 1000 of quicknet, which is public."""

from __future__ import annotations

import logging

import bittensor_drand
import pytest

from compute.localnet.pallet import reveal
from compute.localnet.pallet.reveal import Beacon, open_commit
from compute.localnet.pallet.state import Commit
from compute.localnet.substrate.codec import address_to_key
from compute.localnet.substrate.scale import compact
from compute.testing.clock import ManualClock
from tests.waiting import DEADLINE_SECONDS

ROUND = 1000
# https://api.drand.sh/52db9ba70e0cc0f6eaf7803dd07447a1f5477735fd3f661792ba94600c84e971/public/1000
SIGNATURE = "b44679b9a59af2ec876b1a6b1ad52ea9b1615fc3982b19576350f93447cb1125e342b73a8dd2bacbe47e4b6b63ed5e39"


def _ciphertext(hotkey: str, uids: list[int], values: list[int], version_key: int = 0) -> bytes:
    """What ``get_encrypted_commit_v2`` makes, for a round that is over."""
    content = compact(32) + address_to_key(hotkey)
    for numbers in (uids, values):
        content += compact(len(numbers)) + b"".join(number.to_bytes(2, "little") for number in numbers)
    locked, _ = bittensor_drand.encrypt_at_round(content + version_key.to_bytes(8, "little"), ROUND)
    return bytes(locked)[:-8]


@pytest.fixture
def committed(validator, monkeypatch: pytest.MonkeyPatch):
    """Commits weights of Alice's under round 1000; drand is out of reach."""

    def fetch(_: int) -> str:
        raise ValueError("no network")

    monkeypatch.setattr(bittensor_drand, "get_signature_for_round", fetch)
    validator.set(commit_reveal_weights_enabled=True, tempo=10)

    def commit(uids: list[int], values: list[int], *, author=None) -> None:
        ciphertext = _ciphertext((author or validator.alice).ss58_address, uids, values)
        arguments = {"mecid": 0, "commit": ciphertext, "reveal_round": ROUND, "commit_reveal_version": 4}
        validator.submit(validator.alice, "commit_timelocked_mechanism_weights", netuid=27, **arguments)
        validator.seal()
        assert validator.last_error() is None

    validator.commit = commit
    return validator


def _seal_until_epoch(chain, index: int) -> None:
    while chain.subnet.epoch_index < index:
        chain.seal()


def test_weights_are_revealed_in_their_epoch_and_count_in_it(committed) -> None:
    chain = committed
    chain.commit([1], [7])
    chain.ledger.beacon._signatures[ROUND] = SIGNATURE
    last_update = chain.subnet.neurons[0].last_update
    epoch = chain.subnet.epoch_index
    assert chain.subnet.neurons[0].weights == ()
    _seal_until_epoch(chain, epoch + 1)
    assert chain.subnet.neurons[0].weights == ((1, 65535),)
    assert chain.subnet.neurons[0].last_update == last_update
    assert chain.subnet.commits == ()
    assert chain.subnet.neurons[1].incentive == 65535


def test_weights_stay_sealed_without_a_signature_and_their_commit_runs_out(committed) -> None:
    chain = committed
    chain.commit([1], [7])
    epoch = chain.subnet.epoch_index
    _seal_until_epoch(chain, epoch + 1)
    assert len(chain.subnet.commits) == 1
    assert chain.subnet.neurons[0].weights == ()
    _seal_until_epoch(chain, epoch + 2)
    assert chain.subnet.commits == ()


def test_a_signature_that_comes_late_in_the_epoch_still_reveals(committed) -> None:
    chain = committed
    chain.commit([1], [7])
    _seal_until_epoch(chain, chain.subnet.epoch_index + 1)
    chain.ledger.beacon._signatures[ROUND] = SIGNATURE
    chain.seal()
    assert chain.subnet.neurons[0].weights == ((1, 65535),)


@pytest.mark.parametrize(
    ("uids", "values", "author", "message"),
    [
        ([5], [7], None, "UidVecContainInvalidOne"),
        ([0, 1], [7], None, "WeightVecNotEqualSize"),
        ([1], [7], "bob", "weights of another hotkey"),
    ],
)
def test_what_breaks_a_rule_is_gone_without_effect(committed, caplog, uids, values, author, message) -> None:
    chain = committed
    chain.commit(uids, values, author=author and getattr(chain, author))
    chain.ledger.beacon._signatures[ROUND] = SIGNATURE
    with caplog.at_level(logging.WARNING, logger="compute.localnet.pallet.reveal"):
        _seal_until_epoch(chain, chain.subnet.epoch_index + 1)
    assert message in caplog.text
    assert chain.subnet.commits == ()
    assert chain.subnet.neurons[0].weights == ()


def test_an_open_commit_hides_older_weights_from_a_newcomer(committed) -> None:
    """Weights revealed earlier do not count for a uid that registered after a commit that is still open."""
    chain = committed
    chain.change_neuron(0, weights=((1, 65535),))
    chain.commit([1], [7])
    chain.seal(3)
    chain.change_neuron(1, registered_at=chain.ledger.head.number)
    chain.change_neuron(0, last_update=chain.ledger.head.number + 1)
    _seal_until_epoch(chain, chain.subnet.epoch_index + 1)
    assert chain.subnet.neurons[1].incentive == 0


def test_a_commit_opens_only_with_its_own_round_s_signature(chain) -> None:
    hotkey = chain.alice.ss58_address
    commit = Commit(hotkey, 0, 1, _ciphertext(hotkey, [1, 2], [3, 4], 9), ROUND)
    assert open_commit(commit, SIGNATURE) == ([1, 2], [3, 4], 9)
    for bad in ("", "zz", SIGNATURE[:-2] + "00"):
        with pytest.raises(ValueError, match=r"."):
            open_commit(commit, bad)
    with pytest.raises(ValueError, match=r"."):
        open_commit(Commit(hotkey, 0, 1, b"\x00rubbish", ROUND), SIGNATURE)


def test_the_beacon_asks_for_what_is_over_and_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock(reveal._GENESIS_SECONDS + 3 * 100)
    asked = []

    def fetch(reveal_round: int) -> str:
        asked.append(reveal_round)
        if len(asked) == 1:
            raise ValueError("no network")
        return "abcd"

    monkeypatch.setattr(bittensor_drand, "get_signature_for_round", fetch)
    beacon = Beacon(clock)

    def want(*rounds: int) -> None:
        beacon.want(rounds)
        if beacon._fetching is not None:
            beacon._fetching.join(DEADLINE_SECONDS)

    want(101)
    assert asked == []
    want(100, 99)
    assert (asked, beacon.signature_of(99)) == ([99], None)
    want(100, 99)
    assert (asked, beacon.signature_of(99)) == ([99, 99], "abcd")
    want(100, 99)
    want(100, 99)
    assert asked == [99, 99, 100]
    clock.advance(3)
    want(101)
    assert asked[-1] == 101
