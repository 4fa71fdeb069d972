"""SparseGPT against brute force: least squares over the weights that are left, with numpy alone."""

import itertools

import numpy as np
import pytest

from serveprune.compression.sparsity.layer_by_layer import fit_within
from serveprune.compression.sparsity.reconstruction import inverse_factor, reconstruct, saliencies
from serveprune.compression.sparsity.shares import Pattern, Share
from serveprune.oip.tensor import Array

ROWS = 2000


def correlated_inputs(width: int, *, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    factors = max(width // 3, 1)
    return rng.normal(size=(ROWS, factors)) @ rng.normal(size=(factors, width)) + 0.5 * rng.normal(size=(ROWS, width))


def error(inputs: Array, before: Array, after: Array) -> float:
    return float(np.square(inputs @ (before - after).T).sum())


def best_error(inputs: Array, weights: Array, kept: Array) -> float:
    """Least squares over what is left, row by row."""
    total = 0.0
    for row, left in zip(weights, kept, strict=True):
        wanted = inputs @ row
        solution = np.linalg.lstsq(inputs[:, left], wanted, rcond=None)[0]
        total += float(np.square(wanted - inputs[:, left] @ solution).sum())
    return total


def test_factor_is_that_of_the_damped_inverse() -> None:
    second = np.cov(correlated_inputs(7).T)
    factor = inverse_factor(second, damping_ratio=0.05)
    damped = second + 0.05 * np.trace(second) / 7 * np.eye(7)
    np.testing.assert_allclose(factor.T @ factor, np.linalg.inv(damped), rtol=1e-6)
    assert np.array_equal(factor, np.triu(factor))


def test_saliency_is_the_error_after_the_best_compensation_for_one_weight() -> None:
    inputs = correlated_inputs(6)
    weights = np.random.default_rng(1).normal(size=(3, 6))
    found = saliencies(weights, inverse_factor(inputs.T @ inputs, damping_ratio=0.0))
    for row, column in itertools.product(range(3), range(6)):
        kept = np.ones((1, 6), np.bool_)
        kept[0, column] = False
        assert found[row, column] == pytest.approx(best_error(inputs, weights[row : row + 1], kept), rel=1e-4)


def test_the_rest_is_the_least_squares_solution_when_the_first_inputs_go() -> None:
    inputs = correlated_inputs(8)
    weights = np.random.default_rng(2).normal(size=(4, 8)) + 3
    weights[:, :3] *= 1e-3  # the least, and nothing that is fixed before them
    found = reconstruct(weights, inverse_factor(inputs.T @ inputs, damping_ratio=0.0), share=Share(12))
    assert (found[:, :3] == 0).all()
    expected = np.linalg.lstsq(inputs[:, 3:], inputs @ weights.T, rcond=None)[0].T
    np.testing.assert_allclose(found[:, 3:], expected, rtol=1e-6)


@pytest.mark.parametrize("width", [12, 300])  # within one block of columns, and over three
@pytest.mark.parametrize("sparsity", [0.5, 0.8])
def test_reconstruction_beats_plain_masking_and_a_last_fit_is_the_best_of_its_mask(width: int, sparsity: float) -> None:
    inputs = correlated_inputs(width)
    weights = np.random.default_rng(3).normal(size=(16, width))
    second = inputs.T @ inputs
    zeros = round(sparsity * weights.size)
    found = reconstruct(weights, inverse_factor(second), share=Share(zeros))
    assert (found == 0).sum() == zeros
    threshold = np.sort(np.abs(weights), axis=None)[zeros]
    masked = np.where(np.abs(weights) < threshold, 0.0, weights)
    assert error(inputs, weights, found) < 0.85 * error(inputs, weights, masked)
    fitted = fit_within(second, weights @ second, found, ridge_ratio=1e-9)
    assert (fitted[found == 0] == 0).all()
    assert error(inputs, weights, fitted) == pytest.approx(best_error(inputs, weights, found != 0), rel=1e-3)


def test_pattern_leaves_n_of_every_m_neighbours_and_chooses_better_than_magnitude() -> None:
    inputs = correlated_inputs(24)
    weights = np.random.default_rng(4).normal(size=(10, 24))
    found = reconstruct(weights, inverse_factor(inputs.T @ inputs), share=Share(120, Pattern(2, 4)))
    assert ((found.reshape(10, 6, 4) != 0).sum(axis=2) == 2).all()
    least = np.argsort(np.abs(weights).reshape(-1, 4), axis=1)[:, :2]
    masked = weights.reshape(-1, 4).copy()
    np.put_along_axis(masked, least, 0.0, axis=1)
    assert error(inputs, weights, found) < 0.7 * error(inputs, weights, masked.reshape(10, 24))


def test_zeros_of_earlier_rounds_stay_zero_and_count() -> None:
    inputs = correlated_inputs(20)
    weights = np.random.default_rng(5).normal(size=(6, 20))
    factor = inverse_factor(inputs.T @ inputs)
    first = reconstruct(weights, factor, share=Share(40))
    second = reconstruct(first, factor, share=Share(90))
    assert (second == 0).sum() == 90
    assert (second[first == 0] == 0).all()


def test_inputs_that_are_always_zero_go_first() -> None:
    inputs = correlated_inputs(6)
    inputs[:, 4] = 0
    weights = np.full((2, 6), 1.0)
    weights[:, 4] = 9.0
    factor = inverse_factor(inputs.T @ inputs)
    found = reconstruct(weights, factor, share=Share(2), silent=np.arange(6) == 4)
    assert (found[:, 4] == 0).all()
    assert error(inputs, weights, found) < 1e-6
