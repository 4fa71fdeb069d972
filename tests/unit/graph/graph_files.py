"""Small ONNX files that the tests of the importer make."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serveprune.oip.tensor import Array

Shape = list[int | str | None]


def linear_model(*, shape: Shape | None = None, output: Shape | None = None, op: str = "MatMul") -> onnx.ModelProto:
    """A graph `y = x @ w` with w (4, 3)."""
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    return graph_model(
        [helper.make_node(op, ["x", "w"], ["y"], name="product")],
        inputs={"x": ["batch", 4] if shape is None else shape},
        outputs={"y": ["batch", 3] if output is None else output},
        weights={"w": weight},
    )


def graph_model(
    nodes: list[onnx.NodeProto],
    *,
    inputs: dict[str, Shape],
    outputs: dict[str, Shape],
    weights: dict[str, Array] | None = None,
) -> onnx.ModelProto:
    def values(shapes: dict[str, Shape]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", values(inputs), values(outputs), tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def save_with_external_data(model: onnx.ModelProto, path: Path, *, location: str, data: Path | None = None) -> Path:
    """Write the weights of a model to ``data`` (default: beside it) and let the model point to ``location``."""
    tensor = model.graph.initializer[0]
    target = data or path.parent / location
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(tensor.raw_data)
    length = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return save(model, path)
