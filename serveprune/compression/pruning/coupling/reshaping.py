"""Operators that change how positions are laid out: the same elements under other axes."""

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from serveprune.compression.pruning.axes import Axes, positions, reshape_runs
from serveprune.compression.pruning.coupling.walk import Rule, Walk
from serveprune.compression.pruning.observation import Shape
from serveprune.compression.pruning.units import Ids
from serveprune.graph.node import attribute, key, label, required


@dataclass(frozen=True, slots=True)
class _Run:
    """Input axes of a reshape and the output axes that hold the same elements."""

    node: ir.Node
    before: Shape
    after: Shape
    source: range
    target: range


def reshape(node: ir.Node, walk: Walk) -> list[Axes]:
    """Axes are split and joined; in a split one of the parts carries the units (whole heads, or whole dims)."""
    data, output = required(node, 0), node.outputs[0]
    before, after = walk.shape(data), walk.shape(output)
    axes = walk.of(data)
    made: list[Ids | None] = [None] * len(after)
    if all(ids is None for ids in axes):
        return [tuple(made)]
    sizes = [_seen(walk, value) for value in (data, output)]
    if 0 in sizes[0][0]:
        return walk.pinned(node, f"holds nothing in {label(node)}")
    runs = [reshape_runs(first, second) for first, second in zip(*sizes, strict=True)]
    if runs[0] != runs[1]:
        return walk.pinned(node, f"axes mix differently for different inputs in {label(node)}")
    for source, target in runs[0]:
        run = _Run(node, before, after, source, target)
        joined = _join(run, axes, walk)
        if joined is not None:
            _split(run, joined, made, walk)
    return [tuple(made)]


def _seen(walk: Walk, value: ir.Value) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if value.const_value is not None:
        shape = tuple(value.const_value.shape.numpy())
        return shape, shape
    name = value.name or ""
    return walk.observation.first[name], walk.observation.second[name]


def _join(run: _Run, axes: Axes, walk: Walk) -> Ids | None:
    """Return the units of the input axes taken as one.

    Dynamic axes in front only repeat the units of those behind; so an axis of dynamic size whose ids are not
    ``None`` has the unit ``ids[position % len(ids)]`` at each position (batch and heads taken as one axis).
    """
    for axis in run.source:
        if run.before[axis] == 1:
            walk.pin(axes[axis], f"a single position in {label(run.node)}")
    wide = [axis for axis in run.source if run.before[axis] != 1]
    while wide and run.before[wide[0]] is None and axes[wide[0]] is None:
        wide.pop(0)
    carriers = _carriers(axes, wide, run, walk)
    if not carriers:
        return None
    sizes = [run.before[axis] for axis in wide]
    first = axes[wide[0]]
    if sizes[0] is None and first is not None:
        sizes[0] = len(first)
    if None in sizes:
        walk.keep((axes[axis] for axis in carriers), f"mixed with dynamic axes by {label(run.node)}")
        return None
    extents = [size or 0 for size in sizes]
    carrier = carriers[0]
    if len(carriers) > 1:
        if walk.carriers is None:
            return walk.units.fresh(math.prod(extents))
        carrier = max(carriers, key=lambda axis: _free_units(axes[axis], walk))
        others = (axes[axis] for axis in carriers if axis != carrier)
        walk.keep(others, f"joined with another prunable axis by {label(run.node)}")
    ids = axes[carrier]
    assert ids is not None
    return ids[positions(extents, wide.index(carrier))]


def _carriers(axes: Axes, wide: list[int], run: _Run, walk: Walk) -> list[int]:
    """Return which of some axes have units; copies (keys that several heads share) give way to what has weights."""
    carriers = [axis for axis in wide if axes[axis] is not None]
    copies = [axis for axis in carriers if (ids := axes[axis]) is not None and walk.holds_copies(ids)]
    if len(copies) in (0, len(carriers)):
        return carriers
    walk.keep((axes[axis] for axis in copies), f"joined with another prunable axis by {label(run.node)}")
    return [axis for axis in carriers if axis not in copies]


def _free_units(ids: Ids | None, walk: Walk) -> int:
    return 0 if ids is None else len(np.unique(walk.units.roots(ids)[~walk.units.pinned(ids)]))


def _split(run: _Run, joined: Ids, made: list[Ids | None], walk: Walk) -> None:
    """Hand the units of the run on to one of its output axes."""
    wide = [axis for axis in run.target if run.after[axis] != 1]
    parts: list[int] = []
    extents: list[int] = []
    left = len(joined)
    while left > 1 and wide:
        axis = wide.pop()
        size = run.after[axis] or left
        if size % left == 0:
            # The axis holds the units several times over.
            joined = np.tile(joined.reshape(left, -1), (size // left, 1))
            left = size
        elif left % size:
            walk.pin(joined, f"mixed with other axes by {label(run.node)}")
            return
        parts.insert(0, axis)
        extents.insert(0, size)
        left //= size
    if left > 1:
        walk.pin(joined, f"mixed with other axes by {label(run.node)}")
        return
    grid = joined.reshape(extents)
    carrier = _natural_carrier(walk.units.roots(grid))
    if carrier is None and walk.carriers is None:
        fresh = [(axis, _part_units(walk, grid, position)) for position, axis in enumerate(parts)]
        walk.parts[key(run.node), run.source.start] = fresh
        for axis, ids in fresh:
            made[axis] = ids
        return
    if carrier is None:
        carrier = _chosen_carrier(run, parts, extents, walk)
    rows = np.moveaxis(grid, carrier, 0).reshape(extents[carrier], -1)
    walk.units.join_rows(rows)
    made[parts[carrier]] = rows[:, 0].copy()
    if walk.carriers is not None:
        part = walk.carriers.get((key(run.node), run.source.start))
        if part is not None and part.holds is not None and part.axis == parts[carrier]:
            walk.marks.append((rows[:, 0].copy(), part.holds))


def _part_units(walk: Walk, grid: Ids, part: int) -> Ids:
    """Return new units for one part of a split axis, equal ones where it holds the same (a batch of the same heads)."""
    roots = walk.units.roots(grid)
    rows = np.moveaxis(roots, part, 0).reshape(roots.shape[part], -1)
    different, which = np.unique(rows, axis=0, return_inverse=True)
    return walk.units.fresh(len(different))[which.reshape(-1)]


def _natural_carrier(roots: Ids) -> int | None:
    """Return the axis that alone tells units apart, if there is one."""
    for axis in range(roots.ndim):
        rows = np.moveaxis(roots, axis, 0).reshape(roots.shape[axis], -1)
        if (rows == rows[:, :1]).all():
            return axis
    return None


def _chosen_carrier(run: _Run, parts: list[int], extents: list[int], walk: Walk) -> int:
    assert walk.carriers is not None
    part = walk.carriers.get((key(run.node), run.source.start))
    if part is not None and part.axis in parts:
        return parts.index(part.axis)
    return int(np.argmax(extents))


def transpose(node: ir.Node, walk: Walk) -> list[Axes]:
    """Axes change places."""
    axes = walk.of(node.inputs[0])
    order = attribute(node, "perm", tuple(reversed(range(len(axes)))))
    return [tuple(axes[axis] for axis in order)]


def expand(node: ir.Node, walk: Walk) -> list[Axes]:
    """Broadcast to a shape; an axis that grows had a single position, and its copies go with what they meet."""
    axes, before, after = walk.of(node.inputs[0]), walk.shape(node.inputs[0]), walk.shape(node.outputs[0])
    lead = len(after) - len(before)
    made: list[Ids | None] = []
    for ids, size, grown in zip((None,) * lead + axes, (1,) * lead + before, after, strict=True):
        if size == grown:
            made.append(ids)
        else:
            walk.pin(ids, f"is broadcast by {label(node)}")
            made.append(None if grown is None else walk.repeated(grown))
    return [tuple(made)]


def sizes_only(node: ir.Node, walk: Walk) -> list[Axes]:
    """Sizes hold no channels; surgery gives those who compute with them the sizes they knew before."""
    if any(output.is_graph_output() for output in node.outputs):
        return walk.pinned(node, "its size is an output of the graph")
    return [walk.without_units(output) for output in node.outputs]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), reshape),
    "Transpose": transpose,
    "Expand": expand,
    **dict.fromkeys(("Shape", "ConstantOfShape", "Range"), sizes_only),
}
