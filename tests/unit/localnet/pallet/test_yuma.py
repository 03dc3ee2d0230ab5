"""Yuma against the numbers that the chain's own tests expect.

Sources, all in the subtensor repository (RaoFoundation/subtensor, 0bb2cb30), pallets/subtensor/src/tests/epoch/:
yuma_3.rs (bonds and dividends over six epochs, to 1e-3), bonds.rs and weight_activity.rs (consensus, incentive and
validator trust, as traced there), active_stake.rs and graph_epochs.rs (emission).
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from compute.localnet.pallet.yuma import Inputs, Outputs, Parameters, run_epoch, to_u16, top_nonzero

U16 = 65_535
KAPPA = 32_767 / U16
LIQUID = Parameters(
    tempo=1,
    activity_cutoff=5000,
    max_validators=3,
    kappa=KAPPA,
    bonds_penalty=0.0,
    bonds_moving_average=0.975,
    liquid_alpha=True,
    alpha_low=0.1,
    alpha_high=0.3,
    alpha_steepness=1000.0,
)
NORMAL = Parameters(tempo=1, activity_cutoff=5000, max_validators=8, kappa=KAPPA, bonds_penalty=1.0)

# Which server each of the three validators A, B and C is for, epoch by epoch.
SCENARIOS = {
    "kappa moves first": (
        [8, 1, 1],
        ["000", "100", "110", "111", "111", "111"],
        [
            [[0.1013, 0.0000], [0.1013, 0.0000], [0.1013, 0.0000]],
            [[0.0908, 0.1013], [0.3697, 0.0000], [0.3697, 0.0000]],
            [[0.0815, 0.1924], [0.3170, 0.1013], [0.5580, 0.0000]],
            [[0.0731, 0.2742], [0.2765, 0.1924], [0.4306, 0.1013]],
            [[0.0656, 0.3478], [0.2435, 0.2742], [0.3589, 0.1924]],
            [[0.0588, 0.4139], [0.2157, 0.3478], [0.3089, 0.2742]],
        ],
        [
            [0.8000, 0.1000, 0.1000],
            [1.0000, 0.0000, 0.0000],
            [0.9382, 0.0618, 0.0000],
            [0.8819, 0.0773, 0.0407],
            [0.8564, 0.0844, 0.0592],
            [0.8418, 0.0884, 0.0697],
        ],
    ),
    "kappa moves second": (
        [8, 1, 1],
        ["000", "010", "110", "111", "111", "111"],
        [
            [[0.1013, 0.0000], [0.1013, 0.0000], [0.1013, 0.0000]],
            [[0.1924, 0.0000], [0.0908, 0.2987], [0.1924, 0.0000]],
            [[0.1715, 0.1013], [0.0815, 0.3697], [0.4336, 0.0000]],
            [[0.1531, 0.1924], [0.0731, 0.4336], [0.3608, 0.1013]],
            [[0.1369, 0.2742], [0.0656, 0.4910], [0.3103, 0.1924]],
            [[0.1225, 0.3478], [0.0588, 0.5426], [0.2712, 0.2742]],
        ],
        [
            [0.8000, 0.1000, 0.1000],
            [0.8446, 0.0498, 0.1056],
            [0.6868, 0.3132, 0.0000],
            [0.7421, 0.2090, 0.0489],
            [0.7625, 0.1706, 0.0669],
            [0.7730, 0.1508, 0.0762],
        ],
    ),
    "kappa moves last": (
        [8, 1, 1],
        ["000", "010", "011", "111", "111", "111"],
        [
            [[0.1013, 0.0000], [0.1013, 0.0000], [0.1013, 0.0000]],
            [[0.1924, 0.0000], [0.0908, 0.2987], [0.1924, 0.0000]],
            [[0.2742, 0.0000], [0.0815, 0.5081], [0.1715, 0.2987]],
            [[0.2416, 0.1013], [0.0731, 0.5580], [0.1531, 0.3697]],
            [[0.2141, 0.1924], [0.0656, 0.6028], [0.1369, 0.4336]],
            [[0.1903, 0.2742], [0.0588, 0.6430], [0.1225, 0.4910]],
        ],
        [
            [0.8000, 0.1000, 0.1000],
            [0.8446, 0.0498, 0.1056],
            [0.8966, 0.0333, 0.0701],
            [0.4663, 0.3210, 0.2127],
            [0.5976, 0.2340, 0.1683],
            [0.6592, 0.1932, 0.1475],
        ],
    ),
    "one epoch switch": (
        [33, 33, 34],
        ["000", "000", "001", "000", "000", "000"],
        [
            [[0.1013, 0.0000], [0.1013, 0.0000], [0.1013, 0.0000]],
            [[0.1924, 0.0000], [0.1924, 0.0000], [0.1924, 0.0000]],
            [[0.2742, 0.0000], [0.2742, 0.0000], [0.1715, 0.2987]],
            [[0.3478, 0.0000], [0.3478, 0.0000], [0.2554, 0.2618]],
            [[0.4139, 0.0000], [0.4139, 0.0000], [0.3309, 0.2312]],
            [[0.4733, 0.0000], [0.4733, 0.0000], [0.3987, 0.2051]],
        ],
        [
            [0.3300, 0.3300, 0.3400],
            [0.3300, 0.3300, 0.3400],
            [0.3782, 0.3782, 0.2436],
            [0.3628, 0.3628, 0.2745],
            [0.3541, 0.3541, 0.2917],
            [0.3487, 0.3487, 0.3026],
        ],
    ),
    "liquid alpha disabled": (
        [33, 33, 34],
        ["000", "000", "001", "000", "000", "000"],
        [
            [[0.0250, 0.0000], [0.0250, 0.0000], [0.0250, 0.0000]],
            [[0.0494, 0.0000], [0.0494, 0.0000], [0.0494, 0.0000]],
            [[0.0731, 0.0000], [0.0731, 0.0000], [0.0481, 0.0250]],
            [[0.0963, 0.0000], [0.0963, 0.0000], [0.0719, 0.0244]],
            [[0.1189, 0.0000], [0.1189, 0.0000], [0.0951, 0.0238]],
            [[0.1409, 0.0000], [0.1409, 0.0000], [0.1178, 0.0232]],
        ],
        [
            [0.3300, 0.3300, 0.3400],
            [0.3300, 0.3300, 0.3400],
            [0.3734, 0.3734, 0.2532],
            [0.3611, 0.3611, 0.2779],
            [0.3541, 0.3541, 0.2919],
            [0.3495, 0.3495, 0.3009],
        ],
    ),
    "stable miner": (
        [8, 1, 1],
        ["000", "010", "110", "111", "111", "111"],
        [
            [[0.0507, 0.0000, 0.0507], [0.0507, 0.0000, 0.0507], [0.0507, 0.0000, 0.0507]],
            [[0.0962, 0.0000, 0.0962], [0.0455, 0.1000, 0.0962], [0.0962, 0.0000, 0.0962]],
            [[0.0863, 0.0507, 0.1371], [0.0408, 0.1405, 0.1371], [0.1770, 0.0000, 0.1371]],
            [[0.0774, 0.0962, 0.1739], [0.0367, 0.1770, 0.1739], [0.1579, 0.0507, 0.1739]],
            [[0.0694, 0.1371, 0.2069], [0.0329, 0.2097, 0.2069], [0.1411, 0.0962, 0.2069]],
            [[0.0623, 0.1739, 0.2366], [0.0296, 0.2391, 0.2366], [0.1263, 0.1371, 0.2366]],
        ],
        [
            [0.8000, 0.1000, 0.1000],
            [0.8226, 0.0745, 0.1028],
            [0.7750, 0.1685, 0.0565],
            [0.7864, 0.1372, 0.0764],
            [0.7912, 0.1241, 0.0847],
            [0.7937, 0.1173, 0.0890],
        ],
    ),
}


def _epoch(
    stake: list[float],
    weights: np.ndarray,
    parameters: Parameters,
    *,
    block: int = 2,
    last_step: int = 1,
    bonds: np.ndarray | None = None,
    last_update: list[int] | None = None,
    registered_at: list[int] | None = None,
    permits: list[bool] | None = None,
) -> Outputs:
    n = len(stake)
    return run_epoch(
        Inputs(
            block=block,
            last_step=last_step,
            stake=np.array(stake, dtype=float),
            weights=np.asarray(weights, dtype=float),
            bonds=np.zeros((n, n)) if bonds is None else bonds,
            last_update=np.array([1] * n if last_update is None else last_update),
            registered_at=np.array([0] * n if registered_at is None else registered_at),
            validator_permit=np.array([True] * n if permits is None else permits),
        ),
        parameters,
    )


@pytest.mark.parametrize("name", SCENARIOS)
def test_bonds_and_dividends_over_six_epochs(name: str) -> None:
    stakes, choices, expected_bonds, expected_dividends = SCENARIOS[name]
    servers = len(expected_bonds[0][0])
    n = 3 + servers
    parameters = LIQUID
    if name == "liquid alpha disabled":
        parameters = Parameters(
            tempo=1, activity_cutoff=5000, max_validators=3, bonds_penalty=0.0, bonds_moving_average=0.975
        )
    bonds = np.zeros((n, n))
    for epoch, choice in enumerate(choices):
        weights = np.zeros((n, n))
        for validator, server in enumerate(choice):
            weights[validator, 3 + int(server)] = 1
            if servers == 3:  # everyone splits between that server and the stable one
                weights[validator, 5] = 1
        outputs = _epoch(
            [*stakes, *[0] * servers],
            weights,
            parameters,
            block=epoch + 2,
            last_step=epoch + 1,
            bonds=bonds,
            permits=[True] * 3 + [False] * servers,
        )
        bonds = to_u16(outputs.bonds) / U16  # as the chain keeps them between epochs
        np.testing.assert_allclose(bonds[:3, 3:], expected_bonds[epoch], atol=1e-3)
        np.testing.assert_allclose(to_u16(outputs.dividends)[:3] / U16, expected_dividends[epoch], atol=1e-3)
        assert not outputs.dividends[3:].any()


def test_consensus_incentive_and_trust_as_traced_in_bonds_rs() -> None:
    row = [16383, 32767, 49149, 65535]
    weights = np.zeros((8, 8))
    weights[:4, 4:] = row
    outputs = _epoch([1, 2, 3, 4, 0, 0, 0, 0], weights, NORMAL)
    expected = [0, 0, 0, 0, 0.0999975584, 0.2000012207, 0.2999926754, 0.400008545]
    np.testing.assert_allclose(outputs.stake, [0.1, 0.2, 0.3, 0.4, 0, 0, 0, 0], atol=1e-8)
    np.testing.assert_allclose(outputs.consensus, expected, atol=1e-8)
    np.testing.assert_allclose(outputs.incentive, expected, atol=1e-8)
    np.testing.assert_allclose(outputs.validator_trust, [1, 1, 1, 1, 0, 0, 0, 0], atol=1e-8)
    np.testing.assert_allclose(outputs.dividends[:4], [0.1, 0.2, 0.3, 0.4], atol=1e-8)

    weights[0] = 0
    weights[0, 0] = U16  # a weight on oneself does not count
    outputs = _epoch([1, 2, 3, 4, 0, 0, 0, 0], weights, NORMAL)
    np.testing.assert_allclose(outputs.consensus, expected, atol=1e-8)
    np.testing.assert_allclose(outputs.validator_trust, [0, 1, 1, 1, 0, 0, 0, 0], atol=1e-8)


def test_weights_older_than_their_target_as_traced_in_weight_activity_rs() -> None:
    weights = np.array([[0, 0, 65535, 32768], [0, 0, 65535, 32768], [0, 0, 65535, 0], [0, 0, 0, 65535]])
    parameters = Parameters(tempo=0, activity_cutoff=5000, max_validators=4, kappa=KAPPA)
    before = _epoch([1, 1, 1, 1], weights, parameters, block=1, last_step=0)
    np.testing.assert_allclose(before.consensus, [0, 0, 0.6666632756, 0.3333367242], atol=1e-8)
    np.testing.assert_allclose(before.incentive, [0, 0, 0.6666632756, 0.3333367242], atol=1e-8)
    np.testing.assert_allclose(before.emission, [0.25, 0.25, 0.3333316378, 0.166668362], atol=1e-8)

    # Uid 3 has a new owner since block 1; only uid 0 has set its weights since.
    after = _epoch(
        [1, 1, 1, 0],
        weights,
        parameters,
        block=2,
        last_step=0,
        last_update=[2, 1, 1, 1],
        registered_at=[0, 0, 0, 1],
        permits=[True, True, True, False],
    )
    np.testing.assert_allclose(after.consensus, [0, 0, 0.6666632756, 0], atol=1e-8)
    np.testing.assert_allclose(after.validator_trust, [0.6666632756, 0.6666632756, 0, 0], atol=1e-8)
    np.testing.assert_allclose(after.incentive, [0, 0, 1, 0], atol=1e-8)
    np.testing.assert_allclose(after.emission, [0.25, 0.25, 0.5, 0], atol=1e-8)


def test_inactive_stake_has_no_say_as_in_active_stake_rs() -> None:
    weights = np.zeros((4, 4))
    weights[:2, 2:] = U16 // 2
    parameters = Parameters(tempo=1, activity_cutoff=5000, max_validators=4, kappa=KAPPA)
    both = _epoch([1, 1, 1, 1], weights, parameters, block=1, last_step=0)
    np.testing.assert_array_equal(to_u16(both.dividends), [32767, 32767, 0, 0])
    np.testing.assert_allclose(both.emission, [0.25] * 4)
    late = _epoch([1, 1, 1, 1], weights, parameters, block=5002, last_step=5000, last_update=[5002, 1, 0, 0])
    assert late.active.tolist() == [True, False, False, False]
    np.testing.assert_allclose(late.incentive, [0, 0, 0.5, 0.5])
    np.testing.assert_allclose(late.dividends, [1, 0, 0, 0])


def test_emission_without_weights_follows_stake_as_in_graph_epochs_rs() -> None:
    parameters = Parameters(tempo=1, activity_cutoff=5000, max_validators=10, kappa=KAPPA)
    outputs = _epoch([1] * 10, np.eye(10) * U16, parameters)
    assert not outputs.incentive.any()
    assert not outputs.dividends.any()
    np.testing.assert_allclose(outputs.emission, [0.1] * 10)


def test_a_graph_of_512_as_in_graph_epochs_rs() -> None:
    weights = np.zeros((512, 512))
    weights[:64, 64:] = 1
    parameters = Parameters(tempo=1, activity_cutoff=5000, max_validators=64, kappa=KAPPA)
    outputs = _epoch([1] * 64 + [0] * 448, weights, parameters)
    assert set(to_u16(outputs.dividends)[:64]) == {1023}
    assert set(to_u16(outputs.incentive)[64:]) == {146}
    assert set(to_u16(outputs.consensus)[64:]) == {146}
    assert set((outputs.emission[:64] * 10**9).astype(int)) == {7812500}
    assert set((outputs.emission[64:] * 10**9).astype(int)) == {1116071}


def test_bonds_to_a_uid_that_registered_since_the_last_epoch_are_void() -> None:
    bonds = np.zeros((3, 3))
    bonds[0, 1:] = 0.5
    weights = np.zeros((3, 3))
    outputs = _epoch(
        [1, 0, 0], weights, NORMAL, block=20, last_step=10, bonds=bonds, registered_at=[0, 11, 10], last_update=[15] * 3
    )
    np.testing.assert_allclose(outputs.bonds[0], [0, 0, 0.45])


def test_who_loses_the_permit_loses_the_bonds() -> None:
    bonds = np.full((3, 3), 0.5)
    parameters = Parameters(tempo=1, activity_cutoff=5000, max_validators=1, kappa=KAPPA)
    outputs = _epoch([3, 2, 0], np.zeros((3, 3)), parameters, bonds=bonds, permits=[True, True, False])
    assert outputs.validator_permit.tolist() == [True, False, False]
    assert outputs.bonds[0].any()
    assert not outputs.bonds[1].any()
    np.testing.assert_allclose(outputs.bonds[2], 0.5)


def test_permits_go_to_the_largest_stakes() -> None:
    assert top_nonzero(np.array([5.0, 1.0, 9.0, 0.0]), 2).tolist() == [True, False, True, False]
    assert top_nonzero(np.array([5.0, 0.0]), 2).tolist() == [True, False]
    assert top_nonzero(np.array([4.0, 4.0, 4.0]), 1).tolist() == [False, False, True]


def test_proportions_are_truncated() -> None:
    assert to_u16(np.array([0.0, 0.1, 0.5, 1.0, 2.0])).tolist() == [0, 6553, 32767, 65535, 65535]


_N = 6
_MATRIX = arrays.arrays(float, (_N, _N), elements=st.integers(0, U16).map(float))


@settings(max_examples=60)
@given(
    stake=arrays.arrays(float, _N, elements=st.integers(0, 10**6).map(float)),
    weights=_MATRIX,
    bonds=_MATRIX,
    permits=arrays.arrays(bool, _N),
    liquid=st.booleans(),
)
def test_whatever_goes_in_scores_are_proportions(stake, weights, bonds, permits, liquid: bool) -> None:
    outputs = run_epoch(
        Inputs(9, 5, stake, weights, bonds / U16, np.full(_N, 6), np.zeros(_N, dtype=int), permits),
        LIQUID if liquid else NORMAL,
    )
    for scores in (outputs.consensus, outputs.validator_trust, outputs.incentive, outputs.dividends, outputs.bonds):
        assert np.isfinite(scores).all()
        assert (scores >= 0).all()
        assert (scores <= 1 + 1e-9).all()
    for scores in (outputs.incentive, outputs.dividends, outputs.emission):
        assert scores.sum() == pytest.approx(1) or not scores.any()
    assert not outputs.dividends[~permits].any()
    assert not (outputs.validator_permit & (stake == 0)).any()


@settings(max_examples=40)
@given(stake=arrays.arrays(float, 4, elements=st.integers(1, 100).map(float)), lie=st.integers(0, U16))
def test_a_minority_cannot_raise_a_consensus(stake, lie: int) -> None:
    """Whatever one validator with less than half of the stake says, the others' agreement stands."""
    stake[0] = stake[1:].sum() * 0.9
    honest = np.zeros((5, 5))
    honest[:4, 4] = 100
    lying = honest.copy()
    lying[0, 4], lying[0, 3] = 0, lie
    full_stake = [*stake, 0]
    assert _epoch(full_stake, lying, NORMAL).consensus[3] == 0
    assert _epoch(full_stake, lying, NORMAL).consensus[4] == _epoch(full_stake, honest, NORMAL).consensus[4] == 1
