"""Which way of quantizing fits a graph, judged by where its multiplications are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import onnx

Scheme = Literal["dynamic", "static"]

_ASSUMED_SIZE = 64
"""Stands in for a dynamic axis other than batch: the tokens of a text, the side of a feature map."""

_VALUES_NEEDED = 1024
"""More elements than the shape, pads or axes that an operator takes."""

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


@dataclass(frozen=True, slots=True)
class Multiplications:
    """Multiplications by constant weights for one sample, by the kind of operator that does them."""

    convolution: int
    matrix: int
    recurrent: int

    @property
    def scheme(self) -> Scheme:
        """Static when convolutions do most of the multiplications, else dynamic.

        Dynamic quantization of a convolution runs several times slower than float, so convolutional graphs
        need static scales. Matrix products are fast either way, and in transformers and recurrent nets the
        range of an activation differs so much from input to input that scales taken at run time keep far more
        of the quality. Weights alone would mislead: in a classical convolutional classifier most weights are
        in the last, fully connected layers, which are used once, while a filter is used at every position.
        """
        return "static" if self.convolution > self.matrix + self.recurrent else "dynamic"


def multiplications(model: onnx.ModelProto) -> Multiplications:
    """Count multiplications by constant weights, for a batch of one and 64 for other dynamic axes.

    Of weights only the shapes are looked at, so a graph read without its external data will do.
    """
    weights = {tensor.name: tuple(tensor.dims) for tensor in _constants(model)}
    shapes = _shapes(model)
    counts = {"convolution": 0, "matrix": 0, "recurrent": 0}
    for node in model.graph.node:
        kernel = weights.get(node.input[1]) if len(node.input) > 1 else None
        if kernel is None:
            continue
        if node.op_type in _CONVOLUTIONS:
            positions = node.output[0] if node.op_type == "Conv" else node.input[0]
            counts["convolution"] += prod(kernel) * prod(shapes.get(positions, ())[2:])
        elif node.op_type in ("MatMul", "Gemm", "Attention"):
            rows = 1 if node.op_type == "Gemm" else prod(shapes.get(node.input[0], ())[1:-1])
            counts["matrix"] += prod(kernel) * rows
        elif node.op_type in _RECURRENT:
            steps = shapes.get(node.input[0], (1,))[0]
            counts["recurrent"] += (prod(kernel) + prod(weights.get(node.input[2], ()))) * steps
    return Multiplications(**counts)


def _constants(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield initializers, and the values of Constant nodes under the names of their outputs."""
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.HasField("t"):
                yield onnx.TensorProto(name=node.output[0], dims=attribute.t.dims)


def _without_large_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a graph with no more of large weights than their shapes; inference may need the values of small ones."""
    copy = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = model.graph
    copy.graph.MergeFrom(onnx.GraphProto(name=graph.name, node=graph.node, input=graph.input, output=graph.output))
    for tensor in graph.initializer:
        is_large = prod(tensor.dims) > _VALUES_NEEDED
        bare = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        copy.graph.initializer.append(bare if is_large else tensor)
    return copy


def _shapes(model: onnx.ModelProto) -> Mapping[str, Sequence[int]]:
    """Infer all shapes with the dynamic axes of the inputs fixed."""
    sized = _without_large_weights(model)
    constants = {tensor.name for tensor in sized.graph.initializer}
    for value in sized.graph.input:
        if value.name not in constants:
            for axis, size in enumerate(value.type.tensor_type.shape.dim):
                if not size.HasField("dim_value"):
                    size.dim_value = 1 if axis == 0 else _ASSUMED_SIZE
    for value in sized.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    return {
        value.name: [size.dim_value or _ASSUMED_SIZE for size in value.type.tensor_type.shape.dim]
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
    }
