from __future__ import annotations

from dataclasses import replace
from typing import Any

import bittensor
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.testing.clock import ManualClock
from compute.wire.keys import SessionKey
from compute.wire.receipts import RENEW_SECONDS, Issuer, Receipt, ReceiptError, check
from compute.wire.signing import verify_signature

VALIDATOR = bittensor.Keypair.create_from_uri("//validator")
OTHER = bittensor.Keypair.create_from_uri("//other")
MINER = bittensor.Keypair.create_from_uri("//miner").ss58_address
HOST_KEY = SessionKey.generate().fingerprint
CLOCK = ManualClock()
NOW = CLOCK.now()
DAY = 86_400.0


def issue(days: float = 2, netuid: int = 27, key: Any = VALIDATOR) -> Receipt:
    return Issuer(key, key.ss58_address, netuid, CLOCK).issue(MINER, HOST_KEY, 4444, NOW + days * DAY)


def checked(receipt: Receipt, now: float = NOW, miner: str = MINER) -> None:
    check(receipt, netuid=27, miner=miner, now=now, verify=verify_signature)


def test_a_receipt_is_good_until_its_end() -> None:
    receipt = issue()
    assert Receipt.from_wire(receipt.to_wire()) == receipt
    checked(receipt)
    checked(receipt, now=NOW + 2 * DAY - 1)
    with pytest.raises(ReceiptError, match="over"):
        checked(receipt, now=NOW + 2 * DAY)


def test_a_long_lease_has_more_than_one_receipt() -> None:
    assert issue(days=90).until == int(NOW + 7 * DAY)
    checked(issue(days=90))
    assert RENEW_SECONDS == 3.5 * DAY


def test_a_receipt_far_in_the_future_is_none() -> None:
    issuer = Issuer(VALIDATOR, VALIDATOR.ss58_address, 27, ManualClock(NOW + 601))
    late = issuer.issue(MINER, HOST_KEY, 4444, NOW + 90 * DAY)
    with pytest.raises(ReceiptError, match="more than 7 days"):
        checked(late)
    checked(late, now=NOW + 1)


def test_the_signed_message_is_the_one_that_peers_make() -> None:
    messages = []

    def verify(*asked: object) -> bool:
        messages.append(asked)
        return True

    receipt = Receipt("5Validator", "5Miner", "SHA256:" + "A" * 43, 4444, 1_700_000_000, "0x" + "ab" * 64)
    check(receipt, netuid=27, miner="5Miner", now=receipt.until - 1, verify=verify)
    text = f'["compute-subnet rental receipt v1",27,"5Validator","5Miner","SHA256:{"A" * 43}",4444,1700000000]'
    assert messages == [("5Validator", text.encode(), b"\xab" * 64)]


def test_a_receipt_is_for_one_miner_and_one_subnet() -> None:
    with pytest.raises(ReceiptError, match="another miner"):
        checked(issue(), miner=OTHER.ss58_address)
    with pytest.raises(ReceiptError, match="signature"):
        checked(issue(netuid=15))


def test_nobody_rents_his_own_machine() -> None:
    own = Issuer(OTHER, MINER, 27, CLOCK).issue(MINER, HOST_KEY, 4444, NOW + DAY)
    with pytest.raises(ReceiptError, match="the miner itself"):
        checked(own)


@pytest.mark.parametrize(
    "changes",
    [
        {"validator": OTHER.ss58_address},
        {"host_key": SessionKey.generate().fingerprint},
        {"port": 22},
        {"until": int(NOW + 3 * DAY)},
        {"signature": "0x" + "00" * 64},
        {"validator": "not-a-hotkey"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_is_changed_breaks_the_signature(changes: dict[str, Any]) -> None:
    with pytest.raises(ReceiptError, match="signature is not that"):
        checked(replace(issue(), **changes))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("validator", "x" * 65),
        ("validator", None),
        ("miner", "a b"),
        ("host_key", "SHA256:short"),
        ("host_key", "MD5:" + "A" * 43),
        ("port", 0),
        ("port", 65_536),
        ("port", True),
        ("port", 4444.0),
        ("until", 0),
        ("until", (1 << 40) + 1),
        ("until", "soon"),
        ("signature", "0x12"),
        ("signature", "0X" + "ab" * 64),
        ("signature", ["0x" + "ab" * 64]),
    ],
)
def test_a_malformed_field_is_named(field: str, value: object) -> None:
    with pytest.raises(ReceiptError, match=field):
        Receipt.from_wire({**issue().to_wire(), field: value})


@pytest.mark.parametrize(("field", "value"), [("port", 1), ("port", 65_535), ("until", 1), ("until", 1 << 40)])
def test_a_number_may_be_at_its_bound(field: str, value: int) -> None:
    assert getattr(Receipt.from_wire({**issue().to_wire(), field: value}), field) == value


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100)
@given(JSON, st.sampled_from(["validator", "miner", "host_key", "port", "until", "signature", "more"]), JSON)
def test_whatever_a_peer_sends_is_a_receipt_or_an_error_of_ours(whole: object, field: str, value: object) -> None:
    for wire in (whole, {**issue().to_wire(), field: value}):
        try:
            assert isinstance(Receipt.from_wire(wire), Receipt)
        except ReceiptError:
            continue
