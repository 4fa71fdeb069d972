"""The numbers in a graph that count channels, and how they change when units go."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from serveprune.compression.pruning.coupling.selection import sliced_axes
from serveprune.compression.pruning.dependency_graph import DependencyGraph
from serveprune.compression.pruning.units import Ids
from serveprune.graph.node import (
    attribute,
    constant,
    given,
    integers,
    key,
    listed,
    operator,
    required,
)
from serveprune.oip.tensor import Array

_SPLIT_SIZES_AS_INPUT = 13
_INFER = -1
_COPY = 0


@dataclass(slots=True)
class Removal:
    """One set of units being removed from one copy of a graph."""

    container: ir.Graph
    graph: DependencyGraph
    gone: frozenset[int]

    def positions(self, ids: Ids | None) -> Ids:
        """Return which positions of an axis go."""
        return self.graph.removed_positions(ids, self.gone)

    def ids(self, value: ir.Value | None, axis: int) -> Ids | None:
        """Return the unit ids of an axis of a value, as they were before anything was removed."""
        axes = self.graph.axes(value.name or "") if value is not None else ()
        return axes[axis] if axes else None

    def mask(self, ids: Ids) -> Array:
        """Tell for each position of an axis whether it goes."""
        removed = np.zeros(len(ids), np.bool_)
        removed[self.positions(ids)] = True
        return removed

    def shrunk(self, value: ir.Value | None) -> dict[int, tuple[int, int]]:
        """Return old and new size of every axis of a value that gets shorter."""
        found = {}
        for axis, ids in enumerate(self.graph.axes(value.name or "") if value is not None else ()):
            count = len(self.positions(ids))
            if count and ids is not None:
                found[axis] = (len(ids), len(ids) - count)
        return found

    def add_constant(self, name: str, array: Array) -> ir.Value:
        """Put a new constant into the graph."""
        return add_constant(self.container, name, array)


Patch = Callable[[ir.Node, Removal], None]


def add_constant(container: ir.Graph, name: str, array: Array) -> ir.Value:
    """Put a new constant into a graph, under a name that is free."""
    base, count = name, 1
    while name in container.initializers:
        count += 1
        name = f"{base}_{count}"
    value = ir.val(name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    value.shape = ir.Shape(array.shape)
    container.register_initializer(value)
    return value


def patch(node: ir.Node, removal: Removal) -> None:
    """Change the numbers of a node that count what is removed."""
    found = _PATCHES.get(operator(node))
    if found is not None:
        found(node, removal)


def _set_input(node: ir.Node, slot: int, value: ir.Value) -> None:
    if slot >= len(node.inputs):
        node.resize_inputs(slot + 1)
    node.replace_input_with(slot, value)


def _conv_groups(node: ir.Node, removal: Removal) -> None:
    groups = int(attribute(node, "group", 1))
    split = removal.ids(required(node, 1), 0)
    if groups == 1 or split is None:
        return
    # Whole groups are gone, or a part of each.
    node.attributes["group"] = ir.AttrInt64("group", _kept(removal.mask(split), groups))


def _kept(removed: Array, rows: int) -> int:
    return int((~removed.reshape(rows, -1)).any(axis=1).sum())


def _norm_groups(node: ir.Node, removal: Removal) -> None:
    ids = removal.ids(node.inputs[0], 1)
    if ids is not None:
        groups = int(attribute(node, "num_groups", 1))
        node.attributes["num_groups"] = ir.AttrInt64("num_groups", _kept(removal.mask(ids), groups))


def _shape_input(slot: int) -> Patch:
    """Patch an input that says the sizes of the output."""

    def change(node: ir.Node, removal: Removal) -> None:
        sizes, wanted = removal.shrunk(node.outputs[0]), given(node, slot)
        if not sizes or wanted is None:
            return
        shape = constant(wanted)
        name = f"{key(node)}_shape"
        if shape is None:
            node.replace_input_with(slot, _computed_shape(node, wanted, sizes, removal))
            return
        patched = shape.astype(np.int64).copy()
        places = _places(node, rank=len(removal.graph.axes(key(node))), count=len(patched))
        copied = removal.shrunk(required(node, 0))
        for axis in {*sizes, *copied} & set(places):
            place = places[axis]
            if patched[place] == _COPY and operator(node) == "Reshape":
                # A size that is copied from an axis which does not change as this one does has to be written out.
                if sizes.get(axis) != copied.get(axis):
                    patched[place] = sizes[axis][1] if axis in sizes else copied[axis][0]
            elif axis in sizes and patched[place] != _INFER:
                patched[place] = sizes[axis][1]
        _set_input(node, slot, removal.add_constant(name, patched))

    return change


def _places(node: ir.Node, *, rank: int, count: int) -> Mapping[int, int]:
    """Return where the size of each output axis stands: a Resize may name its axes, an Expand leave out the first."""
    named = integers(node, "axes")
    if named is not None:
        return {axis % rank: place for place, axis in enumerate(named)}
    return {axis: axis - rank + count for axis in range(max(rank - count, 0), rank)}


def _computed_shape(
    node: ir.Node, wanted: ir.Value, sizes: Mapping[int, tuple[int, int]], removal: Removal
) -> ir.Value:
    """Insert nodes that scale the computed sizes of the axes that get shorter; -1, 0 and an Expand's 1 stay."""
    length = wanted.shape[0] if wanted.shape is not None and len(wanted.shape) == 1 else None
    rank = len(removal.graph.axes(key(node)))
    count = length if isinstance(length, int) else len(integers(node, "axes") or range(rank))
    new, old = np.ones(count, np.int64), np.ones(count, np.int64)
    for axis, place in _places(node, rank=rank, count=count).items():
        # An axis that repeats its units (batch and heads as one) is a multiple of the old size.
        old[place], new[place] = sizes.get(axis, (1, 1))
    base = f"{key(node)}_sizes"

    def insert(operator_name: str, inputs: list[ir.Value], suffix: str) -> ir.Value:
        added = ir.node(operator_name, inputs)
        added.outputs[0].name = f"{base}_{suffix}"
        removal.container.insert_before(node, added)
        return added.outputs[0]

    product = insert("Mul", [wanted, removal.add_constant(f"{base}_new", new)], "multiplied")
    scaled = insert("Div", [product, removal.add_constant(f"{base}_old", old)], "scaled")
    two = removal.add_constant(f"{base}_two", np.full(1, 2, np.int64))
    special = insert("Less", [wanted, two], "special")
    return insert("Where", [special, wanted, scaled], "patched")


def _sizes_seen(node: ir.Node, removal: Removal) -> None:
    """Hand on the sizes from before, which others compute with (a scale from the number of channels)."""
    sizes = removal.shrunk(node.inputs[0])
    rank = len(removal.graph.axes(node.inputs[0].name or "")) if node.inputs[0] is not None else 0
    start, end = int(attribute(node, "start", 0)), attribute(node, "end")
    covered = range(rank)[start : rank if end is None else int(end)]
    if not any(axis in sizes for axis in covered):
        return
    output = node.outputs[0]
    old, new = np.ones(len(covered), np.int64), np.ones(len(covered), np.int64)
    for index, axis in enumerate(covered):
        old[index], new[index] = sizes.get(axis, (1, 1))
    base = key(node)
    product = ir.node("Mul", [output, removal.add_constant(f"{base}_before", old)])
    product.outputs[0].name = f"{base}_multiplied"
    whole = ir.node("Div", [product.outputs[0], removal.add_constant(f"{base}_after", new)])
    whole.outputs[0].name = f"{base}_before_removal"
    output.replace_all_uses_with(whole.outputs[0])
    product.replace_input_with(0, output)
    removal.container.insert_after(node, [product, whole])


def _split_sizes(node: ir.Node, removal: Removal) -> None:
    axis = int(attribute(node, "axis", 0))
    parts = [removal.ids(output, axis) for output in node.outputs]
    if not any(len(removal.positions(ids)) for ids in parts):
        return
    sizes = [len(ids) - len(removal.positions(ids)) for ids in parts if ids is not None]
    node.attributes.pop("num_outputs", None)
    if removal.container.opset_imports.get("", _SPLIT_SIZES_AS_INPUT) < _SPLIT_SIZES_AS_INPUT:
        node.attributes["split"] = ir.AttrInt64s("split", sizes)
        return
    _set_input(node, 1, removal.add_constant(f"{key(node)}_split", np.array(sizes, np.int64)))


def _slice_bounds(node: ir.Node, removal: Removal) -> None:
    data = required(node, 0)
    if not removal.shrunk(data):
        return
    axes = removal.graph.axes(data.name or "")
    order = sliced_axes(node, len(axes))
    assert order is not None
    for slot, name in ((1, "starts"), (2, "ends")):
        numbers, _ = listed(node, slot=slot, name=name)
        if numbers is None:  # computed bounds cut axes without units only
            continue
        bounds = list(numbers)
        for index, axis in enumerate(order):
            removed = removal.positions(axes[axis])
            size = 0 if axes[axis] is None else len(axes[axis])  # type: ignore[arg-type]
            if len(removed):
                place = min(max(bounds[index] + (size if bounds[index] < 0 else 0), 0), size)
                bounds[index] = place - int(np.count_nonzero(removed < place))
        value = given(node, slot)
        if value is None:
            node.attributes[name] = ir.AttrInt64s(name, bounds)
        else:
            array = constant(value)
            assert array is not None
            _set_input(node, slot, removal.add_constant(f"{key(node)}_{name}", np.array(bounds, array.dtype)))


def _picked_positions(node: ir.Node, removal: Removal) -> None:
    picked = constant(node.inputs[1])
    data = required(node, 0)
    ids = removal.ids(data, int(attribute(node, "axis", 0)))
    removed = removal.positions(ids)
    if picked is None or ids is None or not len(removed):
        return
    wanted = picked % len(ids)
    wanted = wanted[~np.isin(wanted, removed)]
    moved = wanted - np.searchsorted(removed, wanted)
    _set_input(node, 1, removal.add_constant(f"{key(node)}_indices", moved.astype(picked.dtype)))


def _heads(node: ir.Node, removal: Removal) -> None:
    """Patch head counts, and write out the scale that followed from the number of dims."""
    query, values = required(node, 0), given(node, 2)
    axes = removal.graph.axes(query.name or "")
    if len(axes) == 4:
        if axes[3] is not None and len(removal.positions(axes[3])):
            _write_scale(node, len(axes[3]))
        return
    names = ("q_num_heads", "kv_num_heads") if operator(node) == "Attention" else ("num_heads", "kv_num_heads")
    ids = axes[2]
    assert ids is not None or not removal.positions(ids).size
    if ids is None or not len(removal.positions(ids)):
        return
    heads, removed = int(attribute(node, names[0], 1)), removal.mask(ids)
    kept = _kept(removed, heads)
    if kept == heads:
        _write_scale(node, len(ids) // heads)
        return
    node.attributes[names[0]] = ir.AttrInt64(names[0], kept)
    shared = removal.ids(values, 2)
    if attribute(node, names[1]) is not None and shared is not None:
        count = _kept(removal.mask(shared), int(attribute(node, names[1])))
        node.attributes[names[1]] = ir.AttrInt64(names[1], count)


def _write_scale(node: ir.Node, dims: int) -> None:
    # com.microsoft operators take 0 for "not given".
    if not attribute(node, "scale"):
        node.attributes["scale"] = ir.AttrFloat32("scale", 1 / float(np.sqrt(dims)))


def _projected_heads(node: ir.Node, removal: Removal) -> None:
    ids = removal.ids(required(node, 1), 1)
    if ids is None or not len(removal.positions(ids)):
        return
    removed, heads = removal.mask(ids), int(attribute(node, "num_heads", 1))
    sizes = integers(node, "qkv_hidden_sizes") or (len(ids) // 3,) * 3
    parts = np.split(removed, np.cumsum(sizes)[:2])
    node.attributes["num_heads"] = ir.AttrInt64("num_heads", _kept(parts[0], heads))
    kept = [int((~part).sum()) for part in parts]
    node.attributes["qkv_hidden_sizes"] = ir.AttrInt64s("qkv_hidden_sizes", kept)


def _turned_heads(node: ir.Node, removal: Removal) -> None:
    axes = removal.graph.axes(required(node, 0).name or "")
    ids = axes[2]
    if len(axes) == 3 and ids is not None and len(removal.positions(ids)):
        kept = _kept(removal.mask(ids), int(attribute(node, "num_heads", 1)))
        node.attributes["num_heads"] = ir.AttrInt64("num_heads", kept)


_PATCHES: Mapping[str, Patch] = MappingProxyType(
    {
        "Conv": _conv_groups,
        "ConvTranspose": _conv_groups,
        "com.microsoft::FusedConv": _conv_groups,
        "GroupNormalization": _norm_groups,
        "Reshape": _shape_input(1),
        "Expand": _shape_input(1),
        "Resize": _shape_input(3),
        "Shape": _sizes_seen,
        "Split": _split_sizes,
        "Slice": _slice_bounds,
        "Gather": _picked_positions,
        "Attention": _heads,
        "com.microsoft::MultiHeadAttention": _heads,
        "com.microsoft::GroupQueryAttention": _heads,
        "com.microsoft::Attention": _projected_heads,
        "RotaryEmbedding": _turned_heads,
        "com.microsoft::RotaryEmbedding": _turned_heads,
    }
)
