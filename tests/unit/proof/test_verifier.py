from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from benches.proof import Answer, honest_answer
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.base.errors import ProofError
from compute.base.reasons import ProofReason
from compute.proof import generator
from compute.proof.statement import Dims
from compute.proof.verifier import Projection, draw_projection

DIMS = Dims(rows=3 * 1024 + 100, k=128, columns=256, passes=6, tile_rows=512)
NONCE = bytes(range(32))
C_BYTES = 24 * 4 * DIMS.columns


@pytest.fixture(scope="module")
def projection() -> Projection:
    return draw_projection(NONCE, DIMS.k, DIMS.columns)


@pytest.fixture(scope="module")
def answer(projection: Projection) -> Answer:
    return honest_answer(DIMS, projection, NONCE, rows=24, passes=3)


def reason_of(answer: Answer) -> ProofReason:
    try:
        answer.verify()
    except ProofError as error:
        return error.reason
    return ProofReason.OK


def with_bytes(answer: Answer, offset: int, flip: int) -> Answer:
    payload = bytearray(answer.payload)
    payload[offset] ^= flip
    return replace(answer, payload=bytes(payload))


def test_an_honest_answer_is_right(answer: Answer) -> None:
    assert reason_of(answer) is ProofReason.OK


@settings(max_examples=60)
@given(data=st.data())
def test_no_bit_of_an_answer_is_free(data: st.DataObject, answer: Answer) -> None:
    offset = data.draw(st.integers(0, len(answer.payload) - 1))
    changed = with_bytes(answer, offset, 1 << data.draw(st.integers(0, 7)))
    expected = ProofReason.WRONG_ROW if offset < C_BYTES else ProofReason.BAD_OPENING
    assert reason_of(changed) is expected


@pytest.mark.parametrize("cut", [1, 32, 8192])
def test_an_answer_of_another_length_is_no_answer(answer: Answer, cut: int) -> None:
    assert reason_of(replace(answer, payload=answer.payload[:-cut])) is ProofReason.BAD_OPENING
    assert reason_of(replace(answer, payload=answer.payload + bytes(cut))) is ProofReason.BAD_OPENING
    assert reason_of(replace(answer, payload=b"")) is ProofReason.BAD_OPENING


def test_an_answer_for_other_rows_is_wrong(answer: Answer) -> None:
    first, second, *rest = answer.question.rows
    swapped = replace(answer.question, rows=(second, first, *rest))
    changed = replace(answer, question=swapped)
    # Where the two rows differ in the length of their block, the length gives it away first.
    assert reason_of(changed) in (ProofReason.WRONG_ROW, ProofReason.BAD_OPENING)


@pytest.mark.parametrize("other", [b"\x01" * 32, bytes(32)])
def test_an_answer_for_another_nonce_is_wrong(answer: Answer, other: bytes, projection: Projection) -> None:
    seed = generator.seed_a(other, "validator", "miner", 0)
    assert reason_of(replace(answer, a_seed=seed)) is ProofReason.WRONG_ROW
    fresh = draw_projection(other, DIMS.k, DIMS.columns)
    assert reason_of(replace(answer, projection=fresh)) is ProofReason.WRONG_ROW


def test_another_secret_accepts_the_same_honest_answer(answer: Answer) -> None:
    assert reason_of(replace(answer, projection=draw_projection(NONCE, DIMS.k, DIMS.columns))) is ProofReason.OK


def test_a_larger_k_of_the_batch_serves_a_smaller_one(answer: Answer) -> None:
    assert reason_of(replace(answer, projection=draw_projection(NONCE, 512, DIMS.columns))) is ProofReason.OK


def test_roots_in_another_order_are_wrong(answer: Answer) -> None:
    roots = list(answer.evidence.roots)
    roots[0], roots[1] = roots[1], roots[0]
    assert reason_of(replace(answer, evidence=replace(answer.evidence, roots=tuple(roots)))) is ProofReason.BAD_OPENING


@pytest.mark.parametrize(("number", "reason"), [(0, ProofReason.WRONG_ROW), (None, ProofReason.NOT_RESIDENT)])
def test_digests_under_another_key_are_wrong(answer: Answer, number: int | None, reason: ProofReason) -> None:
    asked = answer.question.passes[0][0] if number is None else number
    keys = list(answer.evidence.keys)
    keys[asked] = bytes(32)
    assert reason_of(replace(answer, evidence=replace(answer.evidence, keys=tuple(keys)))) is reason


def _error(entries: dict[int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    error = np.zeros(DIMS.columns, np.int64)
    for place, value in entries.items():
        error[place] = value
    return error


@pytest.mark.parametrize(
    "make",
    [
        lambda: _error({0: 1}),
        lambda: _error({7: -(2**31)}),
        lambda: _error({3: 2**31}),
        lambda: _error({3: 2**16, 4: -(2**16)}),
        lambda: np.full(DIMS.columns, 2**31, np.int64),
    ],
)
def test_errors_chosen_without_the_secret_do_not_vanish(
    make: Callable[[], np.ndarray[tuple[int, ...], np.dtype[np.int64]]],
) -> None:
    missed = 0
    for _ in range(200):
        secret = draw_projection(NONCE, 2, DIMS.columns)
        missed += int((make() * secret.vector).sum() == 0)
    assert missed == 0


def test_the_secret_fills_its_range() -> None:
    vector = draw_projection(NONCE, 2, 32768).vector
    assert -(2**29) <= vector.min() < -(2**28)
    assert 2**28 < vector.max() < 2**29
    assert abs(vector.mean()) < 2**24
