"""Proofs that can be forged without the work: against a verifier that asks for them, and against ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compute.base.reasons import ProofReason
from compute.proof import digest, generator
from compute.testing.proof import FakeDevice, FakeMachine

Build = Callable[..., FakeMachine]
Matrix = NDArray[np.int64]


class Forges(FakeMachine):
    """Computes no product. Its card is as slow as the multiplications that it does need allow."""

    multiplications: int

    def compute_seconds(self) -> float:
        return 2 * self.multiplications / (self.tflops16 * 1e12)


class ForgesAHankelProduct(Forges):
    """Fills C along its diagonals.

    Rows of a Hankel matrix overlap: a(i, k) = a(i-1, k+1). So c(i, j) follows from c(i-1, j-1) with two
    multiplications, whatever K is.
    """

    def make_device(self, nonce: bytes, index: int) -> FakeDevice:
        a, b = self.matrix_a(nonce, index), self.matrix_b(nonce)
        device = FakeDevice(index, a, hankel_product(a.astype(np.int64), b.astype(np.int64)))
        rows, k, columns = self.dims.rows, self.dims.k, self.dims.columns
        self.multiplications = k * columns + k * rows + 2 * rows * columns
        return device


class ForgesLinearDigests(Forges):
    """Holds no C: the digests of a whole pass follow from B times the key's weights, for O(K) a row."""

    def make_device(self, nonce: bytes, index: int) -> FakeDevice:
        device = super().make_device(nonce, index)
        self.b = self.matrix_b(nonce).astype(np.int64)
        self.multiplications = self.dims.k * (self.dims.columns + self.dims.rows)
        return device

    def pass_digests(self, device: FakeDevice, key: bytes) -> NDArray[np.int64]:
        weights = linear_weights(digest.word_keys(self.dims.columns, key))
        return (device.a.astype(np.int64) @ (self.b @ weights)) & 0xFFFF


def hankel_product(a: Matrix, b: Matrix) -> Matrix:
    c = np.empty((len(a), b.shape[1]), np.int64)
    c[0] = a[0] @ b
    c[:, 0] = a @ b[:, 0]
    for i in range(1, len(a)):
        c[i, 1:] = c[i - 1, :-1] - a[i - 1, 0] * b[0, :-1] + a[i, -1] * b[-1, 1:]
    return c


def hankel_rows(indices: NDArray[Any], columns: int, words: generator.Words) -> NDArray[np.int32]:
    """The generator of older proofs: entry (i, j) is ``f(seed + i + j)``."""
    places = np.add.outer(indices, np.arange(columns)).astype(np.uint32)
    values = generator.fmix(places + words[0])
    return ((values >> np.uint32(16)) * np.uint32(363) >> np.uint32(16)).astype(np.int32) - 181


def hankel_project(words: generator.Words, row_count: int, vector: Matrix) -> Matrix:
    products: Matrix = hankel_rows(np.arange(row_count), len(vector), words).astype(np.int64) @ vector
    return products


def linear_weights(key_words: generator.Words) -> Matrix:
    return np.repeat(key_words.astype(np.int64), 2)


def linear_digests(rows: NDArray[np.int16], key_words: generator.Words) -> NDArray[np.int64]:
    digests: Matrix = (rows.astype(np.int64) @ linear_weights(key_words)) & 0xFFFF
    return digests


@pytest.fixture
def asks_for_hankel_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verifier, and honest machines, of a proof whose matrices are ``f(seed + i + j)``."""
    monkeypatch.setattr(generator, "rows", hankel_rows)
    monkeypatch.setattr(generator, "project", hankel_project)


@pytest.fixture
def asks_for_linear_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "row_digests", linear_digests)


def slow(build: Build, kind: type[FakeMachine], part: int) -> FakeMachine:
    """A machine whose card computes at one ``part``-th of the rate of the card that it claims to be."""
    return build(kind, tflops16=5e-6 / part)


@pytest.mark.usefixtures("asks_for_hankel_matrices")
async def test_a_hankel_generator_is_forged_by_a_card_of_a_twentieth_of_the_rate(build: Build, prove: Any) -> None:
    (honest,) = await prove(build())
    (slow_and_honest,) = await prove(slow(build, FakeMachine, 10))
    (forged,) = await prove(slow(build, ForgesAHankelProduct, 20))
    assert [verdict.reason for verdict in (honest, slow_and_honest, forged)] == [
        ProofReason.OK,
        ProofReason.SLOWER_THAN_CLAIMED,
        ProofReason.OK,
    ]


async def test_the_same_forgery_of_our_generator_is_a_wrong_row(build: Build, prove: Any) -> None:
    (verdict,) = await prove(slow(build, ForgesAHankelProduct, 20))
    assert (verdict.reason, verdict.count) == (ProofReason.WRONG_ROW, 0)


@pytest.mark.usefixtures("asks_for_linear_digests")
async def test_linear_digests_are_forged_by_a_card_of_a_fiftieth_of_the_rate(build: Build, prove: Any) -> None:
    (honest,) = await prove(build())
    (forged,) = await prove(slow(build, ForgesLinearDigests, 50))
    assert [honest.reason, forged.reason] == [ProofReason.OK, ProofReason.OK]


async def test_the_same_forgery_of_our_digests_is_a_wrong_row(build: Build, prove: Any) -> None:
    (verdict,) = await prove(slow(build, ForgesLinearDigests, 50))
    assert (verdict.reason, verdict.count) == (ProofReason.WRONG_ROW, 0)


# Structures that make a matrix cheap to multiply, as what is left of it after taking it from its shifted self: nothing
# or little of a structured one, everything of one without.
DISPLACEMENTS: dict[str, Callable[[Matrix], Matrix]] = {
    "hankel: f(i + j)": lambda x: x[1:, :-1] - x[:-1, 1:],
    "toeplitz: f(i - j)": lambda x: x[1:, 1:] - x[:-1, :-1],
    "circulant: f(i - j mod n)": lambda x: np.roll(x, 1, (0, 1)) - x,
    "dyadic: f(i ^ j)": lambda x: x[np.arange(len(x)) ^ 1][:, np.arange(len(x)) ^ 1] - x,
    "low rank: f(i) g(j)": lambda x: x,
}
STRUCTURED: dict[str, Callable[[NDArray[np.int64], Matrix, Matrix], Matrix]] = {
    "hankel: f(i + j)": lambda f, i, j: f[i + j],
    "toeplitz: f(i - j)": lambda f, i, j: f[i - j],
    "circulant: f(i - j mod n)": lambda f, i, j: f[(i - j) % len(i)],
    "dyadic: f(i ^ j)": lambda f, i, j: f[i ^ j],
    "low rank: f(i) g(j)": lambda f, i, j: f[i] * f[j + 7],
}


def rank(matrix: Matrix) -> int:
    return int(np.linalg.matrix_rank(matrix.astype(np.float64)))


@pytest.mark.parametrize("structure", DISPLACEMENTS)
def test_our_matrices_have_no_structure_that_makes_products_cheap(structure: str) -> None:
    n = 256
    displaced = DISPLACEMENTS[structure]
    i, j = np.indices((n, n))
    values = np.random.default_rng(3).integers(-181, 182, 2 * n)
    assert rank(displaced(STRUCTURED[structure](values, i, j))) <= 1
    for name in (b"A", b"B"):
        ours = generator.rows(np.arange(n), n, generator.seed(bytes(32), name)).astype(np.int64)
        # A random matrix's displacement may fall short by what the shift itself leaves out.
        assert rank(displaced(ours)) >= n // 2 - 2 if "dyadic" in structure else rank(displaced(ours)) >= n - 2


@pytest.mark.parametrize("bit", range(9))
def test_every_bit_of_our_entries_is_a_matrix_of_full_rank(bit: int) -> None:
    ours = generator.rows(np.arange(256), 256, generator.seed(bytes(32), b"A")).astype(np.int64) + generator.OFFSET
    assert rank(ours >> bit & 1) >= 255


def test_no_row_of_ours_is_a_combination_of_others_with_small_coefficients() -> None:
    """Rows that were sums or differences of few others would let C be computed from fewer products."""
    ours = generator.rows(np.arange(200), 4096, generator.seed(bytes(32), b"A")).astype(np.float64)
    gram = ours @ ours.T / (np.mean(ours**2) * 4096)
    np.fill_diagonal(gram, 0)
    # Independent rows correlate by 1/√4096; 40000 pairs reach five of that with a probability of 0.01.
    assert np.abs(gram).max() < 6 / 64


def test_the_halves_that_share_a_hash_are_unrelated() -> None:
    """Columns j and j + n/2 come from one word: were one a function of the other, half of the product would do."""
    ours = generator.rows(np.arange(512), 512, generator.seed(bytes(32), b"B"))
    pairs: Sequence[NDArray[np.int32]] = (ours[:, :256].ravel() + 181, ours[:, 256:].ravel() + 181)
    joint = np.histogram2d(*pairs, bins=33)[0]
    expected = np.outer(joint.sum(1), joint.sum(0)) / joint.sum()
    statistic = float(((joint - expected) ** 2 / expected).sum())
    # χ² with 32² degrees of freedom: mean 1024, deviation 45.
    assert abs(statistic - 1024) < 6 * 45.3
