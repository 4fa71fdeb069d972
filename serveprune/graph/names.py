"""Repair of repeated value names, which ONNX Runtime refuses ("Duplicate definition of name").

torch's exporter gives a graph output the name it was asked for even when another value already has
it. In memory the two are different objects, so renaming one is exact. In a file only the order of
nodes tells which is meant, so a file is repaired only where that leaves no doubt.
"""

from collections import Counter
from collections.abc import Iterator

import onnx
import onnx_ir as ir

from serveprune.errors import InvalidArgument


def repair_names(model: ir.Model) -> tuple[str, ...]:
    """Give every value of a graph in memory a name of its own; inputs and outputs keep theirs.

    Returns:
        One note per renamed value, for people.
    """
    interface = {id(value): value for value in (*model.graph.inputs, *model.graph.outputs)}
    everything = {value.name or "" for value in _values(model)}
    taken: set[str] = set()
    notes: list[str] = []
    for value in (*interface.values(), *(v for v in _values(model) if id(v) not in interface)):
        name = value.name or "value"
        if name in taken:
            value.name = _free_name(name, taken | everything)
            notes.append(f"a second value named {name!r} was renamed to {value.name!r}")
        taken.add(value.name or name)
    return tuple(notes)


def repair_file_names(model: onnx.ModelProto, *, label: str) -> tuple[str, ...]:
    """Give every value of a graph read from a file a name of its own, in place.

    Of values with one name the last defined keeps it, for it is the graph output where there is one;
    nodes in between meant the one before them.

    Args:
        model: Changed in place.
        label: How messages name the file.

    Raises:
        InvalidArgument: A node after the last definition uses the name, so either could be meant.
    """
    repeated = _repeated_names(model.graph)
    if not repeated:
        return ()
    taken = set(_all_names(model.graph))
    notes = []
    for name in sorted(repeated):
        _split_name(model.graph, name=name, taken=taken, label=label)
        notes.append(f"the name {name!r} was defined twice; the earlier value was renamed")
    return tuple(notes)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def _free_name(name: str, taken: set[str]) -> str:
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"


def _repeated_names(graph: onnx.GraphProto) -> set[str]:
    counts = Counter(tensor.name for tensor in graph.initializer)
    counts.update(name for node in graph.node for name in node.output if name)
    return {name for name, count in counts.items() if count > 1}


def _all_names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in (*graph.input, *graph.output))
    yield from (tensor.name for tensor in graph.initializer)
    for node in graph.node:
        yield from (*node.input, *node.output)
        for inner in _subgraphs(node):
            yield from _all_names(inner)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _split_name(graph: onnx.GraphProto, *, name: str, taken: set[str], label: str) -> None:
    remaining = sum(list(node.output).count(name) for node in graph.node)
    current = name
    for tensor in graph.initializer:
        if tensor.name == name:
            current = tensor.name = _free_name(name, taken)
            taken.add(current)
    for node in graph.node:
        used = name in node.input or any(name in _all_names(inner) for inner in _subgraphs(node))
        if used and (remaining == 0 or name not in node.input):
            raise InvalidArgument(
                f"{label}: the name {name!r} is defined more than once and node {node.name or node.op_type!r} could "
                "mean either; export the model again with other output names"
            )
        node.input[:] = [current if used_name == name else used_name for used_name in node.input]
        for position, output in enumerate(node.output):
            if output == name:
                remaining -= 1
                current = name if remaining == 0 else _free_name(name, taken)
                taken.add(current)
                node.output[position] = current
