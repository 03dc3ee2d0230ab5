"""What exactly is signed: written down here, because both ends of a test make their messages with the same code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bittensor
import pytest

from compute.base.errors import StoreError
from compute.base.store import Database
from compute.protocol import Allocate
from compute.wire import signing
from compute.wire.signing import SignerMemory, answer_message, request_message, verify_signature

SIGNED = sorted(set(Allocate.model_fields) - set(bittensor.Synapse.model_fields) - {"output", "body_signature"})
"""Every field of the body that a caller fills; a new one must be signed too."""
UNSIGNED = sorted(set(Allocate.model_fields) - set(SIGNED))


def request() -> Allocate:
    synapse = Allocate(timeline=3, checking=False, public_key="PEM")
    synapse.device_requirement = {"gpu": {"type": "L4", "count": 1, "capacity": 0}, "cpu": {"count": 1}}
    synapse.docker_requirement["ssh_key"] = "ssh-ed25519 AAAA zoë"
    return synapse


def message(**changes: Any) -> bytes:
    return request_message("Allocate", 7, {**request().model_dump(), **changes})


def test_the_message_of_a_request_is_the_one_that_peers_make() -> None:
    # By hand, without this code: printf '%s' '<canonical>' | sha256sum. Canonical is
    # {"checking":false,"device_requirement":{"cpu":{"count":1},"gpu":{"capacity":0,"count":1,"type":"L4"}},
    # "docker_action":{"action":"","key_type":"","ssh_key":""},"docker_change":false,"docker_requirement":
    # {"base_image":"ubuntu","dockerfile":"","ssh_key":"ssh-ed25519 AAAA zo\u00eb","ssh_port":4444,
    # "volume_path":"/tmp"},"public_key":"PEM","timeline":3} without the line breaks, and \u00eb six characters.
    assert message() == b"Allocate.7.f19cfcdfd67c33c26b918e0cbaee24367e542283e63d22cba7df0e0ebe2c7a50"


def test_the_message_of_an_answer_is_the_one_that_peers_make() -> None:
    # printf '%s' YmFzZTY0 | sha256sum
    expected = "info.7.5Caller.8f729a679259902fb5f6659de7281ae8fe61733b34ea4ad95198a64b686509be"
    assert answer_message(7, "5Caller", "YmFzZTY0") == expected.encode()


@pytest.mark.parametrize("field", SIGNED)
def test_changing_any_one_field_changes_the_message(field: str) -> None:
    value = request().model_dump()[field]
    if isinstance(value, dict):
        others = [{**value, key: "another"} for key in value] + [{**value, "more": 0}, {}]
    else:
        others = [not value if isinstance(value, bool) else value + type(value)(1)]
    assert len({message(), *(message(**{field: other}) for other in others)}) == len(others) + 1


@pytest.mark.parametrize("field", UNSIGNED)
def test_what_changes_on_the_way_is_not_signed(field: str) -> None:
    assert message(**{field: "another"}) == message()


def test_the_message_is_bound_to_its_path_and_nonce() -> None:
    fields = request().model_dump()
    assert len({request_message(path, nonce, fields) for path in ("Allocate", "Specs") for nonce in (7, 8)}) == 4


def test_a_signature_on_the_wire() -> None:
    assert signing.encode(b"\x0f" * 64) == "0x" + "0f" * 64
    assert signing.decode("0x" + "0f" * 64) == b"\x0f" * 64


@pytest.mark.parametrize("text", [None, b"0x" + b"0f" * 64, "", "0x", "0x" + "0f" * 63, "0x" + "0f" * 65, "0f" * 65])
def test_anything_else_is_no_signature(text: object) -> None:
    assert signing.decode(text) is None
    assert signing.decode("0x" + "zz" * 64) is None


def test_a_signature_is_of_one_hotkey_over_one_message() -> None:
    alice, bob = (bittensor.Keypair.create_from_uri(uri) for uri in ("//Alice", "//Bob"))
    signature = alice.sign(b"message")
    assert verify_signature(alice.ss58_address, b"message", signature) is True
    assert verify_signature(bob.ss58_address, b"message", signature) is False
    assert verify_signature(alice.ss58_address, b"another", signature) is False
    assert verify_signature("not an address", b"message", signature) is False
    assert verify_signature(alice.ss58_address, b"message", b"short") is False


def test_who_has_signed_is_known_after_a_restart() -> None:
    database = Database(":memory:")
    memory = SignerMemory(database)
    memory.remember(["a", "b"], 1.0)
    memory.remember(["b", "c"], 2.0)
    for each in (memory, SignerMemory(database)):
        assert [each.knows(hotkey) for hotkey in "abcd"] == [True, True, True, False]
    first_seen = {row["hotkey"]: row["first_seen"] for row in database.query("SELECT * FROM known_signer")}
    assert first_seen == {"a": 1.0, "b": 1.0, "c": 2.0}


def test_who_has_signed_is_known_though_it_cannot_be_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(":memory:")
    memory = SignerMemory(database)

    @contextmanager
    def full() -> Iterator[None]:
        raise StoreError("disk full")
        yield

    monkeypatch.setattr(database, "transaction", full)
    with pytest.raises(StoreError):
        memory.remember(["a"], 1.0)
    assert memory.knows("a")
    memory.remember(["a"], 2.0)
