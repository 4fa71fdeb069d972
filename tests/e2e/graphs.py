"""ONNX files whose answers can be worked out by hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from contract.cases import identity_model
from onnx import TensorProto, helper, numpy_helper

from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import Array

Shape = Sequence[int | str]

_OPSET = 21
_IR_VERSION = 10
_ELEMENT_TYPES = {
    Datatype.BOOL: TensorProto.BOOL,
    Datatype.UINT8: TensorProto.UINT8,
    Datatype.UINT16: TensorProto.UINT16,
    Datatype.UINT32: TensorProto.UINT32,
    Datatype.UINT64: TensorProto.UINT64,
    Datatype.INT8: TensorProto.INT8,
    Datatype.INT16: TensorProto.INT16,
    Datatype.INT32: TensorProto.INT32,
    Datatype.INT64: TensorProto.INT64,
    Datatype.FP16: TensorProto.FLOAT16,
    Datatype.FP32: TensorProto.FLOAT,
    Datatype.FP64: TensorProto.DOUBLE,
    Datatype.BYTES: TensorProto.STRING,
}

SLOW_WIDTH = 256
"""Elements of the input of the model ``slow``."""

CARRIER_WIDTH = 64
"""Elements of a row of the input ``x`` of the carrier model."""


def write_contract_models(folder: Path) -> list[str]:
    """Write the models of the contract table that ONNX can express, and return their names."""
    for datatype, element_type in _ELEMENT_TYPES.items():
        model = _model(
            [helper.make_node("Identity", ["x"], ["y"])],
            inputs=[helper.make_tensor_value_info("x", element_type, ["batch", "columns"])],
            outputs=[helper.make_tensor_value_info("y", element_type, ["batch", "columns"])],
        )
        onnx.save(model, folder / f"{identity_model(datatype)}.onnx")
    names = ("a", "b"), ("sum", "difference")
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in group] for group in names
    )
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    onnx.save(_model(nodes, inputs=inputs, outputs=outputs), folder / "add.onnx")
    return [*map(identity_model, _ELEMENT_TYPES), "add"]


def write_large_model(file: Path) -> None:
    """Write a model of one matrix of 100 MB, which takes a moment to load."""
    width = 5000
    weight = np.random.default_rng(0).normal(size=(width, width)).astype(np.float32)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in "xy"]
    node = helper.make_node("MatMul", ["x", "weight"], ["y"])
    graph = helper.make_graph([node], "large", values[:1], values[1:], [numpy_helper.from_array(weight, "weight")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION), file)


def slow_inputs(steps: int) -> dict[str, Array]:
    """Return what the slow model takes; a step is some four microseconds."""
    return {"steps": np.array([steps], dtype=np.int64), "x": np.ones((1, SLOW_WIDTH), dtype=np.float32)}


def write_slow_model(file: Path) -> None:
    """Write a model that multiplies (1, 256) by a matrix ``steps`` times: the client says how long it takes.

    The batch is static, so that requests are computed one by one.
    """
    weight = np.linalg.qr(np.random.default_rng(7).normal(size=(SLOW_WIDTH, SLOW_WIDTH)))[0].astype(np.float32)
    value = helper.make_tensor_value_info("value", TensorProto.FLOAT, [1, SLOW_WIDTH])
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["value", "weight"], ["next"]),
            helper.make_node("Identity", ["go_on"], ["go_on_still"]),
        ],
        "step",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            value,
        ],
        [
            helper.make_tensor_value_info("go_on_still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [1, SLOW_WIDTH]),
        ],
    )
    model = _model(
        [
            helper.make_node("Squeeze", ["steps"], ["count"]),
            helper.make_node("Loop", ["count", "", "x"], ["y"], body=body),
        ],
        inputs=[
            helper.make_tensor_value_info("steps", TensorProto.INT64, [1]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, SLOW_WIDTH]),
        ],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, SLOW_WIDTH])],
        weights=[numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(model, file)


def write_carrier_model(file: Path) -> None:
    """Write a model whose answer says whose it is: ``id`` (N, 1) comes back as ``who``, beside what is made of ``x``.

    ``total`` is id plus the sum of x; ``features`` (N, 16) is a small network of x (N, 64), so that there is something
    to compute.
    """
    random = np.random.default_rng(11)
    sizes = {"first": (CARRIER_WIDTH, 512), "second": (512, 512), "third": (512, 16)}
    weights = [
        numpy_helper.from_array((random.normal(size=size) / size[0] ** 0.5).astype(np.float32), name)
        for name, size in sizes.items()
    ]
    axes = numpy_helper.from_array(np.array([1], dtype=np.int64), "axes")
    nodes = [
        helper.make_node("Identity", ["id"], ["who"]),
        helper.make_node("Cast", ["id"], ["id_as_float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1),
        helper.make_node("Add", ["id_as_float", "sum"], ["total"]),
        helper.make_node("MatMul", ["x", "first"], ["hidden_1"]),
        helper.make_node("Tanh", ["hidden_1"], ["active_1"]),
        helper.make_node("MatMul", ["active_1", "second"], ["hidden_2"]),
        helper.make_node("Tanh", ["hidden_2"], ["active_2"]),
        helper.make_node("MatMul", ["active_2", "third"], ["features"]),
    ]
    model = _model(
        nodes,
        inputs=[
            helper.make_tensor_value_info("id", TensorProto.INT64, ["batch", 1]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", CARRIER_WIDTH]),
        ],
        outputs=[
            helper.make_tensor_value_info("who", TensorProto.INT64, ["batch", 1]),
            helper.make_tensor_value_info("total", TensorProto.FLOAT, ["batch", 1]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 16]),
        ],
        weights=[*weights, axes],
    )
    onnx.save(model, file)


def write_ragged_model(file: Path) -> None:
    """Write a model of sequences that are padded by mask: ``echo`` (N, L) are the ids, ``total`` (N, 1) their sum."""
    sequence, axes = ["batch", "length"], numpy_helper.from_array(np.array([1], dtype=np.int64), "axes")
    model = _model(
        [
            helper.make_node("Mul", ["input_ids", "attention_mask"], ["echo"]),
            helper.make_node("ReduceSum", ["echo", "axes"], ["total"], keepdims=1),
        ],
        inputs=[
            helper.make_tensor_value_info(name, TensorProto.INT64, sequence) for name in ("input_ids", "attention_mask")
        ],
        outputs=[
            helper.make_tensor_value_info("echo", TensorProto.INT64, sequence),
            helper.make_tensor_value_info("total", TensorProto.INT64, ["batch", 1]),
        ],
        weights=[axes],
    )
    onnx.save(model, file)


def _model(
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "small", list(inputs), list(outputs), list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = _IR_VERSION
    onnx.checker.check_model(model)
    return model
