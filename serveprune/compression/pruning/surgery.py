"""Removing units and blocks; and masking them, which must compute the same."""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from serveprune.compression.pruning.coupling.contraction import Contraction
from serveprune.compression.pruning.dependency_graph import DependencyGraph
from serveprune.compression.pruning.patches import Removal, add_constant, patch
from serveprune.compression.pruning.residual_blocks import ResidualBlock
from serveprune.errors import InvalidArgument, NotFound
from serveprune.graph.node import constant, key
from serveprune.oip.tensor import Array


def remove_units(model: ir.Model, graph: DependencyGraph, removed: Iterable[int]) -> None:
    """Take units out of a graph, in place.

    Args:
        model: A copy of the graph that ``graph`` was made from, with the same names.
        graph: What goes together.
        removed: Unit ids, of groups of ``graph``.

    Raises:
        InvalidArgument: Nothing would be left of an axis.
    """
    removal = Removal(model.graph, graph, frozenset(removed))
    constants = list(model.graph.initializers.items())
    for name, value in constants:
        _require_rest(name, value, removal)
    for node in list(model.graph):
        patch(node, removal)
    for name, value in constants:
        _slice_constant(name, value, removal)
    for node in model.graph:
        for output in node.outputs:
            if not output.is_graph_output():
                output.shape = None


def masked(model: ir.Model, graph: DependencyGraph, removed: Iterable[int]) -> None:
    """Zero units wherever they are summed over, in place; the graph keeps its size.

    This is the reference for `remove_units`: both graphs must compute the same.
    """
    gone = frozenset(removed)
    nodes = {key(node): node for node in model.graph}
    for index, contraction in enumerate(graph.contractions):
        positions = graph.removed_positions(contraction.ids, gone)
        node = nodes.get(key(contraction.node))  # blocks that were removed took their nodes along
        if not len(positions) or node is None:
            continue
        value = node.inputs[contraction.slot]
        assert value is not None
        mask = np.ones(len(contraction.ids), _dtype(contraction, value, model))
        mask[positions] = 0
        shape = [1] * len(graph.axes(contraction.value.name or ""))
        shape[contraction.axis] = len(mask)
        zeros = add_constant(model.graph, f"mask_{index}", mask.reshape(shape))
        product = ir.node("Mul", [value, zeros])
        product.outputs[0].name = f"masked_{index}"
        model.graph.insert_before(node, product)
        node.replace_input_with(contraction.slot, product.outputs[0])


def remove_blocks(model: ir.Model, graph: DependencyGraph, names: Iterable[str]) -> None:
    """Bypass residual blocks, in place, and drop what only they needed.

    Units may still be removed afterwards, with the same ``graph``.

    Raises:
        NotFound: There is no such block.
    """
    nodes = {key(node): node for node in model.graph}
    for block in _blocks(graph, names):
        total = nodes[block.name]
        slot = block.slot
        bypass = total.inputs[1 - slot]
        assert bypass is not None
        if total.outputs[0].is_graph_output() or bypass.is_graph_output():
            total.replace_input_with(slot, add_constant(model.graph, f"{block.name}_removed", _zero(model, total)))
        else:
            total.outputs[0].replace_all_uses_with(bypass)
    passes.RemoveUnusedNodesPass()(model)


def masked_blocks(model: ir.Model, graph: DependencyGraph, names: Iterable[str]) -> None:
    """Multiply the branches of blocks by zero, in place: the reference for `remove_blocks`.

    Raises:
        NotFound: There is no such block.
    """
    nodes = {key(node): node for node in model.graph}
    for block in _blocks(graph, names):
        total = nodes[block.name]
        slot = block.slot
        branch = total.inputs[slot]
        assert branch is not None
        product = ir.node("Mul", [branch, add_constant(model.graph, f"{block.name}_zero", _zero(model, total))])
        product.outputs[0].name = f"{block.name}_masked"
        model.graph.insert_before(total, product)
        total.replace_input_with(slot, product.outputs[0])


def _blocks(graph: DependencyGraph, names: Iterable[str]) -> list[ResidualBlock]:
    known = {block.name: block for block in graph.blocks}
    chosen = list(names)
    for name in chosen:
        if name not in known:
            raise NotFound(
                f"expected the name of a residual block, got {name!r}; there are: {', '.join(known) or 'none'}"
            )
    return [known[name] for name in chosen]


def _zero(model: ir.Model, total: ir.Node) -> Array:
    for value in (*total.outputs, *total.inputs):
        if value is not None and value.dtype is not None:
            return np.zeros(1, value.dtype.numpy())
    return np.zeros(1, _float_dtype(model))


def _float_dtype(model: ir.Model) -> np.dtype:
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype.is_floating_point():
            return value.const_value.dtype.numpy()
    return np.dtype(np.float32)


def _dtype(contraction: Contraction, value: ir.Value, model: ir.Model) -> np.dtype:
    if contraction.weight is not None:
        tensor = contraction.weight[0].const_value
        assert tensor is not None
        return tensor.dtype.numpy()
    return value.dtype.numpy() if value.dtype is not None else _float_dtype(model)


def _require_rest(name: str, value: ir.Value, removal: Removal) -> None:
    for axis, ids in enumerate(removal.graph.axes(name)):
        if ids is not None and len(ids) and len(removal.positions(ids)) == len(ids):
            raise InvalidArgument(
                f"{name}: expected some of its {len(ids)} positions along axis {axis} to be kept, got all removed; "
                "keep at least one unit of every group"
            )


def _slice_constant(name: str, value: ir.Value, removal: Removal) -> None:
    array: Array | None = None
    for axis, ids in enumerate(removal.graph.axes(name)):
        positions = removal.positions(ids)
        if len(positions):
            whole = constant(value) if array is None else array
            assert whole is not None
            array = np.delete(whole, positions, axis=axis)
    if array is not None:
        value.const_value = ir.tensor(np.ascontiguousarray(array), name=name)
        value.shape = ir.Shape(array.shape)
