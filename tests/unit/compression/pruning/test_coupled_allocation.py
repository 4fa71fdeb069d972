from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serveprune.compression.pruning.allocation import Unreachable
from serveprune.compression.pruning.coupled_allocation import (
    Candidates,
    Movable,
    RemovableBlock,
    allocate_widths,
)
from serveprune.compression.pruning.footprint_cost import FootprintCost, SizeProduct
from serveprune.compression.pruning.group_axes import AxisSize

WIDTHS = np.array([4, 8, 12, 16])


def axis(group: int) -> AxisSize:
    return AxisSize(0, {group: 1})


def chain(factors: list[float]) -> FootprintCost:
    """Layers whose cost is the product of the widths before and behind them; the first input is 3 wide."""
    first = SizeProduct.of((AxisSize(3, {}), axis(0)), factor=factors[0])
    layers = [SizeProduct.of((axis(at), axis(at + 1)), factor=factor) for at, factor in enumerate(factors[1:])]
    return FootprintCost([first, *layers], dense=np.full(len(factors), 16))


def falling(steps: list[float]) -> np.ndarray:
    """Errors of the widths: none at the full one."""
    return np.array([*np.cumsum(steps)[::-1], 0.0])


def groups(errors: list[np.ndarray]) -> list[Candidates]:
    return [Candidates(group, WIDTHS, values) for group, values in enumerate(errors)]


steps = st.lists(st.floats(0.01, 5), min_size=3, max_size=3)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(0.2, 3), steps), min_size=1, max_size=4), st.floats(0.1, 1))
def test_allocation_is_affordable_and_no_single_move_betters_it(
    layers: list[tuple[float, list[float]]], part: float
) -> None:
    cost = chain([factor for factor, _ in layers])
    errors = [falling(values) for _, values in layers]
    budget = part * cost.total(cost.dense)
    every = [np.array(widths) for widths in product(WIDTHS, repeat=len(layers))]
    if cost.total(every[0]) > budget:
        with pytest.raises(Unreachable):
            allocate_widths(groups(errors), cost=cost, budget=budget)
        return
    found = allocate_widths(groups(errors), cost=cost, budget=budget)
    assert found.cost == pytest.approx(cost.total(found.widths))
    assert found.cost <= budget * (1 + 1e-6)
    assert found.error == pytest.approx(_error(found.widths, errors))
    if len(layers) == 1:
        # Nothing meets anything, so the answer is the best one.
        affordable = [_error(widths, errors) for widths in every if cost.total(widths) <= budget * (1 - 1e-3)]
        assert found.error <= min(affordable, default=np.inf) + 1e-9


def test_allocation_is_within_two_percent_of_brute_force_on_average() -> None:
    rng = np.random.default_rng(7)
    excess = []
    for _ in range(30):
        cost = chain(rng.uniform(0.3, 3, 4).tolist())
        errors = [falling(rng.uniform(0.1, 2, 3).tolist()) for _ in range(4)]
        budget = rng.uniform(0.2, 0.8) * cost.total(cost.dense)
        best = min(
            _error(np.array(widths), errors)
            for widths in product(WIDTHS, repeat=4)
            if cost.total(np.array(widths)) <= budget
        )
        excess.append(allocate_widths(groups(errors), cost=cost, budget=budget).error / best - 1)
    assert np.mean(excess) < 0.02
    assert min(excess) > -1e-9


def test_block_goes_when_that_costs_less_error_than_narrowing() -> None:
    cost = chain([1.0, 1.0, 1.0])
    dear = falling([5.0, 5.0, 5.0])
    inside = Candidates(1, WIDTHS, dear)
    movables: list[Movable] = [
        Candidates(0, WIDTHS, dear),
        RemovableBlock("block", (inside,), error=1.0),
        Candidates(2, WIDTHS, dear),
    ]
    found = allocate_widths(movables, cost=cost, budget=0.6 * cost.total(cost.dense))
    assert found.removed_blocks == {"block"}
    assert found.widths.tolist() == [16, 0, 16]
    assert found.error == 1.0
    # Both products that it is part of are gone.
    assert found.cost == 3 * 16


def test_blocks_fixed_cost_goes_with_it() -> None:
    free = FootprintCost([SizeProduct.of((axis(0),)), SizeProduct(100.0, ())], dense=np.array([16]))
    block = RemovableBlock("block", (Candidates(0, WIDTHS, falling([1, 1, 1])),), error=9.0, fixed_cost=60.0)
    found = allocate_widths([block], cost=free, budget=50)
    assert (found.removed_blocks, found.cost) == (frozenset({"block"}), 40.0)
    with pytest.raises(Unreachable) as raised:
        allocate_widths([block], cost=free, budget=30)
    assert raised.value.least_cost == 40


def test_group_without_candidates_keeps_its_width() -> None:
    cost = chain([1.0, 1.0])
    found = allocate_widths([Candidates(0, WIDTHS, falling([1, 1, 1]))], cost=cost, budget=0.5 * cost.total(cost.dense))
    assert found.widths.tolist() == [8, 16]


def _error(widths: np.ndarray, errors: list[np.ndarray]) -> float:
    return float(sum(values[np.searchsorted(WIDTHS, width)] for width, values in zip(widths, errors, strict=True)))
