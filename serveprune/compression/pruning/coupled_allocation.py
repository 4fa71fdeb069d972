"""Allocation where the cost of one group depends on the width of another, as in chains of convolutions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serveprune.compression.pruning.allocation import (
    Allocation,
    Block,
    Choice,
    Part,
    Unreachable,
    allocate,
)
from serveprune.compression.pruning.cost import CostModel, Widths

_MOST_ROUNDS = 24
_TRIES_PER_ROUND = 4
_STEPS = 512
_WITHIN = 1 + 1e-9


@dataclass(frozen=True, slots=True)
class Candidates:
    """The widths one group may take.

    Attributes:
        group: Its index in the cost model.
        widths: Units kept, ascending.
        errors: Error of keeping so many, one per width.
    """

    group: int
    widths: Widths
    errors: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RemovableBlock:
    """A residual block that may go as a whole, with the groups inside it.

    Attributes:
        parts: Groups and blocks inside it.
        error: Error of removing it.
        fixed_cost: What it costs besides its groups, as far as the cost model counts it.
    """

    name: str
    parts: "tuple[Candidates | RemovableBlock, ...]"
    error: float
    fixed_cost: float = 0.0


Movable = Candidates | RemovableBlock


@dataclass(frozen=True, slots=True)
class WidthAllocation:
    """What was chosen.

    Attributes:
        widths: Units kept of every group of the cost model; 0 for those that go with their block.
        removed_blocks: Names of the blocks that go.
        cost: As the cost model has it.
        error: Sum of the chosen errors.
    """

    widths: Widths
    removed_blocks: frozenset[str]
    cost: float
    error: float


def allocate_widths(movables: Sequence[Movable], *, cost: CostModel, budget: float) -> WidthAllocation:
    """Choose widths of small total error whose cost is within the budget.

    Around a point the cost is taken as a sum of one function per group, each exact while the others stay; the
    dynamic programme finds the best point of that sum, and the search moves there, in ever smaller regions
    when the sum misleads (sequential programming in a trust region). Where costs do not depend on each other
    the first step is the answer of `allocate`; where they do, the answer is feasible and locally best.

    Groups of the cost model that no movable names keep their width.

    Raises:
        Unreachable: The narrowest choice costs more than the budget.
    """
    return _Search(movables, cost, budget).run()


class _Search:
    def __init__(self, movables: Sequence[Movable], cost: CostModel, budget: float) -> None:
        self._movables = tuple(movables)
        self._cost = cost
        self._budget = budget
        self._groups = list(candidates_of(self._movables))
        self._blocks = list(_removable(self._movables))
        self._places = {found.group: found for found in self._groups}

    def run(self) -> WidthAllocation:
        """Search from the dense point, the narrowest and one between, and return the best that was met."""
        between, best = self._start()
        for start in (between, self._uniform(0.0), self._uniform(1.0)):
            best = self._descend(start, best)
        return best

    def _descend(self, point: Widths, best: WidthAllocation) -> WidthAllocation:
        radius = max((len(found.widths) for found in self._groups), default=0)
        for _ in range(_MOST_ROUNDS):
            proposal = self._improve(point, best, radius)
            if proposal is not None:
                best = proposal
                point = np.where(best.widths > 0, best.widths, point)
            elif radius > 1:
                radius //= 2
            else:
                break
        return best

    def _improve(self, point: Widths, best: WidthAllocation, radius: int) -> WidthAllocation | None:
        budget, here = self._budget, self._cost.total(point)
        for _ in range(_TRIES_PER_ROUND):
            try:
                chosen = allocate(
                    [self._linear(part, point, radius) for part in self._movables],
                    budget=budget,
                    fixed_cost=here,
                    steps=_STEPS,
                )
            except Unreachable:
                return None
            found = self._measured(chosen)
            if found.cost <= self._budget * _WITHIN:
                return found if found.error < best.error * (1 - 1e-9) else None
            # The sum of single moves does not see all: go half as far, or charge the rest in advance.
            budget -= (budget - here) / 2 if budget > here else found.cost - self._budget
        return None

    def _start(self) -> tuple[Widths, WidthAllocation]:
        """Return the widest point at which every group keeps about the same fraction."""
        fractions = np.unique(np.concatenate([found.widths / found.widths[-1] for found in self._groups] or [[1.0]]))
        low, high = 0, len(fractions) - 1
        if self._cost.total(self._uniform(fractions[0])) > self._budget * _WITHIN:
            return self._start_without_blocks(self._uniform(fractions[0]))
        while low < high:
            middle = (low + high + 1) // 2
            if self._cost.total(self._uniform(fractions[middle])) <= self._budget * _WITHIN:
                low = middle
            else:
                high = middle - 1
        point = self._uniform(fractions[low])
        return point, self._allocation(point, frozenset())

    def _start_without_blocks(self, point: Widths) -> tuple[Widths, WidthAllocation]:
        gone = frozenset(block.name for block in self._blocks)
        least = self._allocation(point, gone)
        if least.cost > self._budget * _WITHIN:
            raise Unreachable(
                f"expected a cost of at most {self._budget:g}, but the narrowest choice costs {least.cost:g}",
                least_cost=least.cost,
            )
        return point, least

    def _uniform(self, fraction: float) -> Widths:
        widths = self._cost.dense.copy()
        for found in self._groups:
            fitting = np.flatnonzero(found.widths <= fraction * found.widths[-1] * _WITHIN)
            widths[found.group] = found.widths[fitting[-1] if len(fitting) else 0]
        return widths

    def _linear(self, part: Movable, point: Widths, radius: int) -> Part:
        """Return a part's costs as differences to the point."""
        here = self._cost.total(point)
        if isinstance(part, Candidates):
            current = int(np.searchsorted(part.widths, point[part.group]))
            near = slice(max(current - radius, 0), current + radius + 1)
            along = self._cost.along(part.group, widths=point, candidates=part.widths[near])
            return Choice(str(part.group), tuple(part.widths[near].tolist()), part.errors[near], along - here)
        without = point.copy()
        without[[found.group for found in candidates_of(part.parts)]] = 0
        return Block(
            part.name,
            tuple(self._linear(inner, point, radius) for inner in part.parts),
            error_when_removed=part.error,
            cost_when_removed=self._cost.total(without) - part.fixed_cost - here,
        )

    def _measured(self, chosen: Allocation) -> WidthAllocation:
        widths = self._cost.dense.copy()
        for name, width in chosen.widths.items():
            widths[int(name)] = width
        return self._allocation(widths, chosen.removed_blocks)

    def _allocation(self, widths: Widths, removed: frozenset[str]) -> WidthAllocation:
        widths = widths.copy()
        error = 0.0
        inside: set[str] = set()
        cost_of_blocks = 0.0
        for block in self._blocks:
            if block.name not in removed:
                continue
            widths[[found.group for found in candidates_of(block.parts)]] = 0
            cost_of_blocks += block.fixed_cost
            if block.name not in inside:
                error += block.error
            inside.update(inner.name for inner in _removable(block.parts))
        for found in self._groups:
            if widths[found.group]:
                error += float(found.errors[int(np.searchsorted(found.widths, widths[found.group]))])
        return WidthAllocation(widths, removed, self._cost.total(widths) - cost_of_blocks, error)


def candidates_of(movables: Sequence[Movable]) -> list[Candidates]:
    """Return all groups, also those inside blocks, in order."""
    return [
        found for part in movables for found in ([part] if isinstance(part, Candidates) else candidates_of(part.parts))
    ]


def _removable(movables: Sequence[Movable]) -> list[RemovableBlock]:
    return [found for part in movables if isinstance(part, RemovableBlock) for found in (part, *_removable(part.parts))]
