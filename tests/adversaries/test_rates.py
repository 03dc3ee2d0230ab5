"""How often a cheat is caught where that is a matter of chance: the real questions and the real verification.

Each rate is derived, then counted over many proofs. A count outside of the bounds has a probability below ``ERROR`` if
the derived rate is the true one, so a test that fails has found that it is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from compute.base.errors import ProofError
from compute.base.reasons import ProofReason
from compute.proof import digest, generator, verifier
from compute.proof.models import ProofSettings
from compute.proof.session import draw_question
from compute.proof.statement import Dims
from compute.proof.verifier import Evidence, Projection, draw_projection, verify_device
from compute.testing.clock import ManualClock
from compute.testing.proof import FakeDevice, FakeMachine

ERROR = 1e-9
DIMS = Dims(rows=600, k=16, columns=16, passes=20, tile_rows=512)
SETTINGS = ProofSettings(device="cpu", rows=DIMS.rows, k=DIMS.k, columns=DIMS.columns)
NONCE = bytes(range(32))
FIRST_KEY = bytes(range(32, 64))
ROWS, PASSES = SETTINGS.opened_rows, SETTINGS.opened_passes


class SkipsATenthOfTheRows(FakeMachine):
    """Never computes the first ``part`` of the rows. Which ones makes no difference: the questions are uniform."""

    part = 0.1

    def make_device(self, nonce: bytes, index: int) -> FakeDevice:
        device = super().make_device(nonce, index)
        device.c[: round(self.part * self.dims.rows)] = 7
        return device


class SkipsAQuarterOfTheRows(SkipsATenthOfTheRows):
    part = 0.25


class SkipsFiveRows(SkipsATenthOfTheRows):
    part = 5 / 600


class DropsATenthOfC(FakeMachine):
    """Commits honestly, lets a tenth of C go, and makes up its digests in every pass."""

    def pass_digests(self, device: FakeDevice, key: bytes) -> NDArray[np.int64]:
        found = super().pass_digests(device, key)
        if device.digests:
            found[: self.dims.rows // 10] = 1
        return found


class FakesATenthOfThePasses(FakeMachine):
    """Makes up two passes of twenty."""

    faked: tuple[int, ...] = (5, 6)

    def pass_digests(self, device: FakeDevice, key: bytes) -> NDArray[np.int64]:
        found = super().pass_digests(device, key)
        return found + 1 if len(device.digests) in self.faked else found


class FakesOnePass(FakesATenthOfThePasses):
    faked = (20,)


class FakesOtherDigestsInEveryPass(FakeMachine):
    """Leaves out 3 in 100 rows of every pass, others each time: each opened pass of each row is another chance."""

    def pass_digests(self, device: FakeDevice, key: bytes) -> NDArray[np.int64]:
        found = super().pass_digests(device, key)
        if device.digests:
            left_out = np.random.default_rng(len(device.digests)).permutation(self.dims.rows)[
                : self.dims.rows * 3 // 100
            ]
            found[left_out] = 1
        return found


def _missing_rows(wrong: int) -> float:
    """The probability that no opened row is one of ``wrong``."""
    return math.comb(DIMS.rows - wrong, ROWS) / math.comb(DIMS.rows, ROWS)


def _missing_passes(faked: int) -> float:
    """The probability that no opened row has one of ``faked`` passes opened."""
    return (math.comb(DIMS.passes - faked, PASSES) / math.comb(DIMS.passes, PASSES)) ** ROWS


def _bounds(trials: int, rate: float) -> tuple[int, int]:
    """The counts outside of which a binomial variable falls with a probability below ``ERROR``."""

    def probability(count: int) -> float:
        ways = math.lgamma(trials + 1) - math.lgamma(count + 1) - math.lgamma(trials - count + 1)
        return math.exp(ways + count * math.log(rate) + (trials - count) * math.log1p(-rate))

    below = above = 0.0
    low, high = 0, trials
    while (below := below + probability(low)) < ERROR / 2:
        low += 1
    while (above := above + probability(high)) < ERROR / 2:
        high -= 1
    return low, high


def _prover(kind: type[FakeMachine]) -> Callable[[], ProofReason]:
    """A machine after its timed phases; each call opens and verifies it once more."""
    machine = kind(ManualClock())
    machine.dims, machine.validator, machine.miner = DIMS, "validator", "miner"
    device = machine.make_device(NONCE, 0)
    root = machine.digest_pass(device, digest.commit_key(NONCE))
    roots, key = [], FIRST_KEY
    for _ in range(DIMS.passes):
        roots.append(machine.digest_pass(device, key))
        key = digest.next_key(roots[-1])
    evidence = Evidence.of(NONCE, root, FIRST_KEY, roots)
    seed = generator.seed_a(NONCE, "validator", "miner", 0)
    projection = draw_projection(NONCE, DIMS.k, DIMS.columns)

    def prove() -> ProofReason:
        asked = draw_question(DIMS, SETTINGS)
        payload = machine.open_device(device, asked.rows, asked.passes)
        try:
            verify_device(DIMS, seed, projection, evidence, asked.rows, asked.passes, payload)
        except ProofError as error:
            return error.reason
        return ProofReason.OK

    return prove


# The cheat, its reason, the probability that one proof misses it, and the rate of catching it as documented for a GPU,
# where the rows are more: sampling without repetition does a little better here.
CASES = [
    (SkipsATenthOfTheRows, ProofReason.WRONG_ROW, _missing_rows(60), 1 - 0.9**24),
    (SkipsAQuarterOfTheRows, ProofReason.WRONG_ROW, _missing_rows(150), 1 - 0.75**24),
    (SkipsFiveRows, ProofReason.WRONG_ROW, _missing_rows(5), 1 - (1 - 5 / 600) ** 24),
    (DropsATenthOfC, ProofReason.NOT_RESIDENT, _missing_rows(60), 1 - 0.9**24),
    (FakesATenthOfThePasses, ProofReason.NOT_RESIDENT, _missing_passes(2), 1 - 0.9**72),
    (FakesOnePass, ProofReason.NOT_RESIDENT, _missing_passes(1), 1 - 0.95**72),
    (FakesOtherDigestsInEveryPass, ProofReason.NOT_RESIDENT, 0.97**72, 1 - 0.97**72),
]

FEW, MANY = 100, 500
"""How many proofs of a cheat are counted: many where ``test_the_count_tells_rates_apart`` shows what that is worth."""
TOLD_APART = (SkipsATenthOfTheRows, FakesOtherDigestsInEveryPass)


@pytest.mark.parametrize(
    ("cheat", "reason", "missed", "documented"), CASES, ids=[f"{case[0].__name__}-{case[1]}" for case in CASES]
)
def test_is_caught_at_the_rate(
    cheat: type[FakeMachine],
    reason: ProofReason,
    missed: float,
    documented: float,
    record_property: Callable[[str, object], None],
) -> None:
    trials = MANY if cheat in TOLD_APART else FEW
    prove = _prover(cheat)
    outcomes = [prove() for _ in range(trials)]
    assert set(outcomes) <= {reason, ProofReason.OK}
    caught = outcomes.count(reason)
    low, high = _bounds(trials, 1 - missed)
    record_property("rate", f"{caught} of {trials}; {100 * (1 - missed):.2f} % expected, {low} to {high} allowed")
    assert low <= caught <= high
    assert 1 - missed == pytest.approx(documented, abs=0.01)


def test_an_honest_machine_is_never_caught() -> None:
    prove = _prover(FakeMachine)
    assert {prove() for _ in range(100)} == {ProofReason.OK}


def test_the_count_tells_rates_apart() -> None:
    """The bounds are worth something: 12 opened rows would not pass for 24, nor one opened pass of a row for three."""
    low, _ = _bounds(MANY, 1 - _missing_rows(60))
    assert low > _bounds(MANY, 1 - 0.9**12)[1]
    low, _ = _bounds(MANY, 1 - 0.97**72)
    assert low > _bounds(MANY, 1 - 0.97**24)[1]


def test_cheating_at_the_best_rate_does_not_pay() -> None:
    """Whatever part of the work is skipped: the work that is paid after failures is less than an honest machine's.

    A skipped part ``s`` saves ``s`` of the work and passes ``(1 - s)^24`` of the proofs; a failed proof pays nothing
    until the next. What a unit of work earns, compared with honest work, is ``(1 - s)^24 / (1 - s)``.
    """
    parts = np.linspace(0.001, 0.999, 999)
    assert np.all((1 - parts) ** ROWS / (1 - parts) < 1)


@pytest.mark.parametrize("bits", [1, 3, 5])
def test_a_wrong_row_passes_as_often_as_the_secret_has_a_zero_in_its_place(
    bits: int, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    """The 2^-30 of the real secret cannot be counted; that of a secret of few bits can, and follows the same rule."""
    monkeypatch.setattr(verifier, "_R_BOUND", 2 ** (bits - 1))
    trials, passed = 1000, 0
    error = np.zeros(DIMS.columns, np.int64)
    error[3] = 12345
    for _ in range(trials):
        secret: Projection = draw_projection(NONCE, 2, DIMS.columns)
        passed += int(error @ secret.vector == 0)
    low, high = _bounds(trials, 2.0**-bits)
    record_property("rate", f"{passed} of {trials} pass; 1 in {2**bits} expected, {low} to {high} allowed")
    assert low <= passed <= high
