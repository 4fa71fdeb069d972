"""Small graphs, written down as text."""

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper, parser

from serveprune.graph.executor.graph_module import GraphModule

_HEADER = '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1, "vendor": 1]>\n'
_RANDOM = np.random.default_rng(0)


def numbers(*shape: int, dtype: type[np.generic] = np.float32) -> np.ndarray:
    """Return numbers around zero."""
    return np.asarray(_RANDOM.standard_normal(shape), dtype)


def positive(*shape: int) -> np.ndarray:
    """Return numbers that can be variances."""
    return np.asarray(np.abs(numbers(*shape)) + 0.5, np.float32)


def graph(text: str, **constants: np.ndarray) -> ir.Model:
    """Return the graph that a text describes, with its constants; a double underscore becomes a dot in their names."""
    return ir.from_proto(proto(text, constants))


def proto(text: str, constants: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Return the graph as a message."""
    model = parser.parse_model(_HEADER + text)
    for node in model.graph.node:
        node.input[:] = [name.replace("__", ".") for name in node.input]
    for name, array in constants.items():
        model.graph.initializer.append(_tensor(name.replace("__", "."), array))
    return model


def module(text: str, **constants: np.ndarray) -> GraphModule:
    """Return the module of a graph, in evaluation mode."""
    return GraphModule(graph(text, **constants), name="small").eval()


def _tensor(name: str, array: np.ndarray) -> onnx.TensorProto:
    if array.dtype != ml_dtypes.bfloat16:
        return numpy_helper.from_array(array, name)
    return onnx.helper.make_tensor(name, onnx.TensorProto.BFLOAT16, array.shape, array.tobytes(), raw=True)
