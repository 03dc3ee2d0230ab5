"""Machines that skip work, do other work, or show other work than they did."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compute.base.reasons import ProofReason
from compute.proof import digest, generator
from compute.testing.proof import FakeDevice, FakeMachine

Build = Callable[..., FakeMachine]


class SkipsHalfOfTheRows(FakeMachine):
    """Computes every other row: each opened row is caught with probability one half."""

    def make_device(self, nonce: bytes, index: int) -> FakeDevice:
        device = super().make_device(nonce, index)
        device.c[::2] = 7
        return device


class SkipsHalfOfTheRowsAndOpensThemHonestly(FakeMachine):
    """Computes the skipped rows when they are asked for; but other values had been committed to."""

    honest: NDArray[np.int64]

    def make_device(self, nonce: bytes, index: int) -> FakeDevice:
        device = super().make_device(nonce, index)
        self.honest = device.c.copy()
        device.c[::2] = 7
        return device

    def opened_rows(self, device: FakeDevice, rows: Sequence[int]) -> NDArray[np.int64]:
        taken: NDArray[np.int64] = self.honest[list(rows)]
        return taken


class CommitsRandomDigests(FakeMachine):
    """Never computes a product: random digests, and the asked rows are computed when they are opened."""

    def pass_digests(self, device: FakeDevice, key: bytes) -> NDArray[np.int64]:
        return np.frombuffer(secrets.token_bytes(8 * self.dims.rows), "<i8")


class UsesAnotherHotkeysA(FakeMachine):
    """Answers with the work of a friend's card."""

    def matrix_a(self, nonce: bytes, index: int) -> NDArray[np.int32]:
        seed = generator.seed_a(nonce, self.validator, "friend", index)
        return generator.rows(np.arange(self.dims.rows), self.dims.k, seed)


class UsesOneAForAllDevices(FakeMachine):
    """Answers for two devices with the work of one."""

    def matrix_a(self, nonce: bytes, index: int) -> NDArray[np.int32]:
        return super().matrix_a(nonce, 0)


class AnswersFromTheLastNonce(FakeMachine):
    """Replays what it computed the first time, in no time."""

    def make_device(self, nonce: bytes, index: int) -> FakeDevice:
        return super().make_device(self.nonces[0], index)


class TampersWithOneEntry(FakeMachine):
    def opened_rows(self, device: FakeDevice, rows: Sequence[int]) -> NDArray[np.int64]:
        found = super().opened_rows(device, rows)
        found[3, 5] += 1
        return found


class TampersBeyondSixteenBits(FakeMachine):
    """An error that int16 does not show, so that every digest still fits."""

    def opened_rows(self, device: FakeDevice, rows: Sequence[int]) -> NDArray[np.int64]:
        found = super().opened_rows(device, rows)
        found[0, 0] += 1 << 16
        return found


class OpensAnotherRow(FakeMachine):
    """Opens the next row instead of the one asked for, with that row's own, valid block and path."""

    def open_device(self, device: FakeDevice, rows: Sequence[int], passes: Sequence[Sequence[int]]) -> bytes:
        others = [row + 1 if (row + 1) % digest.BLOCK_ROWS and row + 1 < self.dims.rows else row - 1 for row in rows]
        return super().open_device(device, others, passes)


class OpensAnotherBlock(FakeMachine):
    """Right rows, but digest blocks that belong elsewhere in the tree."""

    def open_device(self, device: FakeDevice, rows: Sequence[int], passes: Sequence[Sequence[int]]) -> bytes:
        payload = bytearray(super().open_device(device, rows, passes))
        start = len(rows) * 4 * self.dims.columns
        payload[start:] = secrets.token_bytes(len(payload) - start)
        return bytes(payload)


class OpensOtherPasses(FakeMachine):
    """Answers for the passes asked with the one pass that it did right."""

    def open_device(self, device: FakeDevice, rows: Sequence[int], passes: Sequence[Sequence[int]]) -> bytes:
        return super().open_device(device, rows, [[1 if number != 1 else 2 for number in asked] for asked in passes])


@pytest.mark.parametrize(
    ("cheat", "reason"),
    [
        (SkipsHalfOfTheRows, ProofReason.WRONG_ROW),
        (SkipsHalfOfTheRowsAndOpensThemHonestly, ProofReason.WRONG_ROW),
        (CommitsRandomDigests, ProofReason.WRONG_ROW),
        (UsesAnotherHotkeysA, ProofReason.WRONG_ROW),
        (TampersWithOneEntry, ProofReason.WRONG_ROW),
        (TampersBeyondSixteenBits, ProofReason.WRONG_ROW),
        (OpensAnotherRow, ProofReason.WRONG_ROW),
        (OpensAnotherBlock, ProofReason.BAD_OPENING),
        (OpensOtherPasses, ProofReason.BAD_OPENING),
    ],
)
async def test_is_caught(cheat: type[FakeMachine], reason: ProofReason, build: Build, prove: Any) -> None:
    (verdict,) = await prove(build(cheat))
    assert (verdict.reason, verdict.ok, verdict.count, verdict.gpu) == (reason, False, 0, None)


async def test_an_honest_machine_is_not(build: Build, prove: Any) -> None:
    (verdict,) = await prove(build(devices=2))
    assert (verdict.reason, verdict.ok, verdict.count, verdict.gpu) == (ProofReason.OK, True, 2, "Card")
    assert verdict.devices[0].tflops16 == pytest.approx(5e-6)
    assert verdict.devices[0].bandwidth_gbs == pytest.approx(1e-3)


async def test_one_a_for_two_devices_proves_one(build: Build, prove: Any) -> None:
    (verdict,) = await prove(build(UsesOneAForAllDevices, devices=2))
    assert (verdict.reason, verdict.count) == (ProofReason.WRONG_ROW, 1)
    assert [device.reason for device in verdict.devices] == [ProofReason.OK, ProofReason.WRONG_ROW]


class AnswersFromALeakedNonce(AnswersFromTheLastNonce):
    """Is told the nonce of another batch by a friend who is in it, long before its own proof, and computes that."""


async def test_a_replay_of_the_last_nonce_is_worth_nothing(build: Build, prove: Any) -> None:
    machine = build(AnswersFromTheLastNonce)
    (first,) = await prove(machine)
    (second,) = await prove(machine)
    assert (first.reason, second.reason) == (ProofReason.OK, ProofReason.WRONG_ROW)


async def test_a_nonce_leaked_to_the_next_batch_is_worth_nothing(build: Build, prove: Any) -> None:
    first, second = build(), build(AnswersFromALeakedNonce)
    await prove(first)
    second.nonces.append(first.nonces[0])
    (verdict,) = await prove(second)
    assert verdict.reason is ProofReason.WRONG_ROW
    assert len({*first.nonces, *second.nonces}) == 2
