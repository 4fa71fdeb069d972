from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serveprune.compression.pruning.allocation import (
    Allocation,
    Block,
    Choice,
    Part,
    Unreachable,
    allocate,
    blocks_of,
    groups_of,
)
from serveprune.errors import InvalidArgument

Outcome = tuple[float, float]
"""Cost and error."""


def every_outcome(parts: Sequence[Part]) -> Iterator[Outcome]:
    for combination in product(*map(_outcomes_of, parts)):
        yield sum(cost for cost, _ in combination), sum(error for _, error in combination)


def _outcomes_of(part: Part) -> list[Outcome]:
    if isinstance(part, Choice):
        return list(zip(part.costs.tolist(), part.errors.tolist(), strict=True))
    kept = [(cost + part.cost_when_kept, error) for cost, error in every_outcome(part.parts)]
    return [*kept, (part.cost_when_removed, part.error_when_removed)]


def outcome_of(parts: Sequence[Part], allocation: Allocation) -> Outcome:
    """Add up an allocation from its widths alone."""
    cost = error = 0.0
    for part in parts:
        if isinstance(part, Choice):
            index = part.widths.index(allocation.widths[part.name])
            cost, error = cost + float(part.costs[index]), error + float(part.errors[index])
        elif part.name in allocation.removed_blocks:
            cost, error = cost + part.cost_when_removed, error + part.error_when_removed
        else:
            inner_cost, inner_error = outcome_of(part.parts, allocation)
            cost, error = cost + inner_cost + part.cost_when_kept, error + inner_error
    return cost, error


@st.composite
def trees(draw: st.DrawFn, *, whole_costs: bool) -> list[Part]:
    names = iter(range(1000))
    amounts: st.SearchStrategy[float] = (
        st.integers(0, 20).map(float) if whole_costs else st.floats(0, 20, allow_subnormal=False)
    )

    def choice() -> Choice:
        count = draw(st.integers(1, 4))
        costs, errors = (draw(st.lists(amounts, min_size=count, max_size=count)) for _ in range(2))
        return Choice(f"group{next(names)}", tuple(range(1, count + 1)), np.array(errors), np.array(costs))

    def part(depth: int) -> Part:
        if depth == 0 or draw(st.booleans()):
            return choice()
        inner = tuple(part(depth - 1) for _ in range(draw(st.integers(0, 2))))
        return Block(f"block{next(names)}", inner, draw(amounts), draw(amounts), draw(amounts))

    return [part(2) for _ in range(draw(st.integers(1, 3)))]


@given(trees(whole_costs=True), st.integers(0, 120), st.integers(0, 5))
def test_allocate_equals_brute_force_when_costs_are_multiples_of_the_resolution(
    parts: list[Part], budget: int, fixed: int
) -> None:
    affordable = [error for cost, error in every_outcome(parts) if cost + fixed <= budget]
    if not affordable:
        with pytest.raises(Unreachable) as raised:
            allocate(parts, budget=budget, fixed_cost=fixed, resolution=1.0)
        assert raised.value.least_cost == fixed + min(cost for cost, _ in every_outcome(parts))
        return
    allocation = allocate(parts, budget=budget, fixed_cost=fixed, resolution=1.0)
    assert allocation.error == pytest.approx(min(affordable))
    assert allocation.cost <= budget
    cost, error = outcome_of(parts, allocation)
    assert allocation.cost == pytest.approx(cost + fixed)
    assert allocation.error == pytest.approx(error)


@given(trees(whole_costs=False), st.floats(0, 120))
@example(
    parts=[Block("removal is dear", (), error_when_removed=0.0, cost_when_kept=0.0, cost_when_removed=2.0)],
    budget=3e-305,
)
def test_allocate_loses_at_most_the_resolution_when_costs_are_any_numbers(parts: list[Part], budget: float) -> None:
    outcomes = list(every_outcome(parts))
    least = min(cost for cost, _ in outcomes)
    if least > budget:
        return
    allocation = allocate(parts, budget=budget)
    assert allocation.cost <= budget * (1 + 1e-6) + 1e-6
    choices = sum(1 for _ in groups_of(parts)) + sum(1 for _ in blocks_of(parts))
    charged = choices * max(budget - least, 0) / 4096
    surely_affordable = [error for cost, error in outcomes if cost <= max(budget - charged, least)]
    assert allocation.error <= min(surely_affordable) + 1e-9


@given(trees(whole_costs=True), st.integers(0, 120))
def test_allocate_names_every_group_and_zeroes_those_of_removed_blocks(parts: list[Part], budget: int) -> None:
    try:
        allocation = allocate(parts, budget=budget)
    except Unreachable:
        return
    assert set(allocation.widths) == {choice.name for choice in groups_of(parts)}
    gone = {
        choice.name
        for block in blocks_of(parts)
        if block.name in allocation.removed_blocks
        for choice in groups_of(block.parts)
    }
    assert {name for name, width in allocation.widths.items() if width == 0} == gone


def test_allocate_removes_the_block_when_its_parts_cannot_save_enough() -> None:
    inside = Choice("inside", (8, 16), np.array([3.0, 0.0]), np.array([4.0, 8.0]))
    outside = Choice("outside", (8, 16), np.array([9.0, 0.0]), np.array([5.0, 10.0]))
    parts: list[Part] = [outside, Block("block", (inside,), error_when_removed=5.0, cost_when_kept=2.0)]
    assert allocate(parts, budget=20).widths == {"outside": 16, "inside": 16}
    # 16 is met by the inner group alone, 12 only by one of the two moves: the block is the cheaper error.
    assert allocate(parts, budget=16).widths == {"outside": 16, "inside": 8}
    allocation = allocate(parts, budget=12)
    assert allocation == Allocation({"outside": 16, "inside": 0}, frozenset({"block"}), 10.0, 5.0)


def test_allocate_keeps_everything_when_the_budget_is_larger_than_the_model() -> None:
    parts = [Choice("a", (16, 32), np.array([1.0, 0.0]), np.array([1.0, 2.0]))]
    assert allocate(parts, budget=1e9).widths == {"a": 32}


def test_unreachable_is_an_invalid_argument_and_says_the_least_cost() -> None:
    parts = [Choice("a", (16, 32), np.array([1.0, 0.0]), np.array([3.0, 6.0]))]
    with pytest.raises(InvalidArgument, match="at most 4, but the narrowest choice costs 5"):
        allocate(parts, budget=4, fixed_cost=2)


def test_choice_is_refused_when_an_error_is_not_a_number() -> None:
    with pytest.raises(ValueError, match="a: expected finite"):
        Choice("a", (1, 2), np.array([np.nan, 0.0]), np.array([1.0, 2.0]))
