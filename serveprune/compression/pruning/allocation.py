"""Choose a width for every group: least error within a budget, by dynamic programming. No I/O, no clock."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from serveprune.errors import InvalidArgument

_ROUNDING = 1e-9


class Unreachable(InvalidArgument):
    """Even the narrowest choice costs more than the budget.

    Attributes:
        least_cost: What the narrowest choice costs.
    """

    def __init__(self, message: str, *, least_cost: float) -> None:
        super().__init__(message)
        self.least_cost = least_cost


@dataclass(frozen=True, slots=True)
class Choice:
    """The widths one group may take.

    Attributes:
        name: Unlike that of any other group.
        widths: Units kept, ascending.
        errors: Error of keeping so many, one per width.
        costs: Cost of keeping so many, one per width, in the unit of the budget.
    """

    name: str
    widths: tuple[int, ...]
    errors: NDArray[np.float64]
    costs: NDArray[np.float64]

    def __post_init__(self) -> None:
        if not len(self.widths) == len(self.errors) == len(self.costs) > 0:
            raise ValueError(
                f"{self.name}: expected as many errors and costs as widths, at least one, got "
                f"{len(self.widths)} widths, {len(self.errors)} errors and {len(self.costs)} costs"
            )
        if not (np.isfinite(self.errors).all() and np.isfinite(self.costs).all()):
            raise ValueError(f"{self.name}: expected finite errors and costs")


@dataclass(frozen=True, slots=True)
class Block:
    """A residual block: kept, with a choice for every part of it, or removed as a whole.

    Attributes:
        name: Unlike that of any other block.
        parts: Groups and blocks inside it; they go with it.
        error_when_removed: Error of removing it.
        cost_when_kept: Cost of keeping it on top of what its parts cost.
        cost_when_removed: Cost that stays when it goes.
    """

    name: str
    parts: "tuple[Choice | Block, ...]"
    error_when_removed: float
    cost_when_kept: float = 0.0
    cost_when_removed: float = 0.0


Part = Choice | Block


@dataclass(frozen=True, slots=True)
class Allocation:
    """What was chosen.

    Attributes:
        widths: Group -> units kept; 0 for groups that go with their block.
        removed_blocks: Names of the blocks that go.
        cost: Sum of the chosen costs and the fixed cost, not rounded.
        error: Sum of the chosen errors.
    """

    widths: dict[str, int]
    removed_blocks: frozenset[str]
    cost: float
    error: float


def groups_of(parts: Sequence[Part]) -> Iterator[Choice]:
    """Yield all groups, also those inside blocks, in order."""
    for part in parts:
        if isinstance(part, Choice):
            yield part
        else:
            yield from groups_of(part.parts)


def blocks_of(parts: Sequence[Part]) -> Iterator[Block]:
    """Yield all blocks, each before the blocks inside it."""
    for part in parts:
        if isinstance(part, Block):
            yield part
            yield from blocks_of(part.parts)


def allocate(
    parts: Sequence[Part],
    *,
    budget: float,
    fixed_cost: float = 0.0,
    resolution: float | None = None,
    steps: int = 4096,
) -> Allocation:
    """Choose the widths of least total error whose total cost is within the budget.

    The cost of each choice above the cheapest one is counted in multiples of ``resolution``: rounded down, which
    makes the answer exact if it is affordable, else to the nearest, else up. So the answer never costs more than
    the budget, and nothing that costs one ``resolution`` per group and block less has a smaller error.

    Args:
        parts: Groups and blocks.
        budget: Most the whole may cost, in any unit.
        fixed_cost: Cost of what no choice changes.
        resolution: In the unit of the budget; by default what the choices may spend, divided by ``steps``.
        steps: Parts of what may be spent; each choice is charged at most one of them too much.

    Raises:
        Unreachable: The cheapest choice of all costs more than the budget.
    """
    least_cost = fixed_cost + sum(map(_least, parts))
    spare = budget - least_cost
    if spare < -_ROUNDING * max(abs(budget), abs(least_cost)):
        raise Unreachable(
            f"expected a cost of at most {budget:g}, but the narrowest choice costs {least_cost:g}",
            least_cost=least_cost,
        )
    # More than everything can cost is of no use, and would only make the steps coarse.
    spare = min(max(spare, 0.0), sum(map(_range, parts)))
    step = resolution or spare / steps or 1.0
    count = int(spare / step + _ROUNDING)
    for rounded in _ROUNDED:
        found = _Programme(parts, step=step, steps=count, rounded=rounded).read(fixed_cost)
        if found.cost <= budget + _ROUNDING * max(abs(budget), abs(least_cost)):
            break
    return found


_ROUNDED: tuple[Callable[[float], int], ...] = (
    lambda count: math.floor(count + _ROUNDING),
    round,
    lambda count: math.ceil(count - _ROUNDING),
)


def _least(part: Part) -> float:
    if isinstance(part, Choice):
        return float(part.costs.min())
    return min(_least_kept(part), part.cost_when_removed)


def _least_kept(block: Block) -> float:
    return block.cost_when_kept + sum(map(_least, block.parts))


def _range(part: Part) -> float:
    """Return how much more than the least a part can cost."""
    if isinstance(part, Choice):
        return float(np.ptp(part.costs))
    most = max(_least_kept(part) + sum(map(_range, part.parts)), part.cost_when_removed)
    return most - _least(part)


@dataclass(slots=True)
class _Step:
    """What was chosen for one part, for every number of steps spent up to and including it.

    Attributes:
        chosen: Index of the width, or for a block 1 where it is removed, per number of steps.
        steps: What each of these spends.
        inside: The parts of a block.
    """

    part: Part
    chosen: NDArray[np.int16]
    steps: list[int]
    inside: "list[_Step]" = field(default_factory=list)


class _Programme:
    """Walks the parts once; ``errors[n]`` is the least error when at most ``n`` steps are spent."""

    def __init__(self, parts: Sequence[Part], *, step: float, steps: int, rounded: Callable[[float], int]) -> None:
        self._step = step
        self._steps = steps
        self._rounding = rounded
        _, self._trace = self._walk(parts, np.zeros(steps + 1))

    def read(self, fixed_cost: float) -> Allocation:
        """Follow the choices back from the whole budget."""
        widths: dict[str, int] = {}
        removed: set[str] = set()
        cost, error, spent = fixed_cost, 0.0, self._steps

        def back(trace: list[_Step]) -> None:
            nonlocal cost, error, spent
            for made in reversed(trace):
                index = int(made.chosen[spent])
                if isinstance(made.part, Choice):
                    widths[made.part.name] = made.part.widths[index]
                    cost += float(made.part.costs[index])
                    error += float(made.part.errors[index])
                elif index:
                    removed.add(made.part.name)
                    removed.update(block.name for block in blocks_of(made.part.parts))
                    widths.update((choice.name, 0) for choice in groups_of(made.part.parts))
                    cost += made.part.cost_when_removed
                    error += made.part.error_when_removed
                else:
                    back(made.inside)
                    cost += made.part.cost_when_kept
                spent -= made.steps[index]

        back(self._trace)
        return Allocation(dict(reversed(widths.items())), frozenset(removed), cost, error)

    def _walk(self, parts: Sequence[Part], errors: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[_Step]]:
        trace = []
        for part in parts:
            errors, made = self._choose(part, errors) if isinstance(part, Choice) else self._keep(part, errors)
            trace.append(made)
        return errors, trace

    def _choose(self, choice: Choice, errors: NDArray[np.float64]) -> tuple[NDArray[np.float64], _Step]:
        steps = [self._rounded(cost) for cost in (choice.costs - choice.costs.min()).tolist()]
        best = np.full(len(errors), np.inf)
        chosen = np.zeros(len(errors), np.int16)
        least = np.inf
        for index in np.lexsort((choice.errors, choice.costs)).tolist():
            error, spent = float(choice.errors[index]), steps[index]
            # Neither cheaper nor better than one already tried.
            if error >= least or spent > self._steps:
                continue
            least = error
            reached = errors[: len(errors) - spent] + error
            better = reached < best[spent:]
            np.copyto(best[spent:], reached, where=better)
            chosen[spent:][better] = index
        return best, _Step(choice, chosen, steps)

    def _keep(self, block: Block, errors: NDArray[np.float64]) -> tuple[NDArray[np.float64], _Step]:
        kept_cost, least = _least_kept(block), _least(block)
        steps = [self._rounded(kept_cost - least), self._rounded(block.cost_when_removed - least)]
        shifted = [np.concatenate([np.full(min(n, len(errors)), np.inf), errors])[: len(errors)] for n in steps]
        kept, inside = self._walk(block.parts, shifted[0])
        removed = shifted[1] + block.error_when_removed
        chosen = (removed < kept).astype(np.int16)
        return np.minimum(kept, removed), _Step(block, chosen, steps, inside)

    def _rounded(self, cost: float) -> int:
        # One step more than there are says as much as any number, which may be infinite where a step is tiny.
        return max(self._rounding(min(cost / self._step, self._steps + 1.0)), 0)
