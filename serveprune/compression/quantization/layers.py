"""The layers of a graph that can be quantized one by one, under names people know."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx

from serveprune.compression.plan_report import CoupledAxis, layer_label
from serveprune.compression.quantization.quantizer import DYNAMIC_OPERATORS, STATIC_WEIGHT_OPERATORS, Quantizer

_DYNAMIC_WEIGHT_OPERATORS = frozenset({*DYNAMIC_OPERATORS, "Gemm"})
_ACTIVATIONS = frozenset({"Relu", "Clip"})
_FUSION_PREFIX = "ConvBnFusion_W_"
"""What ONNX Runtime puts before the name of a filter that a BatchNormalization was folded into."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A node with weights of its own, and what a runtime computes along with it.

    Attributes:
        node: The node's name, for which patterns to ignore are written.
        label: Name for people: of the weight or the bias.
        operator: Type of the node.
        bias: Name of the Add behind it that adds a constant, if any.
        activation: Name of the activation behind it that its integer kernel includes, if any.
    """

    node: str
    label: str
    operator: str
    bias: str | None
    activation: str | None

    @property
    def quantized_nodes(self) -> frozenset[str]:
        """Nodes that stay out of float when this layer does."""
        return frozenset({self.node} if self.activation is None else {self.node, self.activation})


def quantizable_layers(quantizer: Quantizer) -> tuple[Layer, ...]:
    """Return the layers that a quantizer would turn into integers, in graph order."""
    graph = quantizer.model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    static = quantizer.scheme == "static"
    operators = STATIC_WEIGHT_OPERATORS if static else _DYNAMIC_WEIGHT_OPERATORS
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return tuple(
        _layer(node, weights, readers, static=static)
        for node in graph.node
        if node.op_type in operators
        and node.name not in quantizer.left_in_float
        and any(_is_matrix(weights[name]) for name in node.input if name in weights)
    )


def _layer(
    node: onnx.NodeProto,
    weights: Mapping[str, onnx.TensorProto],
    readers: Mapping[str, list[onnx.NodeProto]],
    *,
    static: bool,
) -> Layer:
    bias = _only_reader(node, readers)
    constants = [] if bias is None else [name for name in bias.input if name in weights]
    if bias is None or bias.op_type != "Add" or not constants:
        bias, constants = None, []
    # Between a MatMul and its bias there is no integer activation.
    follower = _only_reader(node, readers) if static else None
    activation = follower.name if follower is not None and follower.op_type in _ACTIVATIONS else None
    names = [name.removeprefix(_FUSION_PREFIX) for name in (*node.input, *constants) if name in weights]
    label = layer_label(names[0], [CoupledAxis(weight=name, axis=0, positions_per_unit=1) for name in names])
    return Layer(node.name, label, node.op_type, None if bias is None else bias.name, activation)


def _only_reader(node: onnx.NodeProto, readers: Mapping[str, list[onnx.NodeProto]]) -> onnx.NodeProto | None:
    found = [reader for name in _made(node) for reader in readers.get(name, ())]
    return found[0] if len(found) == 1 else None


def _made(node: onnx.NodeProto) -> Iterator[str]:
    yield from (name for name in node.output if name)


def _is_matrix(tensor: onnx.TensorProto) -> bool:
    return len(tensor.dims) > 1 and tensor.data_type == onnx.TensorProto.FLOAT
