"""Operators that put axes behind each other, cut them, or pick positions."""

import numpy as np
import onnx_ir as ir

from serveprune.compression.pruning.axes import Axes
from serveprune.compression.pruning.coupling.walk import Rule, Walk
from serveprune.compression.pruning.units import Ids
from serveprune.graph.node import attribute, constant, given, label, listed, required


def concatenation(node: ir.Node, walk: Walk) -> list[Axes]:
    """Units follow each other along the axis, and couple along the others."""
    operands = [walk.of(value) for value in node.inputs]
    rank = len(operands[0])
    if not rank:
        return [walk.without_units(node.outputs[0])]
    axis = int(attribute(node, "axis", 0)) % rank
    made: list[Ids | None] = []
    for position in range(rank):
        parts = [axes[position] for axes in operands]
        sizes = [walk.shape(value)[position] for value in node.inputs]
        if position != axis:
            result = parts[0]
            for part in parts[1:]:
                result = walk.couple(result, part, f"meets a fixed axis in {label(node)}")
            made.append(result)
        elif all(part is None for part in parts):
            made.append(None)
        elif any(size is None for size in sizes):
            walk.keep(parts, f"joined with a dynamic axis by {label(node)}")
            made.append(None)
        else:
            made.append(np.concatenate([_or_pinned(*each, walk) for each in zip(parts, sizes, strict=True)]))
    return [tuple(made)]


def _or_pinned(ids: Ids | None, size: int | None, walk: Walk) -> Ids:
    """Give an axis without units pinned ones, so that it can stand beside one that has some."""
    if ids is not None:
        return ids
    made = walk.units.fresh(size or 0)
    walk.units.pin(made, "an axis nothing can be removed from")
    return made


def split(node: ir.Node, walk: Walk) -> list[Axes]:
    """Each output takes its run of units; how long the runs are was observed."""
    axes = walk.of(node.inputs[0])
    axis = int(attribute(node, "axis", 0)) % len(axes)
    ids = axes[axis]
    sizes = [walk.shape(output)[axis] for output in node.outputs]
    if ids is not None and (None in sizes or walk.shape(node.inputs[0])[axis] is None):
        walk.pin(ids, f"split at places that move by {label(node)}")
        ids = None
    made, start = [], 0
    for size in sizes:
        part = None if ids is None else ids[start : start + (size or 0)]
        start += size or 0
        made.append((*axes[:axis], part, *axes[axis + 1 :]))
    return made


def slicing(node: ir.Node, walk: Walk) -> list[Axes]:
    """Constant runs of an axis with units are followed."""
    axes, shape = list(walk.of(node.inputs[0])), walk.shape(node.inputs[0])
    (starts, _), (ends, _) = listed(node, slot=1, name="starts"), listed(node, slot=2, name="ends")
    steps, computed_steps = listed(node, slot=4, name="steps")
    order = sliced_axes(node, len(axes))
    if order is None:
        return walk.pinned(node, f"computed axes of {label(node)}")
    for index, axis in enumerate(order):
        ids = axes[axis]
        if ids is None:
            continue
        axes[axis] = None
        if starts is None or ends is None or computed_steps or shape[axis] is None:
            walk.pin(ids, f"cut at places that move by {label(node)}")
        elif steps is not None and steps[index] != 1:
            walk.pin(ids, f"steps of {label(node)}")
        else:
            axes[axis] = ids[starts[index] : ends[index]]
    return [tuple(axes)]


def sliced_axes(node: ir.Node, rank: int) -> tuple[int, ...] | None:
    """Return the axes a Slice cuts, in the order of its bounds; ``None`` if they are computed."""
    numbers, computed = listed(node, slot=3, name="axes")
    if computed:
        return None
    if numbers is None:
        starts, computed = listed(node, slot=1, name="starts")
        # Without a list of axes the bounds are those of the first axes, however many these are.
        numbers = range(rank if starts is None else len(starts))
    return tuple(int(axis) % rank for axis in numbers)


def gather(node: ir.Node, walk: Walk) -> list[Axes]:
    """A constant list of positions is followed; an axis looked up otherwise (a vocabulary) stays whole."""
    data, shape = walk.of(node.inputs[0]), walk.shape(node.inputs[0])
    picked, indices = constant(node.inputs[1]), walk.shape(node.inputs[1])
    axis = int(attribute(node, "axis", 0)) % len(data)
    ids = data[axis]
    if ids is not None and picked is not None and picked.ndim == 1 and shape[axis] is not None:
        return [(*data[:axis], ids[picked], *data[axis + 1 :])]
    walk.pin(ids, f"looked up by {label(node)}")
    return [(*data[:axis], *(None,) * len(indices), *data[axis + 1 :])]


def tile(node: ir.Node, walk: Walk) -> list[Axes]:
    """An axis repeated whole holds each unit as many times."""
    axes = walk.of(node.inputs[0])
    repeats = constant(required(node, 1))
    made: list[Ids | None] = []
    for axis, ids in enumerate(axes):
        if ids is not None and repeats is None:
            walk.pin(ids, f"repeated a computed number of times by {label(node)}")
            made.append(None)
        else:
            made.append(None if ids is None or repeats is None else np.tile(ids, int(repeats[axis])))
    return [tuple(made)]


def padding(node: ir.Node, walk: Walk) -> list[Axes]:
    """Axes that nothing is added to pass."""
    axes = walk.of(node.inputs[0])
    pads, computed = listed(node, slot=1, name="pads")
    order = constant(given(node, 3))
    if computed or (order is None and given(node, 3) is not None):
        return walk.pinned(node, f"computed padding of {label(node)}")
    assert pads is not None
    padded = [int(axis) % len(axes) for axis in (range(len(axes)) if order is None else order)]
    kept = list(axes)
    for index, axis in enumerate(padded):
        if pads[index] or pads[index + len(padded)]:
            walk.pin(kept[axis], f"padded by {label(node)}")
            kept[axis] = None
    return [tuple(kept)]


def resizing(node: ir.Node, walk: Walk) -> list[Axes]:
    """Axes that keep their size pass."""
    axes, before, after = walk.of(node.inputs[0]), walk.shape(node.inputs[0]), walk.shape(node.outputs[0])
    made: list[Ids | None] = []
    for ids, size, new in zip(axes, before, after, strict=True):
        if size is not None and size == new:
            made.append(ids)
        else:
            walk.pin(ids, f"resized by {label(node)}")
            made.append(None)
    return [tuple(made)]


RULES: dict[str, Rule] = {
    "Concat": concatenation,
    "Split": split,
    "Slice": slicing,
    "Gather": gather,
    "Tile": tile,
    "Pad": padding,
    "Resize": resizing,
    "Upsample": resizing,
}
