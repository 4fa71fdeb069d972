"""Answers of a statically quantized graph that are not rounded to 256 levels."""

from collections import defaultdict
from dataclasses import dataclass

import onnx

_PRODUCTS = frozenset({"Gemm", "MatMul"})

# What may stand between the last product and the answer without costing anything in float.
_CHEAP = frozenset(
    {"Add", "Clip", "Flatten", "Identity", "LogSoftmax", "Mul", "Reshape", "Sigmoid", "Softmax", "Squeeze"}
    | {"Tanh", "Transpose", "Unsqueeze"}
)


@dataclass(frozen=True, slots=True)
class LastProducts:
    """The matrix products that answers come from; names of nodes.

    Attributes:
        products: Their integer kernels give floats as fast as integers.
        followers: The cheap nodes from there to the graph's outputs.
    """

    products: frozenset[str]
    followers: frozenset[str]


def last_products(model: onnx.ModelProto) -> LastProducts:
    """Find the Gemm and MatMul nodes from which only cheap nodes lead to an output.

    Rounding what they give to 8 bits would gain no time and make ties between classes. A MatMul with its bias in
    an Add behind it becomes a Gemm, in place, where it is two-dimensional; elsewhere it is passed over, because
    ONNX Runtime would join the two in float.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    products: set[str] = set()
    followers: set[str] = set()
    for output in model.graph.output:
        passed: list[onnx.NodeProto] = []
        node = producers.get(output.name)
        while node is not None and node.op_type in _CHEAP:
            passed.append(node)
            computed = [name for name in node.input if name and name not in constants]
            node = producers.get(computed[0]) if len(computed) == 1 else None
        if node is None or node.op_type not in _PRODUCTS:
            continue
        has_bias = node.op_type == "MatMul" and bool(passed) and passed[-1].op_type == "Add"
        if has_bias and not _joined(model, node, passed.pop()):
            continue
        products.add(node.name)
        followers.update(one.name for one in passed)
    return LastProducts(frozenset(products), frozenset(followers))


def keep_answers_in_float(model: onnx.ModelProto, products: frozenset[str]) -> None:
    """Remove, in place, the QuantizeLinear and DequantizeLinear pairs behind these nodes."""
    graph = model.graph
    consumers = _consumers(graph)
    removed: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.name not in products:
            continue
        for quantizing in [one for one in consumers[node.output[0]] if one.op_type == "QuantizeLinear"]:
            restoring = consumers[quantizing.output[0]]
            removed += [quantizing, *restoring]
            for end in restoring:
                _bypass(graph, node, end.output[0])
    for node in removed:
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _bypass(graph: onnx.GraphProto, node: onnx.NodeProto, name: str) -> None:
    """Let a node give itself what went by ``name`` behind it; names of graph outputs stay."""
    old, new = name, node.output[0]
    if any(output.name == name for output in graph.output):
        old, new = new, old
        node.output[0] = new
    for consumer in graph.node:
        for position, source in enumerate(consumer.input):
            if source == old:
                consumer.input[position] = new


def _joined(model: onnx.ModelProto, product: onnx.NodeProto, addition: onnx.NodeProto) -> bool:
    """Make a Gemm, under the product's name, of a MatMul and the Add behind it, if that is the same."""
    graph = model.graph
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info)
        if value.type.tensor_type.HasField("shape")
    }
    bias = next((name for name in addition.input if name in sizes), "")
    weight = sizes.get(product.input[1], [])
    is_plain = (
        ranks.get(product.input[0]) == 2
        and len(weight) == 2
        and sizes.get(bias) == [weight[1]]
        and len(_consumers(graph)[product.output[0]]) == 1
        and all(output.name != product.output[0] for output in graph.output)
    )
    if is_plain:
        joined = onnx.helper.make_node("Gemm", [*product.input, bias], addition.output, name=product.name)
        product.CopyFrom(joined)
        graph.node.remove(addition)
    return is_plain


def _consumers(graph: onnx.GraphProto) -> defaultdict[str, list[onnx.NodeProto]]:
    consumers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            consumers[name].append(node)
    return consumers
