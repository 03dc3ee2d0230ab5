from __future__ import annotations

from typing import Any

import bittensor
import pytest

from compute.base.errors import LeaseError, StoreError
from compute.base.reasons import Refusal
from compute.base.store import Database
from compute.protocol import Allocate
from compute.testing.clock import ManualClock
from compute.wire import signing
from compute.wire.answers import SignedAnswers, accepted, open_info
from compute.wire.keys import RenterKey
from compute.wire.peer import Peer
from compute.wire.signing import SignerMemory

PEER = Peer("5Miner", "127.0.0.1", 8091)
SIGNATURE = b"s" * 64


def refusal(**output: object) -> LeaseError:
    with pytest.raises(LeaseError) as caught:
        accepted(PEER, {"status": False, **output})
    return caught.value


def test_a_yes_is_returned_as_it_came() -> None:
    output = {"status": True, "info": "x"}
    assert accepted(PEER, output) is output


@pytest.mark.parametrize("output", [None, [True], {}, {"status": 1}, {"status": "true"}])
def test_an_output_without_a_boolean_status_is_no_answer(output: object) -> None:
    with pytest.raises(LeaseError, match="no boolean status") as caught:
        accepted(PEER, output)
    assert caught.value.reason is Refusal.BAD_ANSWER


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        ("gpu_count", Refusal.GPU_COUNT),
        ("a new one", Refusal.UNSPECIFIED),
        (None, Refusal.UNSPECIFIED),
        (["gpu_count"], Refusal.UNSPECIFIED),
        # what only the renter's side concludes
        ("bad_answer", Refusal.UNSPECIFIED),
        ("unpinned", Refusal.UNSPECIFIED),
    ],
)
def test_the_reason_of_a_no(stated: object, reason: Refusal) -> None:
    assert refusal(reason=stated).reason is reason


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0.0),
        (1.5, 1.5),
        (86_400, 86_400.0),
        (86_400.5, None),
        (-1, None),
        (True, None),
        (float("nan"), None),
        ("5", None),
        (None, None),
    ],
)
def test_when_to_ask_again_is_from_now_to_a_day(value: object, seconds: float | None) -> None:
    assert refusal(retry_after=value).retry_after_seconds == seconds


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ({}, "gave no reason"),
        ({"message": ""}, "gave no reason"),
        ({"reason": "odd"}, "says 'odd'"),
        ({"reason": "odd", "message": "full"}, "says 'full'"),
        ({"message": ["full"]}, "says a list"),
        ({"message": "x" * 198}, f"says '{'x' * 198}'"),
        ({"message": "x" * 199}, f"says '{'x' * 199}…"),
        ({"message": -(1 << 62)}, f"says {-(1 << 62)}"),
        ({"message": (1 << 62) + 1}, "says a huge number"),
    ],
)
def test_a_no_is_quoted_shortly(output: dict[str, object], text: str) -> None:
    assert str(refusal(**output)) == f"miner 5Miner refused: {text}"


def test_an_info_of_one_rsa_block_is_opened_and_a_longer_one_is_not() -> None:
    owner = RenterKey.generate()
    for sealed, words in (("A" * 512, "does not decrypt"), ("A" * 513, "at most 512 characters"), (5, "info 5 is not")):
        with pytest.raises(LeaseError, match=words) as caught:
            open_info(PEER, owner, sealed)
        assert caught.value.reason is Refusal.BAD_ANSWER


class Check:
    """``SignedAnswers`` whose verifier believes ``SIGNATURE`` over the message for nonce 7 and caller 5Caller."""

    def __init__(self) -> None:
        self.memory = SignerMemory(Database(":memory:"))
        self.answers = SignedAnswers(self.verify, self.memory, ManualClock())

    def verify(self, hotkey: str, message: bytes, signature: bytes) -> bool:
        return (hotkey, message, signature) == ("5Miner", signing.answer_message(7, "5Caller", "sealed"), SIGNATURE)

    def __call__(self, output: dict[str, object], *, nonce: int | None = 7, hotkey: str | None = "5Caller") -> None:
        terminal = bittensor.TerminalInfo(nonce=nonce, hotkey=hotkey)
        self.answers.check(PEER, Allocate(output=output, dendrite=terminal))


SIGNED = {"info": "sealed", "info_signature": signing.encode(SIGNATURE)}


def test_a_signed_answer_is_believed_and_an_unsigned_one_no_more() -> None:
    check = Check()
    check({"info": "sealed"})
    assert not check.memory.knows("5Miner")
    check(SIGNED)
    assert check.memory.knows("5Miner")
    check({"status": True})
    with pytest.raises(LeaseError, match="signed before") as caught:
        check({"info": "sealed"})
    assert caught.value.reason is Refusal.BAD_ANSWER


@pytest.mark.parametrize(
    ("output", "terminal", "words"),
    [
        ({**SIGNED, "info": "another"}, {}, "not the miner's"),
        (SIGNED, {"nonce": 8}, "not the miner's"),
        (SIGNED, {"hotkey": "5Other"}, "not the miner's"),
        (SIGNED, {"nonce": None}, "malformed"),
        (SIGNED, {"hotkey": None}, "malformed"),
        ({**SIGNED, "info_signature": "0x12"}, {}, "malformed"),
    ],
)
def test_a_signature_of_anything_else_is_not_believed(output: Any, terminal: Any, words: str) -> None:
    check = Check()
    with pytest.raises(LeaseError, match=words):
        check(output, **terminal)
    assert not check.memory.knows("5Miner")


def test_an_answer_that_names_no_caller_is_not_believed() -> None:
    answer = Allocate(output=SIGNED)
    answer.dendrite = None
    with pytest.raises(LeaseError, match="malformed"):
        Check().answers.check(PEER, answer)


def test_that_a_miner_signs_need_not_be_written_down(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise StoreError("disk full")

    check = Check()
    monkeypatch.setattr(check.memory, "remember", fail)
    check(SIGNED)
    assert "5Miner signs its answers could not be recorded" in caplog.text
