"""Machines that break the conversation: with sizes, with silence, with what is no frame, or by dying."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compute.base.reasons import ProofReason
from compute.proof import frames
from compute.testing.proof import FakeMachine

Build = Callable[..., FakeMachine]


def raw(header: bytes) -> bytes:
    return len(header).to_bytes(4, "little") + header


class SaysInsteadOfAnswering(FakeMachine):
    """Answers ``compute`` with the bytes it was given, then waits."""

    def __init__(self, *options: Any, words: bytes, **named: Any) -> None:
        super().__init__(*options, **named)
        self.words = words

    async def on_compute(self, nonce: bytes, count: int) -> None:
        self.channel.to_validator.write(self.words)
        await self.spend(3600.0)


class Bomb:
    """Unpickling it would end the validator."""

    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        import os

        return os._exit, (66,)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        pytest.param((4097).to_bytes(4, "little"), ProofReason.OVERSIZED_FRAME, id="sends-a-frame-just-too-large"),
        pytest.param(b"\xff" * 4, ProofReason.OVERSIZED_FRAME, id="sends-a-huge-frame"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", ProofReason.OVERSIZED_FRAME, id="sends-another-protocol"),
        pytest.param(bytes(4), ProofReason.BAD_FRAME, id="sends-an-empty-frame"),
        pytest.param(raw(b"\x00\xff\xfe garbage"), ProofReason.BAD_FRAME, id="sends-garbage"),
        pytest.param(raw(b'{"type":"root","device":NaN,"pass":0}'), ProofReason.BAD_FRAME, id="sends-nan"),
        pytest.param(raw(b'{"type":"root","device":-1,"pass":0}'), ProofReason.BAD_FRAME, id="sends-minus-one"),
        pytest.param(raw(b'{"type":"root","device":true,"pass":0}'), ProofReason.BAD_FRAME, id="sends-true"),
        pytest.param(raw(b'{"type":"root","device":' + b"9" * 4000 + b"}"), ProofReason.BAD_FRAME, id="sends-bigint"),
        pytest.param(raw(b'{"a":' * 500 + b"1" + b"}" * 500), ProofReason.BAD_FRAME, id="sends-deep-json"),
        pytest.param(raw(b"[" * 4096), ProofReason.BAD_FRAME, id="sends-deeper-json"),
        pytest.param(raw(b'{"type":"root","type":"root"}'), ProofReason.BAD_FRAME, id="sends-a-key-twice"),
        pytest.param(raw(pickle.dumps(Bomb())), ProofReason.BAD_FRAME, id="sends-a-pickle"),
        pytest.param(frames.encode({"type": "prepared", "device": 0}), ProofReason.BAD_FRAME, id="answers-out-of-turn"),
        pytest.param(
            frames.encode({"type": "root", "device": 1, "pass": 0}, bytes(32)),
            ProofReason.BAD_FRAME,
            id="answers-for-a-device-it-did-not-claim",
        ),
        pytest.param(
            frames.encode({"type": "root", "device": 0, "pass": 1}, bytes(32)),
            ProofReason.BAD_FRAME,
            id="skips-a-pass",
        ),
        pytest.param(frames.encode({"type": "roots", "roots": []}), ProofReason.BAD_FRAME, id="sends-no-roots"),
        pytest.param(
            frames.encode({"type": "failed", "code": "internal", "message": "sorry"}),
            ProofReason.WORKER_FAILED,
            id="gives-up",
        ),
        pytest.param(
            frames.encode({"type": "root", "device": 0, "pass": 0}, bytes(31)),
            ProofReason.TIMEOUT,
            id="sends-a-short-frame",
        ),
        pytest.param(b"", ProofReason.TIMEOUT, id="says-nothing"),
    ],
)
async def test_is_refused(words: bytes, reason: ProofReason, build: Build, prove: Any) -> None:
    machine = build(SaysInsteadOfAnswering, words=words)
    (verdict,) = await prove(machine)
    assert (verdict.reason, verdict.count) == (reason, 0)


class DripsItsOpening(FakeMachine):
    """Sends its rows a byte a second: each byte is progress, and the frame never ends."""

    def send(self, header: dict[str, object], payload: bytes = b"") -> None:
        if header["type"] == "opened":
            self.dripping = frames.encode(header, payload)
        else:
            super().send(header, payload)

    async def on_open(self, lines: Sequence[NDArray[np.int32]]) -> None:
        await super().on_open(lines)
        for position in range(100):
            self.channel.to_validator.write(self.dripping[position : position + 1])
            await self.spend(1.0)


class SendsMoreThanItOpens(FakeMachine):
    """Follows each opening with bytes nobody asked for; with two devices they come where a frame should begin."""

    def send(self, header: dict[str, object], payload: bytes = b"") -> None:
        super().send(header, payload + b"\xff" * 100_000 if header["type"] == "opened" else payload)


class OpensOneDeviceTwice(FakeMachine):
    async def on_open(self, lines: Sequence[NDArray[np.int32]]) -> None:
        for device in self.devices:
            device.index = 0
        await super().on_open(lines)


class SendsOneRootTooMany(FakeMachine):
    """Stands in for its second device with one more root of the first."""

    def send_root(self, index: int, number: int, root: bytes) -> None:
        super().send_root(0, number + index, root)


async def test_one_root_too_many_is_refused(build: Build, prove: Any) -> None:
    (verdict,) = await prove(build(SendsOneRootTooMany, devices=2))
    assert (verdict.reason, verdict.count) == (ProofReason.BAD_FRAME, 0)


@pytest.mark.parametrize(
    ("cheat", "reason"),
    [
        (DripsItsOpening, ProofReason.TIMEOUT),
        (SendsMoreThanItOpens, ProofReason.OVERSIZED_FRAME),
        (OpensOneDeviceTwice, ProofReason.BAD_FRAME),
    ],
)
async def test_opening_is_refused(cheat: type[FakeMachine], reason: ProofReason, build: Build, prove: Any) -> None:
    (verdict,) = await prove(build(cheat, devices=2))
    assert (verdict.reason, verdict.ok) == (reason, False)


class Dies(FakeMachine):
    """Its stream ends at one step of the conversation."""

    def __init__(self, *options: Any, phase: str, **named: Any) -> None:
        super().__init__(*options, **named)
        self.phase = phase

    async def _answer(self, header: dict[str, Any]) -> None:
        if header["type"] == self.phase:
            raise EOFError
        await super()._answer(header)


@pytest.mark.parametrize("phase", ["hello", "prepare", "compute", "rehash", "open"])
async def test_dies_in_a_phase(phase: str, build: Build, prove: Any) -> None:
    machine = build(Dies, phase=phase)
    (verdict,) = await prove(machine)
    assert (verdict.reason, verdict.count) == (ProofReason.WORKER_FAILED, 0)
    assert machine.log[-1] == phase


async def test_dying_at_goodbye_changes_nothing(build: Build, prove: Any) -> None:
    class DiesAfterOpening(FakeMachine):
        async def on_open(self, lines: Sequence[NDArray[np.int32]]) -> None:
            await super().on_open(lines)
            raise EOFError

    (verdict,) = await prove(build(DiesAfterOpening))
    assert verdict.ok


async def test_a_machine_that_dies_does_not_hold_the_others_up(build: Build, prove: Any) -> None:
    dead, honest = build(Dies, phase="prepare"), build()
    verdicts = await prove(dead, honest)
    assert [verdict.reason for verdict in verdicts] == [ProofReason.WORKER_FAILED, ProofReason.OK]
