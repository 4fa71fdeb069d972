"""Units that nothing depends on any more: what is always zero, and what only ever meets zeros."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from serveprune.compression.pruning.coupling.contraction import Contraction
from serveprune.compression.pruning.dependency_graph import DependencyGraph
from serveprune.graph.node import attribute, constant, operator
from serveprune.oip.tensor import Array

Units = frozenset[int]

_KEEP_ZERO = frozenset(
    {"Abs", "Asin", "Atan", "Cast", "Ceil", "Celu", "Elu", "Erf", "Floor", "Gelu", "HardSwish", "Identity", "LeakyRelu"}
    | {"Mish", "Neg", "PRelu", "Relu", "Round", "Selu", "Sign", "Sin", "Softsign", "Sqrt", "Swish", "Tan", "Tanh"}
    | {"ThresholdedRelu", "AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool"}
    | {"Dropout", "Expand", "Flatten", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Reshape", "Slice"}
    | {"Squeeze", "Transpose", "Unsqueeze", "DepthToSpace", "SpaceToDepth", "com.microsoft::Gelu"}
    | {"com.microsoft::FastGelu", "com.microsoft::QuickGelu"}
)
"""Operators whose output is zero where the first input is, whatever the others are."""

_ADDED = ("Add", "Sub")


def removable_units(model: ir.Model, graph: DependencyGraph) -> tuple[int, ...]:
    """Return the units whose removal changes no answer, by the weights alone; one of each group stays.

    A unit may go if wherever it is summed over either its values are zero for every input, or the weights they
    meet are.

    Args:
        model: The graph that ``graph`` was made from, with the same weights.
        graph: What goes together.
    """
    zero = _zero_units_by_value(model, graph)
    felt: set[int] = set()
    for contraction in graph.contractions:
        units = _roots(graph, contraction.ids)
        silent = zero.get(contraction.value.name or "", frozenset()) | _unread(graph, contraction)
        felt |= units - silent
    removable: list[int] = []
    for group in graph.groups:
        silent_units = [int(unit) for unit in group.units if int(unit) not in felt]
        # An axis must not end up empty; which of its units stays does not matter.
        removable += silent_units[:-1] if len(silent_units) == group.width else silent_units
    return tuple(removable)


def _unread(graph: DependencyGraph, contraction: Contraction) -> Units:
    """Return the units of a contraction that its constant weights multiply by zero only."""
    if contraction.weight is None:
        return frozenset()
    weight, axis = contraction.weight
    return _zero_along(graph, weight, axis)


def _zero_units_by_value(model: ir.Model, graph: DependencyGraph) -> Mapping[str, Units]:
    """Return for each value the units that are zero in it whatever the inputs of the graph are."""
    zero: dict[str, Units] = {}
    for name, value in model.graph.initializers.items():
        axes = [axis for axis, ids in enumerate(graph.axes(name)) if ids is not None]
        zero[name] = frozenset().union(*(_zero_along(graph, value, axis) for axis in axes))
    for node in model.graph:
        rule = _RULES.get(operator(node))
        known = frozenset[int]()
        if operator(node) in _KEEP_ZERO:
            known = _of(zero, node, 0)
        elif rule is not None:
            known = rule(node, zero, graph)
        output = node.outputs[0].name or ""
        zero[output] = known & _units(graph, output)
    return zero


def _product(node: ir.Node, zero: Mapping[str, Units], graph: DependencyGraph) -> Units:
    """Outputs whose weights and bias are zero; of a depthwise Conv also those that read zeros alone."""
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        return frozenset()
    # In a residual stream the same units run along both axes of a weight: only that of the outputs counts.
    rank = len(weight.const_value.shape)
    axis = 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else rank - 1
    made = _zero_along(graph, weight, axis)
    if _is_depthwise(node):
        made |= _of(zero, node, 0)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return made if bias is None else made & _of(zero, node, 2)


def _is_depthwise(node: ir.Node) -> bool:
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    return bool(attribute(node, "group", 1) != 1 and weight.const_value.shape.numpy()[1] == 1)


def _either(node: ir.Node, zero: Mapping[str, Units], graph: DependencyGraph) -> Units:
    return _of(zero, node, 0) | _of(zero, node, 1)


def _both(node: ir.Node, zero: Mapping[str, Units], graph: DependencyGraph) -> Units:
    """A sum is zero where all its terms are; a term that is one zero for all positions counts everywhere."""
    terms = []
    for value in node.inputs:
        array = constant(value)
        everywhere = array is not None and not array.any()
        terms.append(_units(graph, node.outputs[0].name or "") if everywhere else zero.get(_name(value), frozenset()))
    return frozenset.intersection(*terms)


def _quotient(node: ir.Node, zero: Mapping[str, Units], graph: DependencyGraph) -> Units:
    divisor = constant(node.inputs[1])
    return _of(zero, node, 0) if divisor is not None and bool(np.all(divisor != 0)) else frozenset()


def _clip(node: ir.Node, zero: Mapping[str, Units], graph: DependencyGraph) -> Units:
    bounds = [constant(value) for value in node.inputs[1:] if value is not None]
    inside = all(bound is not None for bound in bounds) and all(
        (bound <= 0).all() if index == 0 and node.inputs[1] is not None else (bound >= 0).all()
        for index, bound in enumerate(bounds)
        if bound is not None
    )
    return _of(zero, node, 0) if inside else frozenset()


def _batch_norm(node: ir.Node, zero: Mapping[str, Units], graph: DependencyGraph) -> Units:
    """Zero stays zero without shift and mean; and so does a channel that is scaled by zero, without shift."""
    unshifted = _of(zero, node, 2)
    return unshifted & ((_of(zero, node, 0) & _of(zero, node, 3)) | _of(zero, node, 1))


_RULES: Mapping[str, Callable[[ir.Node, Mapping[str, Units], DependencyGraph], Units]] = MappingProxyType(
    {
        "Add": _both,
        "BatchNormalization": _batch_norm,
        "Clip": _clip,
        "Conv": _product,
        "Div": _quotient,
        "Gemm": _product,
        "MatMul": _product,
        "Mul": _either,
        "Sub": _both,
        "Sum": _both,
    }
)


def _zero_along(graph: DependencyGraph, value: ir.Value, axis: int) -> Units:
    """Return the units of one axis of a constant whose slices hold nothing but zeros."""
    array = constant(value)
    ids = graph.axes(value.name or "")[axis] if array is not None and graph.axes(value.name or "") else None
    if array is None or ids is None or not len(ids):
        return frozenset()
    filled = (np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1) != 0).any(axis=1)
    roots = graph.roots(ids)
    if len(roots) != len(filled):
        return frozenset()
    return frozenset(roots.tolist()) - frozenset(roots[filled].tolist())


def _units(graph: DependencyGraph, value: str) -> Units:
    return frozenset().union(*(_roots(graph, ids) for ids in graph.axes(value) if ids is not None))


def _roots(graph: DependencyGraph, ids: Array) -> Units:
    return frozenset(graph.roots(ids).tolist())


def _of(zero: Mapping[str, Units], node: ir.Node, slot: int) -> Units:
    return zero.get(_name(node.inputs[slot]), frozenset())


def _name(value: ir.Value | None) -> str:
    return "" if value is None else value.name or ""
