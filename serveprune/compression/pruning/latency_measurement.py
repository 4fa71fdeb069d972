"""Makes the latency table of a model: which fragments are timed at which widths."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product

import numpy as np
import onnx_ir as ir

from serveprune.compression.pruning.cost import Widths
from serveprune.compression.pruning.dependency_graph import DependencyGraph
from serveprune.compression.pruning.footprint_cost import FootprintCost, elements, multiplications
from serveprune.compression.pruning.fragment import (
    Fragment,
    fragments,
    narrowed,
    standalone,
    structure_digest,
)
from serveprune.compression.pruning.group_axes import GroupAxes
from serveprune.compression.pruning.latency_table import FragmentTable, LatencyTable, rising
from serveprune.compression.pruning.stopwatch import Runnable, Stopwatch
from serveprune.oip.tensor import Array

_MOST_WIDTHS = 12
"""A fragment of one group is timed at so many widths, at all of them if there are no more."""

_PAIR = 2
_PAIR_FRACTIONS = (0.0, 0.5, 1.0)
"""Where two groups meet (a convolution's input and output), each is timed at these places of its candidates."""

_WORK_FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where more groups meet, all are narrowed alike to these places."""

_WHOLE_FRACTIONS = (0.0, 0.5, 1.0)
_WHOLE_SHARE = 0.4
"""Part of the time that goes to the whole model."""


def measure_latency_table(
    model: ir.Model,
    graph: DependencyGraph,
    candidates: Sequence[Sequence[int]],
    *,
    feeds: Mapping[str, Array],
    stopwatch: Stopwatch,
    budget_seconds: float = 30.0,
) -> LatencyTable:
    """Time the fragments of a model, each operator and shape once, and the whole at three allocations.

    Args:
        model: The graph ``graph`` was made from; not changed.
        graph: What goes together.
        candidates: Per group of ``graph`` the widths it may take, ascending, the last one its whole width.
        feeds: One batch of the deployment's size.
        stopwatch: Where and how times are taken.
        budget_seconds: About how long all timing may take.
    """
    return _Measurement(model, graph, candidates, feeds, stopwatch).table(budget_seconds)


class _Measurement:
    def __init__(
        self,
        model: ir.Model,
        graph: DependencyGraph,
        candidates: Sequence[Sequence[int]],
        feeds: Mapping[str, Array],
        stopwatch: Stopwatch,
    ) -> None:
        self._model = model
        self._graph = graph
        self._candidates = candidates
        self._feeds = feeds
        self._stopwatch = stopwatch
        self._axes = GroupAxes(graph)
        self._fragments = fragments(model.graph, self._axes)
        self._values = self._shared_values()
        self._shapes = {name: np.shape(array) for name, array in self._values.items()}

    def table(self, budget_seconds: float) -> LatencyTable:
        """Time fragments, then the whole."""
        plans = [_FragmentPlan(fragment, self._grid(fragment)) for fragment in self._fragments]
        structures = [self._structure(plan) for plan in plans]
        share = budget_seconds * (1 - _WHOLE_SHARE) / max(len({str(each) for each in structures}), 1)
        timed: dict[str, list[float]] = {}
        for plan, structure in zip(plans, structures, strict=True):
            if str(structure) not in timed:
                runnables = [partial(self._cut, plan, point) for point in plan.points]
                timed[str(structure)] = self._stopwatch.times_ms(runnables, structure=structure, budget_seconds=share)
        tables = tuple(
            self._table(plan, timed[str(structure)]) for plan, structure in zip(plans, structures, strict=True)
        )
        return self._calibrated(tables, budget_seconds * _WHOLE_SHARE)

    def _calibrated(self, tables: tuple[FragmentTable, ...], budget_seconds: float) -> LatencyTable:
        allocations = list(map(self._uniform, _WHOLE_FRACTIONS))
        digest = structure_digest(self._model.graph)
        shapes = sorted((name, list(array.shape)) for name, array in self._feeds.items())
        structure = [digest, shapes, [widths.tolist() for widths in allocations]]
        runnables = [partial(self._narrowed, self._model, widths, self._feeds) for widths in allocations]
        measured = self._stopwatch.times_ms(runnables, structure=structure, budget_seconds=budget_seconds)
        alone = LatencyTable(tables, ((0.0, 0.0), (1.0, 1.0)), self._axes.widths)
        sums = [alone.total(widths) for widths in allocations]
        return LatencyTable(tables, calibration(sums, measured), self._axes.widths)

    def _shared_values(self) -> dict[str, Array]:
        """Run the model once and return the values that fragments read, and all of those whose work is counted."""
        wanted = {value.name or "" for fragment in self._fragments for value in fragment.inputs}
        counted = [fragment for fragment in self._fragments if len(fragment.groups) > _PAIR]
        wanted.update(made.name or "" for fragment in counted for node in fragment.nodes for made in node.outputs)
        copy = ir.Model(self._model.graph.clone(), ir_version=self._model.ir_version)
        made = {output.name or "": output for node in copy.graph for output in node.outputs}
        names = [name for name in made if name in wanted]
        copy.graph.outputs.extend(made[name] for name in names if not made[name].is_graph_output())
        session = self._stopwatch.load(copy)
        arrays = session.run(self._feeds, outputs=names) if names else []
        session.close()
        return dict(self._feeds) | dict(zip(names, arrays, strict=True))

    def _grid(self, fragment: Fragment) -> list[list[int]]:
        count = len(fragment.groups)
        if count == 1:
            widths = self._candidates[fragment.groups[0]]
            return [_spread(widths, np.linspace(0, 1, _MOST_WIDTHS))]
        fractions = _PAIR_FRACTIONS if count == _PAIR else _WORK_FRACTIONS
        return [_spread(self._candidates[group], fractions) for group in fragment.groups]

    def _structure(self, plan: "_FragmentPlan") -> list[object]:
        """Return what two fragments have in common if one's times hold for the other."""
        ends = [structure_digest(self._cut(plan, point)[0].graph) for point in (plan.points[0], plan.points[-1])]
        return [*ends, [list(point) for point in plan.points]]

    def _cut(self, plan: "_FragmentPlan", point: tuple[int, ...]) -> Runnable:
        feeds = {value.name or "": self._values[value.name or ""] for value in plan.fragment.inputs}
        alone = standalone(plan.fragment, self._model, feeds=feeds)
        return self._narrowed(alone, plan.widths(point, dense=self._axes.widths), feeds)

    def _narrowed(self, model: ir.Model, widths: Widths, feeds: Mapping[str, Array]) -> Runnable:
        removed = np.concatenate(
            [group.units[width:] for group, width in zip(self._graph.groups, widths.tolist(), strict=True)]
        )
        return narrowed(model, self._graph, removed=removed.tolist(), feeds=feeds)

    def _table(self, plan: "_FragmentPlan", times: Sequence[float]) -> FragmentTable:
        groups = plan.fragment.groups
        if len(groups) <= _PAIR:
            shaped = np.array(times).reshape([len(widths) for widths in plan.grid])
            return FragmentTable(groups, tuple(tuple(map(float, axis)) for axis in plan.grid), rising(shaped))
        work = self._work(plan.fragment)
        amounts = tuple(work.total(plan.widths(point, dense=self._axes.widths)) for point in plan.points)
        return FragmentTable(groups, (amounts,), rising(np.array(times)), work)

    def _work(self, fragment: Fragment) -> FootprintCost:
        products = (
            *multiplications(fragment.nodes, self._axes, shapes=self._shapes),
            *elements(fragment.outputs, self._axes, shapes=self._shapes),
        )
        return FootprintCost(products, dense=self._axes.widths)

    def _uniform(self, fraction: float) -> Widths:
        return np.array([_spread(widths, (fraction,))[0] for widths in self._candidates], np.int64)


class _FragmentPlan:
    """The widths a fragment is timed at."""

    def __init__(self, fragment: Fragment, grid: list[list[int]]) -> None:
        self.fragment = fragment
        self.grid = grid
        self.points: list[tuple[int, ...]] = list(product(*grid)) if len(grid) <= _PAIR else list(_together(grid))

    def widths(self, point: tuple[int, ...], *, dense: Widths) -> Widths:
        """Return the widths of all groups at a point; those the fragment does not know stay dense."""
        widths = dense.copy()
        widths[list(self.fragment.groups)] = point
        return widths


def calibration(sums: Sequence[float], measured: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Return sums with the milliseconds they mean, both rising; the last point is kept as it is."""
    *narrower, (whole, dense) = sorted(zip(sums, measured, strict=True))
    points = [(whole, dense)]
    for total, milliseconds in reversed(narrower):
        if total < points[0][0] and milliseconds < points[0][1]:
            points.insert(0, (total, milliseconds))
    return tuple(points)


def _spread(widths: Sequence[int], fractions: Sequence[float] | np.ndarray) -> list[int]:
    """Return the candidates at these fractions of their list, without repetition."""
    return list(dict.fromkeys(widths[round(float(fraction) * (len(widths) - 1))] for fraction in fractions))


def _together(grid: Sequence[Sequence[int]]) -> Iterator[tuple[int, ...]]:
    most = max(map(len, grid))
    for place in range(most):
        yield tuple(axis[round(place * (len(axis) - 1) / max(most - 1, 1))] for axis in grid)
