import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx

from serveprune.artifacts.manifest import GraphRecord, TensorRecord
from serveprune.graph.external_data import external_files
from serveprune.graph.onnx_file import read_header
from serveprune.graph.tensor_types import fed_inputs, tensor_spec


def graph_record(path: Path) -> GraphRecord:
    """Describe a stored graph: what it takes and gives, its weights, bytes and operators.

    Weights are initializers and tensor constants, those of control-flow branches included.

    Raises:
        InvalidArgument: The file is no ONNX model.
    """
    model = read_header(path)
    graphs = tuple(_graphs(model.graph))
    operators = Counter(node.op_type for graph in graphs for node in graph.node)
    operators.update(node.op_type for function in model.functions for node in function.node)
    files = (path, *(path.parent / name for name in external_files(model)))
    return GraphRecord(
        inputs=tuple(TensorRecord.of(tensor_spec(value)) for value in fed_inputs(model.graph)),
        outputs=tuple(TensorRecord.of(tensor_spec(value)) for value in model.graph.output),
        parameters=sum(math.prod(tensor.dims) for graph in graphs for tensor in _weights(graph)),
        bytes=sum(file.stat().st_size for file in files),
        operators=dict(operators.most_common()),
    )


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)


def _weights(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from (sparse.values for sparse in graph.sparse_initializer)
    for node in graph.node:
        if node.op_type == "Constant":
            yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))
