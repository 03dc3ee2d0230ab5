"""Machines that skip work, do other work, or show other work than they did."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compute.proof import digest, generator
from compute.proof.fakes import FakeDevice, FakeMachine
from compute.reasons import ProofReason

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


async def test_a_replay_of_the_last_nonce_is_worth_nothing(build: Build, prove: Any) -> None:
    machine = build(AnswersFromTheLastNonce)
    (first,) = await prove(machine)
    (second,) = await prove(machine)
    assert (first.reason, second.reason) == (ProofReason.OK, ProofReason.WRONG_ROW)


async def test_a_nonce_leaked_to_the_next_batch_is_worth_nothing(build: Build, prove: Any) -> None:
    first, second = build(), build(AnswersFromTheLastNonce)
    await prove(first)
    second.nonces.append(first.nonces[0])
    (verdict,) = await prove(second)
    assert verdict.reason is ProofReason.WRONG_ROW
    assert len({*first.nonces, *second.nonces}) == 2


def test_a_linear_digest_could_be_forged_and_ours_cannot() -> None:
    rng = np.random.default_rng(1)
    rows, k, columns = 64, 16, 128
    a = rng.integers(-181, 182, (rows, k))
    b = rng.integers(-181, 182, (k, columns))
    held = digest.stored(a @ b)
    weights = rng.integers(-(2**15), 2**15, columns)
    # A linear digest of every row of C for O(K) a row, without C: what a digest must not allow.
    np.testing.assert_array_equal(a @ (b @ weights), (a @ b) @ weights)
    key_words = digest.word_keys(columns, bytes(range(32)))
    first, second = held[:1], held[1:2]
    together = digest.row_digests(np.ascontiguousarray(first + second), key_words)
    apart = digest.row_digests(first, key_words) + digest.row_digests(second, key_words)
    assert together != apart


def _hankel(rows: int, columns: int, seed: int) -> NDArray[np.int64]:
    values = np.random.default_rng(seed).integers(-181, 182, rows + columns)
    return values[np.add.outer(np.arange(rows), np.arange(columns))]


def test_a_hankel_generator_could_be_forged_and_ours_cannot() -> None:
    n = 64
    a, b = _hankel(n, n, 1), _hankel(n, n, 2)
    # Rows of a Hankel matrix overlap, so each row of A·B follows from the one before in O(n): the validator's
    # arithmetic is satisfied at the cost of n², not n³.
    c = np.empty((n, n), np.int64)
    c[0] = a[0] @ b
    c[:, 0] = a @ b[:, 0]
    for i in range(1, n):
        for j in range(1, n):
            c[i, j] = c[i - 1, j - 1] - a[i - 1, 0] * b[0, j - 1] + a[i, n - 1] * b[n - 1, j]
    # The recurrence needs a(i,k) = a(i-1,k+1) and b(k,j) = b(k+1,j-1).
    np.testing.assert_array_equal(c, a @ b)
    ours = generator.rows(np.arange(n), n, generator.seed(b"nonce"))
    assert np.mean(ours[1:, :-1] == ours[:-1, 1:]) < 0.02
    assert np.linalg.matrix_rank(ours) == n
