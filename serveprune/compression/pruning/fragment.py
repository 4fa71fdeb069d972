"""Pieces of a graph whose cost depends on the same groups."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from serveprune.artifacts.digest import sha256_json
from serveprune.compression.pruning.dependency_graph import DependencyGraph
from serveprune.compression.pruning.group_axes import GroupAxes
from serveprune.compression.pruning.surgery import remove_units
from serveprune.oip.tensor import Array

_SHAPE_NUMBERS = 64
"""Integer constants of at most so many elements are shapes, axes and bounds: they belong to the structure."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """Nodes that are timed together.

    Attributes:
        groups: Indices of the groups that change its shape, in order of appearance.
        nodes: In graph order.
        inputs: Values it reads that other nodes make, or that are inputs of the graph.
        outputs: Values it makes that others read, or that are outputs of the graph.
    """

    groups: tuple[int, ...]
    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]


def fragments(graph: ir.Graph, axes: GroupAxes) -> tuple[Fragment, ...]:
    """Divide the nodes that any group touches into fragments.

    A node goes with the makers of its inputs if the same groups touch them, else with one that more groups
    touch: a Conv takes the normalization, the activation and the residual Add behind it along, with which a
    runtime fuses it; an attention, or the two products around an activation, are one fragment.
    """
    made_in: dict[str, int] = {}
    members: dict[int, list[ir.Node]] = {}
    touched: dict[int, frozenset[int]] = {}
    for node in graph:
        groups = frozenset(axes.touching(node))
        if not groups:
            continue
        makers = {made_in[value.name or ""]: None for value in node.inputs if value and value.name in made_in}
        equal = [maker for maker in makers if touched[maker] == groups]
        wider = [maker for maker in makers if touched[maker] > groups]
        home = min(equal) if equal else max(wider) if wider else len(made_in) + len(members)
        touched.setdefault(home, groups)
        members.setdefault(home, []).append(node)
        for other in equal:
            if other != home:
                members[home].extend(members.pop(other))
        made_in.update({output.name or "": home for member in members[home] for output in member.outputs})
    order = {id(node): place for place, node in enumerate(graph)}
    return tuple(_fragment(sorted(nodes, key=lambda node: order[id(node)]), axes) for nodes in members.values())


def _fragment(nodes: Sequence[ir.Node], axes: GroupAxes) -> Fragment:
    inside = {id(node) for node in nodes}
    groups = dict.fromkeys(group for node in nodes for group in axes.touching(node))
    inputs = {
        value.name: value
        for node in nodes
        for value in node.inputs
        if value is not None and value.const_value is None and id(value.producer()) not in inside
    }
    outputs = [
        value
        for node in nodes
        for value in node.outputs
        if value.is_graph_output() or any(id(user) not in inside for user, _ in value.uses())
    ]
    return Fragment(tuple(groups), tuple(nodes), tuple(inputs.values()), tuple(outputs))


def narrowed(
    model: ir.Model, graph: DependencyGraph, *, removed: Iterable[int], feeds: Mapping[str, Array]
) -> tuple[ir.Model, dict[str, Array]]:
    """Return a copy of a model without some units, and feeds that fit it."""
    gone = frozenset(removed)
    copy = ir.Model(model.graph.clone(), ir_version=model.ir_version)
    remove_units(copy, graph, gone)
    cut = {}
    for name, array in feeds.items():
        for axis, ids in enumerate(graph.axes(name)):
            array = np.delete(array, graph.removed_positions(ids, gone), axis=axis)
        cut[name] = np.ascontiguousarray(array)
    for value in copy.graph.inputs:
        name = value.name or ""
        # An input of the whole model stays as dynamic as it is served.
        if name in cut and cut[name].shape != feeds[name].shape:
            value.shape = ir.Shape(cut[name].shape)
    return copy, cut


def standalone(fragment: Fragment, model: ir.Model, *, feeds: Mapping[str, Array]) -> ir.Model:
    """Return a fragment as a model of its own, in which all values keep their names.

    Args:
        fragment: A fragment of ``model``.
        model: Not changed; constants are shared with it.
        feeds: An array for every input of the fragment; inputs get their shapes.
    """
    values: dict[str, ir.Value] = {}
    for given in fragment.inputs:
        array, name = feeds[given.name or ""], given.name or ""
        values[name] = ir.val(name, ir.DataType.from_numpy(array.dtype), array.shape)
    inputs = list(values.values())
    constants: list[ir.Value] = []
    nodes = []
    for node in fragment.nodes:
        read: list[ir.Value | None] = []
        for value in node.inputs:
            if value is None:
                read.append(None)
                continue
            name = value.name or ""
            if name not in values:
                assert value.const_value is not None
                dtype, shape = value.const_value.dtype, ir.Shape(value.const_value.shape.numpy())
                values[name] = ir.Value(
                    name=name, shape=shape, type=ir.TensorType(dtype), const_value=value.const_value
                )
                constants.append(values[name])
            read.append(values[name])
        made = [ir.Value(name=output.name) for output in node.outputs]
        values.update({output.name or "": output for output in made})
        nodes.append(ir.Node(node.domain, node.op_type, read, node.attributes, outputs=made, name=node.name))
    graph = ir.Graph(
        inputs,
        [values[value.name or ""] for value in fragment.outputs],
        nodes=nodes,
        initializers=constants,
        opset_imports=dict(model.graph.opset_imports),
        name="fragment",
    )
    return ir.Model(graph, ir_version=model.ir_version)


def structure_digest(graph: ir.Graph) -> str:
    """Return a digest of operators, attributes and shapes, whatever the names and the weights are."""
    numbers: dict[str, int] = {}

    def number(value: ir.Value | None) -> int:
        return -1 if value is None else numbers.setdefault(value.name or "", len(numbers))

    inputs = [(number(value), _sizes(value), str(value.dtype)) for value in graph.inputs]
    nodes = [
        (
            *(node.domain, node.op_type, [number(value) for value in node.inputs]),
            *([number(value) for value in node.outputs], _attributes(node)),
        )
        for node in graph
    ]
    constants = [(number(value), *_constant(value)) for value in graph.initializers.values() if value.uses()]
    outputs = [number(value) for value in graph.outputs]
    versions = sorted(graph.opset_imports.items())
    return sha256_json([inputs, nodes, sorted(constants, key=lambda each: each[0]), outputs, versions])


def _attributes(node: ir.Node) -> list[str]:
    return [
        ir.serde.serialize_attribute(attribute).SerializeToString(deterministic=True).hex()
        for _, attribute in sorted(node.attributes.items())
    ]


def _sizes(value: ir.Value) -> list[str] | None:
    return None if value.shape is None else [str(size) for size in value.shape]


def _constant(value: ir.Value) -> tuple[list[int], str, object]:
    tensor = value.const_value
    assert tensor is not None
    sizes = list(tensor.shape.numpy())
    counts_something = not tensor.dtype.is_floating_point() and tensor.size <= _SHAPE_NUMBERS
    return sizes, str(tensor.dtype), tensor.numpy().tolist() if counts_something else None
