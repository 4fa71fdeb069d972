import math

import numpy as np
import pytest

from serveprune.evaluation.quality import (
    SQNR_CAP_DB,
    SignalEnergies,
    accuracy,
    cosine,
    nearest_neighbour_agreement,
    pearson,
    row_cosines,
    spearman,
    top1_agreement,
)
from serveprune.oip.tensor import Array


def test_top1_agreement_is_the_fraction_of_equal_winners() -> None:
    dense = np.array([[1, 2, 3], [3, 2, 1], [0, 5, 0], [9, 1, 2]], dtype=np.float32)
    tier = np.array([[0, 1, 9], [2, 3, 1], [1, 6, 0], [1, 0, 0]], dtype=np.float32)

    assert top1_agreement(dense, tier) == 0.75


def test_accuracy_is_the_fraction_of_winners_that_are_the_label() -> None:
    assert accuracy(np.array([[1, 2], [2, 1], [5, 4]]), np.array([1, 0, 1])) == pytest.approx(2 / 3)


def test_cosine_is_the_mean_over_rows() -> None:
    # Angles of 0, 90, 180 and 45 degrees.
    dense = np.array([[1, 0], [1, 0], [1, 0], [2, 0]], dtype=np.float32)
    tier = np.array([[3, 0], [0, 2], [-1, 0], [1, 1]], dtype=np.float32)

    np.testing.assert_allclose(row_cosines(dense, tier), [1, 0, -1, math.sqrt(0.5)], atol=1e-15)
    assert cosine(dense, tier) == pytest.approx(math.sqrt(0.5) / 4)


def test_cosine_is_exactly_1_when_rows_are_equal() -> None:
    rows = np.random.default_rng(0).standard_normal((200, 384)).astype(np.float32)

    assert cosine(rows, rows) == 1.0


def test_cosine_is_defined_when_a_row_is_zero() -> None:
    zero, other = np.zeros((1, 3)), np.ones((1, 3))

    assert cosine(zero, zero) == 1.0
    assert cosine(zero, other) == 0.0


def test_cosine_neither_overflows_nor_vanishes_when_numbers_are_extreme() -> None:
    huge = np.array([[1e300, 0], [1e-300, 0]])
    turned = np.array([[1e300, 1e300], [1e-300, 1e-300]])

    np.testing.assert_allclose(row_cosines(huge, turned), math.sqrt(0.5))


def at_degrees(*angles: float) -> Array:
    radians = np.radians(angles)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_nearest_neighbour_agreement_counts_equal_neighbours_other_than_oneself() -> None:
    # Nearest of dense: 0 -> 1, 1 -> 0, 2 -> 3, 3 -> 2. In tier, sample 1 has moved to sample 2:
    # 0 -> 1 (same), 1 -> 2 (other), 2 -> 1 (other), 3 -> 2 (same).
    assert nearest_neighbour_agreement(at_degrees(0, 10, 60, 80), at_degrees(0, 55, 60, 80)) == 0.5


def test_nearest_neighbour_agreement_ignores_the_length_of_vectors() -> None:
    dense = at_degrees(0, 10, 60, 80)

    assert nearest_neighbour_agreement(dense, dense * [[1], [50], [2], [0.1]]) == 1.0


def test_any_of_several_equally_near_neighbours_counts() -> None:
    # In dense, samples 1 and 2 are equal, so both are nearest to 0; tier prefers 2.
    assert nearest_neighbour_agreement(at_degrees(0, 10, 10), at_degrees(0, 10.5, 9.5)) == 1.0


def sqnr_db(dense: Array, tier: Array) -> float:
    energies = SignalEnergies()
    energies.add(dense, tier)
    return energies.sqnr_db


def centred_cosine(dense: Array, tier: Array) -> float:
    energies = SignalEnergies(width=dense.shape[1])
    for part in range(0, len(dense), 3):
        energies.add(dense[part : part + 3], tier[part : part + 3])
    return energies.centred_cosine


def test_centred_cosine_is_that_of_what_varies() -> None:
    randomness = np.random.default_rng(4)
    offset = np.array([1000.0, -8.0, 0.0])
    dense, noise = randomness.standard_normal((2, 50, 3))
    first, second = dense - dense.mean(axis=0), dense + noise - dense.mean(axis=0)
    expected = (first * second).sum() / np.linalg.norm(first) / np.linalg.norm(second)

    assert 0.5 < expected < 0.9
    assert centred_cosine(dense + offset, dense + noise + offset) == pytest.approx(expected, abs=1e-9)
    # A shift of the tier alone is an error like any other.
    assert centred_cosine(dense, dense + 1) < 0.8


def test_centred_cosine_is_nothing_when_the_tier_answers_the_mean_whatever_it_is_asked() -> None:
    dense = np.array([[9.0, 1.0], [11.0, 3.0]])

    assert centred_cosine(dense, np.broadcast_to(dense.mean(axis=0), dense.shape)) == pytest.approx(0)


def test_centred_cosine_is_the_plain_one_when_dense_does_not_vary() -> None:
    assert centred_cosine(np.array([[3.0, 4.0]]), np.array([[3.0, 0.0]])) == pytest.approx(0.6)
    assert centred_cosine(np.array([[3.0, 4.0]] * 5), np.array([[3.0, 0.0]] * 5)) == pytest.approx(0.6)


def test_sqnr_is_ten_times_the_logarithm_of_the_energy_ratio() -> None:
    dense = np.array([3.0, 4.0], dtype=np.float32)

    # Energies 25 and 0.25: a ratio of 100.
    assert sqnr_db(dense, dense + np.array([0.3, 0.4], dtype=np.float32)) == pytest.approx(20, abs=1e-5)
    # Energies 25 and 2500.
    assert sqnr_db(dense, dense * 11) == pytest.approx(-20)


@pytest.mark.parametrize(
    ("dense", "tier", "expected"),
    [
        ([1, 2], [1, 2], SQNR_CAP_DB),
        ([0, 0], [0, 0], SQNR_CAP_DB),
        ([0, 0], [1, 0], -SQNR_CAP_DB),
        ([1.0, 2.0], [1.0, 2.0 + 1e-15], SQNR_CAP_DB),
        ([1e200, 0], [0, 0], -SQNR_CAP_DB),
    ],
)
def test_sqnr_is_capped(dense: list[float], tier: list[float], expected: float) -> None:
    with np.errstate(over="ignore"):
        result = sqnr_db(np.array(dense, dtype=np.float64), np.array(tier, dtype=np.float64))
    assert result == pytest.approx(expected) if expected < 0 else result > 190


def test_sums_over_parts_equal_the_whole() -> None:
    randomness = np.random.default_rng(3)
    dense, tier = randomness.standard_normal((2, 10, 7, 3))
    energies = SignalEnergies()
    for part in range(0, 10, 4):
        energies.add(dense[part : part + 4], tier[part : part + 4])

    flat_dense, flat_tier = dense.ravel(), tier.ravel()
    assert energies.cosine == pytest.approx(
        flat_dense @ flat_tier / np.linalg.norm(flat_dense) / np.linalg.norm(flat_tier)
    )
    assert energies.sqnr_db == pytest.approx(
        20 * np.log10(np.linalg.norm(flat_dense) / np.linalg.norm(flat_dense - flat_tier))
    )


@pytest.mark.parametrize(
    ("dense", "tier", "expected"), [([3], [3], 1), ([0], [0], 1), ([0], [2], 0), ([2], [0], 0), ([1], [-2], -1)]
)
def test_cosine_of_a_stream_is_defined_at_the_edges(dense: list[float], tier: list[float], expected: float) -> None:
    energies = SignalEnergies()
    energies.add(np.array(dense), np.array(tier))

    assert energies.cosine == expected


def test_pearson_agrees_with_numpy() -> None:
    first, second = np.random.default_rng(1).standard_normal((2, 50))

    assert pearson(first, second) == pytest.approx(np.corrcoef(first, second)[0, 1])


def test_pearson_is_zero_when_a_series_is_constant() -> None:
    assert pearson(np.ones(4), np.arange(4)) == 0.0


def test_spearman_is_one_when_order_is_kept() -> None:
    assert spearman(np.array([1, 2, 3, 4]), np.array([1, 10, 100, 1000])) == pytest.approx(1)


def test_spearman_follows_the_formula_by_hand() -> None:
    # Rank differences 1, 1, 0, 1, 1: 1 - 6 * 4 / (5 * 24) = 0.8
    assert spearman(np.array([1, 2, 3, 4, 5]), np.array([20, 10, 30, 50, 40])) == pytest.approx(0.8)


def test_spearman_shares_ranks_when_values_are_equal() -> None:
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5.
    assert spearman(np.array([1, 2, 2, 3]), np.array([1, 2, 3, 4])) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
