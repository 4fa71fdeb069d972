"""What a graph goes through before its couplings are read."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript import optimizer

from serveprune.errors import InvalidArgument
from serveprune.graph.node import constant, operator
from serveprune.graph.onnx_file import write_graph
from serveprune.graph.quantized import quantized_node


def prepare(graph: Path, *, output: Path) -> ir.Model:
    """Write an equivalent graph whose couplings are those of the network, and return it as written.

    Functions are inlined, constants become initializers, sizes that are known are folded, and nodes get names.
    BatchNormalization stays, for repair needs its statistics.

    Importing shares equal constants, so that all zero biases of one length are the same constant, and layers that
    have nothing to do with each other would only lose channels together. Constants of rank 0 and 1, and larger ones
    that hold one value only, therefore become one constant per reader. Other constants stay shared: that is a tie
    the network was trained with (an embedding that is also the output's matrix), and untying it would make the
    file larger. Both are exact.

    Raises:
        InvalidArgument: The graph is quantized already.
    """
    model = ir.load(graph)
    require_float(model)
    passes.TopologicalSortPass()(model)  # ONNX Runtime also takes nodes in any order
    passes.InlinePass()(model)
    passes.RemoveInitializersFromInputsPass()(model)
    optimizer.fold_constants(model, should_fold=lambda node: False if _reads_tied_weight(node) else None)
    for step in (
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.RemoveUnusedNodesPass(),
        passes.NameFixPass(),
    ):
        step(model)
    unshare_constants(model.graph)
    _name_nodes(model.graph)
    write_graph(model, output)
    return ir.load(output)


def require_float(model: ir.Model) -> None:
    """Check that a graph is not quantized.

    Raises:
        InvalidArgument: It is; the message names the first operator that shows it.
    """
    node = quantized_node(model)
    if node is not None:
        raise InvalidArgument(
            f"the graph is already quantized ({operator(node)} {node.name or node.outputs[0].name}): "
            "prune before quantizing; start from the float model, and put `prune` before `quantize`"
        )


def unshare_constants(graph: ir.Graph) -> None:
    """Give every reader of a small or uniform constant its own copy, in place; see `prepare`."""
    for name, value in list(graph.initializers.items()):
        uses = [(node, slot) for node, slot in value.uses() if node.graph is graph]
        if len(uses) < 2 or value.is_graph_output() or not _incidental(value):
            continue
        for count, (node, slot) in enumerate(uses[1:], start=2):
            copy = _copy(graph, name, value, count)
            node.replace_input_with(slot, copy)


def _reads_tied_weight(node: ir.Node) -> bool:
    """Tell whether a node would, if it were folded, make a second copy of a weight that others read as it is."""
    return any(
        value is not None
        and value.const_value is not None
        and len(value.uses()) > 1
        and value.const_value.dtype.is_floating_point()
        and not _incidental(value)
        for value in node.inputs
    )


def _incidental(value: ir.Value) -> bool:
    """Tell whether a constant is shared because it is equal, not because layers share what they learned."""
    assert value.const_value is not None
    if len(value.const_value.shape) <= 1:
        return True
    array = constant(value)
    assert array is not None
    return array.dtype.kind in "biuf" and array.size > 0 and bool(np.all(array == array.flat[0]))


def _copy(graph: ir.Graph, name: str, value: ir.Value, count: int) -> ir.Value:
    assert value.const_value is not None
    while f"{name}_copy{count}" in graph.initializers:
        count += 1
    copied = f"{name}_copy{count}"
    array = np.array(value.const_value.numpy())  # no view: a file that is read from could not be closed
    tensor = ir.tensor(array, dtype=value.const_value.dtype, name=copied)
    copy = ir.Value(name=copied, shape=value.shape, type=value.type, const_value=tensor)
    graph.register_initializer(copy)
    return copy


def _name_nodes(graph: ir.Graph) -> None:
    """Name nodes that have no name, by which users may leave them out."""
    taken = {node.name for node in graph}
    for index, node in enumerate(graph):
        if not node.name:
            name = f"{node.op_type}_{index}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
