"""Graphs of one node."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serveprune.oip.tensor import Array


def save_graph(path: Path, *, operator: str = "Add", domain: str = "") -> Path:
    """Write a graph that adds two float inputs of shape (batch, 3) and (3)."""
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "bias"], ["y"], name="/sum", domain=domain)],
        "adder",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("bias", TensorProto.FLOAT, ["width"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def save_one_node(path: Path, operator: str, *, element: int, constant: Array | None = None) -> Path:
    """Write a graph of one node from input ``x`` of one dynamic axis, and a constant, to output ``y``."""
    names = ["x"] if constant is None else ["x", "constant"]
    out = element if operator != "ConstantOfShape" else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["y"], name="the_node")],
        "one",
        [helper.make_tensor_value_info("x", element, ["batch"])],
        [helper.make_tensor_value_info("y", out, None)],
        [] if constant is None else [numpy_helper.from_array(constant, "constant")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def save_lookup(path: Path, operator: str, *, rows: int) -> Path:
    """Write a graph that looks up int64 indices ``x`` of shape (batch, 1) in a table of (rows, 4)."""
    table = numpy_helper.from_array(_ramp(rows), "table")
    graph = helper.make_graph(
        [helper.make_node(operator, ["table", "x"], ["y"], name="the_node")],
        "lookup",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["batch", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [table],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def _ramp(rows: int) -> Array:
    return np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
