import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx

from serveprune.artifacts.manifest import GraphRecord, TensorRecord
from serveprune.graph.external_data import external_files
from serveprune.graph.onnx_file import all_graphs, read_header
from serveprune.graph.tensor_types import fed_inputs, tensor_spec

# Operator -> positions of the inputs that are scales and zero points.
_SCALING_INPUTS = {
    "ConvInteger": (2, 3),
    "DequantizeLinear": (1, 2),
    "DynamicQuantizeLSTM": (8, 9, 10, 11),
    "MatMulInteger": (2, 3),
    "QAttention": (3, 4, 6, 7),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QuantizeLinear": (1, 2),
}


def graph_record(path: Path) -> GraphRecord:
    """Describe a stored graph: what it takes and gives, its weights, bytes and operators.

    Weights are initializers and tensor constants, those of control-flow branches included. Scales and zero points
    of quantization are none: they describe weights.

    Raises:
        InvalidArgument: The file is no ONNX model.
    """
    model = read_header(path)
    graphs = tuple(all_graphs(model.graph))
    operators = Counter(node.op_type for graph in graphs for node in graph.node)
    operators.update(node.op_type for function in model.functions for node in function.node)
    files = (path, *(path.parent / name for name in external_files(model)))
    return GraphRecord(
        inputs=tuple(TensorRecord.of(tensor_spec(value)) for value in fed_inputs(model.graph)),
        outputs=tuple(TensorRecord.of(tensor_spec(value)) for value in model.graph.output),
        parameters=sum(
            math.prod(tensor.dims)
            for graph in graphs
            for scaling in (_scaling_names(graph),)
            for tensor in _weights(graph)
            if tensor.name not in scaling
        ),
        bytes=sum(file.stat().st_size for file in files),
        operators=dict(operators.most_common()),
    )


def _weights(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from (sparse.values for sparse in graph.sparse_initializer)
    for node in graph.node:
        if node.op_type == "Constant":
            yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))


def _scaling_names(graph: onnx.GraphProto) -> set[str]:
    names = {
        node.input[position]
        for node in graph.node
        for position in _SCALING_INPUTS.get(node.op_type, ())
        if position < len(node.input)
    }
    # ONNX Runtime's dynamic quantizer multiplies scales with each other before they are used; it names them so.
    quantized = [tensor.name for tensor in graph.initializer if tensor.name.endswith("_quantized")]
    return names | {name.removesuffix("_quantized") + end for name in quantized for end in ("_scale", "_zero_point")}
