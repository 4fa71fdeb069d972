"""Layers of a graph, quantized one at a time."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from serveprune.artifacts.digest import sha256_json
from serveprune.compression.quantization.layer_errors import all_but
from serveprune.compression.quantization.layers import Layer, quantizable_layers
from serveprune.compression.quantization.quantizer import Quantizer
from serveprune.compression.sensitivity.timing import Gain, Piece, PieceTimer, captured
from serveprune.oip.tensor import Array


class LayerChanges:
    """Quantizes one layer at a time."""

    def __init__(self, quantizer: Quantizer, *, prepared: Path, feeds: Mapping[str, Array], workspace: Path) -> None:
        """Find the layers and see what they read.

        Args:
            quantizer: Of the dense graph.
            prepared: The float graph that it was made for.
            feeds: The batch whose latency is meant.
            workspace: For graphs that lie between.
        """
        self._quantizer = quantizer
        self._workspace = workspace
        self.layers = quantizable_layers(quantizer)
        graph = quantizer.model.graph
        self._nodes = {node.name: node for node in graph.node}
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        read = [name for layer in self.layers for name in self._reads(self._group(layer))]
        self._values = captured(prepared, read, feeds=feeds, workspace=workspace)

    def write(self, layer: Layer, output: Path) -> None:
        """Write the graph in which only this layer is quantized."""
        self._quantizer.write(output, ignored=all_but(layer, self._quantizer))

    def gain(self, layer: Layer, timer: PieceTimer) -> Gain:
        """Return the time the layer saves.

        With static scales, between layers that are quantized as well: what stands between integers and floats is
        left out on both sides.
        """
        nodes = self._group(layer)
        feeds = {name: self._values[name] for name in self._reads(nodes)}
        whole = self._standalone(nodes, feeds)
        quantized = self._quantizer.piece(whole, workspace=self._workspace)
        after = Piece(quantized, feeds)
        if self._quantizer.scheme == "static":
            after = _between_integers(quantized, feeds)
        return timer.gain(Piece(whole, feeds), after, structure=_structure(whole, feeds))

    def _group(self, layer: Layer) -> list[onnx.NodeProto]:
        """Return the node with what runtimes compute along with it."""
        names = (layer.node, layer.bias, layer.activation)
        return [self._nodes[name] for name in names if name is not None]

    def _reads(self, nodes: Sequence[onnx.NodeProto]) -> list[str]:
        """Return the names of what nodes read that other nodes make."""
        made = {name for node in nodes for name in node.output}
        read = dict.fromkeys(name for node in nodes for name in node.input if name)
        return [name for name in read if name not in made and name not in self._weights]

    def _standalone(self, nodes: Sequence[onnx.NodeProto], feeds: Mapping[str, Array]) -> onnx.ModelProto:
        helper = onnx.helper
        graph = helper.make_graph(
            list(nodes),
            "layer",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
                for name, array in feeds.items()
            ],
            [helper.make_tensor_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT, None)],
            [self._weights[name] for node in nodes for name in node.input if name in self._weights],
        )
        source = self._quantizer.model
        model = helper.make_model(graph, opset_imports=list(source.opset_import), ir_version=source.ir_version)
        model = onnx.shape_inference.infer_shapes(model)
        # The quantizers take nothing else for a graph that was prepared for them.
        model.metadata_props.extend(source.metadata_props)
        return model


def _between_integers(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Piece:
    """Return a quantized model that takes and gives integers where it took and gave floats."""
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    given, removed = dict(feeds), []
    for value in model.graph.input:
        readers = [node for node in model.graph.node if value.name in node.input]
        if [node.op_type for node in readers] != ["QuantizeLinear"]:
            continue
        (step,) = readers
        scale, zero = (constants[name] for name in step.input[1:3])
        levels = np.iinfo(zero.dtype)
        array = np.clip(np.rint(given.pop(value.name) / scale) + zero, levels.min, levels.max).astype(zero.dtype)
        given[step.output[0]] = array
        value.name = step.output[0]
        value.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(zero.dtype)
        removed.append(step)
    for value in model.graph.output:
        maker = next(node for node in model.graph.node if value.name in node.output)
        if maker.op_type == "DequantizeLinear":
            value.name = maker.input[0]
            value.type.tensor_type.elem_type = onnx.TensorProto.UINT8
            removed.append(maker)
    for step in removed:
        model.graph.node.remove(step)
    del model.graph.value_info[:]
    return Piece(model, given)


def _structure(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> str:
    """Return a digest of operators, attributes and sizes, whatever the names and the weights are."""
    sizes = [(list(tensor.dims), tensor.data_type) for tensor in model.graph.initializer]
    nodes = [
        [node.op_type, sorted(attribute.SerializeToString(deterministic=True).hex() for attribute in node.attribute)]
        for node in model.graph.node
    ]
    return sha256_json([nodes, sizes, [(list(array.shape), str(array.dtype)) for array in feeds.values()]])
