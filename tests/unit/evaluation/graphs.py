"""Small ONNX graphs whose answers can be worked out by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serveprune.oip.tensor import Array

Shape = tuple[int | str, ...]


def graph(
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: dict[str, Shape],
    outputs: dict[str, Shape],
    weights: dict[str, Array] | None = None,
    input_type: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    body = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info(name, input_type, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    return model


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), outputs.split(), **attributes)


def linear(weight: Array, *, output: str = "logits", batch: int | str = "batch") -> onnx.ModelProto:
    """``output = x @ weight``."""
    return graph(
        [node("MatMul", "x weight", output)],
        inputs={"x": (batch, weight.shape[0])},
        outputs={output: (batch, weight.shape[1])},
        weights={"weight": weight.astype(np.float32)},
    )


def dynamic_linear(weight: Array, *, output: str = "logits") -> onnx.ModelProto:
    """``output = round8(x) @ weight``: the 8 bit scale is that of the largest value in the whole batch."""
    return graph(
        [
            node("DynamicQuantizeLinear", "x", "x8 scale zero"),
            node("DequantizeLinear", "x8 scale zero", "rounded"),
            node("MatMul", "rounded weight", output),
        ],
        inputs={"x": ("batch", weight.shape[0])},
        outputs={output: ("batch", weight.shape[1])},
        weights={"weight": weight.astype(np.float32)},
    )


def logarithm(*, output: str = "logits", width: int = 4) -> onnx.ModelProto:
    """``output = log(x)``: NaN where x is below 0."""
    return graph([node("Log", "x", output)], inputs={"x": ("batch", width)}, outputs={output: ("batch", width)})


def token_vectors(table: Array, *, outputs: Sequence[str] = ("tokens",)) -> onnx.ModelProto:
    """``tokens = table[input_ids]`` ``(batch, sequence, width)``; ``embedding`` = their mean where the mask is 1."""
    nodes = [
        node("Gather", "table input_ids", "tokens"),
        node("Cast", "attention_mask", "mask", to=TensorProto.FLOAT),
        node("Unsqueeze", "mask last", "mask3"),
        node("Mul", "tokens mask3", "kept"),
        node("ReduceSum", "kept middle", "total", keepdims=0),
        node("ReduceSum", "mask middle", "count", keepdims=1),
        node("Div", "total count", "embedding"),
    ]
    shapes: dict[str, Shape] = {
        "tokens": ("batch", "sequence", table.shape[1]),
        "embedding": ("batch", table.shape[1]),
    }
    return graph(
        nodes if "embedding" in outputs else nodes[:1],
        inputs=dict.fromkeys(("input_ids", "attention_mask"), ("batch", "sequence")),
        outputs={name: shapes[name] for name in outputs},
        weights={"table": table.astype(np.float32), "last": np.array([2]), "middle": np.array([1])},
        input_type=TensorProto.INT64,
    )
