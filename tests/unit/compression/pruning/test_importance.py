import numpy as np
import pytest

from serveprune.compression.pruning.dependency_graph import PruningGroup, WeightSlice
from serveprune.compression.pruning.importance import (
    Consumer,
    MagnitudeImportance,
    RandomImportance,
    ReconstructionImportance,
    damping,
)
from serveprune.compression.pruning.linear import LinearMap, Matrix
from serveprune.compression.pruning.statistics import Moments

WIDTH, OUTPUTS, ROWS = 6, 3, 400


def group(units: int, slices: tuple[WeightSlice, ...] = ()) -> PruningGroup:
    return PruningGroup("w", "neurons", np.arange(units), slices, ())


def consumer(units: int, per_unit: int = 1) -> Consumer:
    channels = np.arange(units * per_unit).reshape(units, per_unit)
    return Consumer(LinearMap("MatMul", "y", "x", "w", 0, 1), channels)


@pytest.fixture
def rows() -> Matrix:
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((ROWS, WIDTH)) @ rng.standard_normal((WIDTH, WIDTH))
    return mixed + 3.0


@pytest.fixture
def weight() -> Matrix:
    return np.random.default_rng(1).standard_normal((WIDTH, OUTPUTS))


def moments(rows: Matrix, weight: Matrix) -> Moments:
    found = Moments()
    found.add(rows, rows @ weight)
    return found


def best_loss(rows: Matrix, weight: Matrix, gone: list[int]) -> float:
    """Solve the ridge least squares with the rows of some inputs forced to zero, the straightforward way."""
    centred = rows - rows.mean(axis=0)
    covariance = centred.T @ centred
    energy = np.trace(weight.T @ covariance @ weight)
    damped = covariance + damping(covariance, rows=len(rows)) * np.eye(len(covariance))
    kept = [index for index in range(len(weight)) if index not in gone]
    best = np.zeros_like(weight)
    best[kept] = np.linalg.solve(damped[np.ix_(kept, kept)], damped[kept] @ weight)
    change = best - weight
    return float(np.trace(change.T @ damped @ change) / energy)


def test_first_to_go_is_the_one_that_the_rest_makes_up_for_best(rows: Matrix, weight: Matrix) -> None:
    order = ReconstructionImportance().order(
        group(WIDTH), [consumer(WIDTH)], weights={"w": weight}, moments={"y": moments(rows, weight)}
    )
    losses = [best_loss(rows, weight, [unit]) for unit in range(WIDTH)]
    assert order.units[0] == int(np.argmin(losses))


def test_errors_are_those_of_the_best_compensation_at_every_width(rows: Matrix, weight: Matrix) -> None:
    order = ReconstructionImportance().order(
        group(WIDTH), [consumer(WIDTH)], weights={"w": weight}, moments={"y": moments(rows, weight)}
    )
    expected = [best_loss(rows, weight, order.units[:count].tolist()) for count in range(WIDTH)]
    np.testing.assert_allclose(order.errors[:-1], expected, rtol=1e-6, atol=1e-12)
    assert (np.diff(order.errors) >= 0).all()


def test_units_of_several_channels_go_as_blocks(rows: Matrix, weight: Matrix) -> None:
    order = ReconstructionImportance().order(
        group(3), [consumer(3, per_unit=2)], weights={"w": weight}, moments={"y": moments(rows, weight)}
    )
    losses = [best_loss(rows, weight, [2 * unit, 2 * unit + 1]) for unit in range(3)]
    assert order.units[0] == int(np.argmin(losses))
    np.testing.assert_allclose(order.errors[1], min(losses), rtol=1e-6)


def test_a_copy_of_another_input_costs_next_to_nothing() -> None:
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((ROWS, 4))
    rows[:, 3] = rows[:, 1]
    weight = rng.standard_normal((4, OUTPUTS))
    order = ReconstructionImportance().order(
        group(4), [consumer(4)], weights={"w": weight}, moments={"y": moments(rows, weight)}
    )
    assert order.units[0] in (1, 3)
    # What is left is the price of the ridge alone.
    assert order.errors[1] < 0.05 < 0.1 < order.errors[2]


def test_every_unit_is_ranked_once_when_many_go_per_step() -> None:
    rng = np.random.default_rng(3)
    rows, weight = rng.standard_normal((900, 300)), rng.standard_normal((300, OUTPUTS))
    order = ReconstructionImportance().order(
        group(300), [consumer(300)], weights={"w": weight}, moments={"y": moments(rows, weight)}
    )
    assert sorted(order.units.tolist()) == list(range(300))
    assert len(order.errors) == 301


@pytest.mark.parametrize(("norm", "expected"), [(1, [1, 0, 2]), (2, [0, 1, 2])])
def test_magnitude_ranks_by_the_norm_of_all_weights_of_a_unit(norm: int, expected: list[int]) -> None:
    made = np.array([[1.0, 1.5, 3.0], [1.0, 0.2, 3.0]])  # units along axis 1
    read = np.array([[1.0, 1.0], [1.1, 0.8], [2.0, 2.0]])  # units along axis 0
    slices = (
        WeightSlice("made", 1, np.arange(3)[:, None]),
        WeightSlice("read", 0, np.arange(3)[:, None]),
    )
    order = MagnitudeImportance(norm=norm).order(group(3, slices), [], weights={"made": made, "read": read}, moments={})
    norms = (np.abs(made) ** norm).sum(axis=0) + (np.abs(read) ** norm).sum(axis=1)
    assert order.units.tolist() == expected == np.argsort(norms).tolist()
    np.testing.assert_allclose(order.errors, np.concatenate([[0], np.cumsum(np.sort(norms)) / norms.sum()]))


def test_random_order_is_the_same_for_the_same_seed() -> None:
    first, second, other = (
        RandomImportance(seed=seed).order(group(50), [], weights={}, moments={}) for seed in (1, 1, 2)
    )
    assert first.units.tolist() == second.units.tolist() != other.units.tolist()
