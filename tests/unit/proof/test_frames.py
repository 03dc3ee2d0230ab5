from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.base.errors import FrameError
from compute.base.reasons import ProofReason
from compute.proof import frames
from compute.proof.models import MAX_DEVICES, DeviceInfo

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ANSWERS = st.fixed_dictionaries(
    {"type": st.sampled_from(["hello", "prepared", "root", "opened", "failed"])},
    optional=dict.fromkeys(("device", "pass", "devices", "torch", "code", "message"), JSON),
)


def refused(header: bytes) -> ProofReason:
    with pytest.raises(FrameError) as caught:
        frames.parse_answer(header)
    return caught.value.reason


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_frame_error_or_an_answer(data: bytes) -> None:
    assert refused(data) is ProofReason.BAD_FRAME


@settings(max_examples=200)
@given(ANSWERS)
def test_arbitrary_fields_are_a_frame_error_or_a_valid_answer(fields: dict[str, Any]) -> None:
    try:
        answer = frames.parse_answer(json.dumps(fields).encode())
    except FrameError:
        return
    if isinstance(answer, frames.Root | frames.Prepared | frames.Opened):
        assert 0 <= answer.device < MAX_DEVICES
    if isinstance(answer, frames.Failed):
        assert (answer.code + answer.message).isprintable()


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"type": "prepared", "device": 2}, frames.Prepared(2)),
        ({"type": "root", "device": 0, "pass": 7, "unknown": [1]}, frames.Root(0, 7)),
        ({"type": "opened", "device": 15}, frames.Opened(15)),
        ({"type": "failed", "code": "memory", "message": "öom"}, frames.Failed("memory", "öom")),
        (
            {"type": "hello", "torch": "2.9", "devices": [{"name": "x", "uuid": None, "memory_bytes": 85 * 10**9}]},
            frames.Hello("2.9", (DeviceInfo("x", None, 85 * 10**9),)),
        ),
        ({"type": "hello", "torch": "2.9", "devices": []}, frames.Hello("2.9", ())),
    ],
)
def test_a_good_header_is_its_answer(fields: dict[str, object], answer: frames.Answer) -> None:
    encoded = frames.encode(fields, b"payload")
    length = frames.parse_length(encoded[: frames.LENGTH_BYTES])
    header = encoded[frames.LENGTH_BYTES :][:length]
    assert frames.parse_answer(header) == answer
    assert encoded[frames.LENGTH_BYTES + length :] == b"payload"


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"null",
        b"[]",
        b"3",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b"{}",
        b'{"type":null}',
        b'{"type":"root"}',
        b'{"type":"root","device":16,"pass":0}',
        b'{"type":"root","device":1.0,"pass":0}',
        b'{"type":"root","device":"0","pass":0}',
        b'{"type":"root","device":false,"pass":0}',
        b'{"type":"opened","device":0,"device":0}',
        b'{"type":"opened","device":0,"x":{"a":1,"a":2}}',
        b'{"type":"opened","device":0,"x":NaN}',
        b'{"type":"opened","device":0,"x":-Infinity}',
        b'{"type":"opened","device":0,"x":1e999}',
        b'{"type":"opened","device":0,"x":9007199254740993}',
        b'{"type":"opened","device":0,"x":' + b"9" * 4050 + b"}",
        b'{"type":"opened","device":0,"x":[[[[1]]]]}',
        b'{"x":' + b"[" * 4000,
        b'{"type":"failed","code":"internal","message":"\\u001b[2J"}',
        b'{"type":"failed","code":"internal","message":"\\ud800"}',
        b'{"type":"failed","code":"internal","message":"' + b"x" * 201 + b'"}',
        b'{"type":"hello","torch":"2","devices":{}}',
        b'{"type":"hello","torch":"2","devices":[1]}',
        b'{"type":"hello","torch":"2","devices":[{"name":"x","uuid":5,"memory_bytes":0}]}',
        b'{"type":"hello","torch":"2","devices":[{"name":"x","memory_bytes":-1}]}',
        b'{"type":"opened","device":0} {}',
    ],
)
def test_a_bad_header_is_refused(header: bytes) -> None:
    assert refused(header) is ProofReason.BAD_FRAME


def test_nesting_up_to_the_limit_is_fine() -> None:
    assert frames.parse_object(b'{"x":[[[1]]]}') == {"x": [[[1]]]}


@pytest.mark.parametrize(
    ("length", "reason"),
    [(0, ProofReason.BAD_FRAME), (4097, ProofReason.OVERSIZED_FRAME), (2**32 - 1, ProofReason.OVERSIZED_FRAME)],
)
def test_a_bad_length_is_refused(length: int, reason: ProofReason) -> None:
    with pytest.raises(FrameError) as caught:
        frames.parse_length(length.to_bytes(4, "little"))
    assert caught.value.reason is reason


def test_the_largest_length_is_fine() -> None:
    assert frames.parse_length((4096).to_bytes(4, "little")) == 4096


def test_a_long_unknown_type_is_not_quoted_in_full() -> None:
    with pytest.raises(FrameError) as caught:
        frames.parse_answer(json.dumps({"type": "x" * 3000}).encode())
    assert len(str(caught.value)) < 300
