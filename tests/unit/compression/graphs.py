"""Small ONNX graphs and samples for the tests of the compressing half."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serveprune.evaluation.dataset import Dataset
from serveprune.oip.tensor import Array

IMAGE_SHAPE = (3, 16, 16)


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, Array],
    *,
    inputs: dict[str, tuple[int, Sequence[int | str]]],
    outputs: dict[str, Sequence[int | str]],
    opset: int = 17,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def convolutional_graph(path: Path, *, channels: int = 32, opset: int = 17) -> Path:
    """Conv without bias, BatchNormalization, Relu, residual Conv, pooling, Gemm; dynamic batch."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)

    weights: dict[str, Array] = {
        "stem.weight": normal(channels, IMAGE_SHAPE[0], 3, 3),
        "block.weight": normal(channels, channels, 3, 3),
        "block.bias": normal(channels, 1)[:, 0],
        "head.weight": normal(10, channels),
        "head.bias": normal(10, 1)[:, 0],
    }
    for layer in ("stem", "block"):
        weights[f"{layer}.scale"] = rng.uniform(0.5, 2, channels).astype(np.float32)
        weights[f"{layer}.shift"] = rng.normal(0, 0.5, channels).astype(np.float32)
        weights[f"{layer}.mean"] = rng.normal(0, 0.2, channels).astype(np.float32)
        weights[f"{layer}.variance"] = rng.uniform(0.5, 2, channels).astype(np.float32)

    def normalized(layer: str, source: str) -> onnx.NodeProto:
        statistics = [f"{layer}.{name}" for name in ("scale", "shift", "mean", "variance")]
        return helper.make_node("BatchNormalization", [source, *statistics], [f"{layer}.norm"], name=f"{layer}/norm")

    nodes = [
        helper.make_node("Conv", ["image", "stem.weight"], ["stem.out"], name="stem/conv", pads=[1] * 4),
        normalized("stem", "stem.out"),
        helper.make_node("Relu", ["stem.norm"], ["stem.relu"], name="stem/relu"),
        helper.make_node(
            "Conv", ["stem.relu", "block.weight", "block.bias"], ["block.out"], name="block/conv", pads=[1] * 4
        ),
        normalized("block", "block.out"),
        helper.make_node("Add", ["block.norm", "stem.relu"], ["block.sum"], name="block/add"),
        helper.make_node("Relu", ["block.sum"], ["block.relu"], name="block/relu"),
        helper.make_node("GlobalAveragePool", ["block.relu"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head.weight", "head.bias"], ["logits"], name="head", transB=1),
    ]
    return save(
        path,
        nodes,
        weights,
        inputs={"image": (TensorProto.FLOAT, ["batch", *IMAGE_SHAPE])},
        outputs={"logits": ["batch", 10]},
        opset=opset,
    )


def embedding_graph(path: Path, *, width: int = 64, vocabulary: int = 2000) -> Path:
    """Embedding lookup, two matrix products with a Gelu-like middle, mean over tokens; dynamic batch and tokens."""
    rng = np.random.default_rng(1)
    weights: dict[str, Array] = {
        "table": rng.normal(0, 1, (vocabulary, width)).astype(np.float32),
        "up.weight": rng.normal(0, width**-0.5, (width, 4 * width)).astype(np.float32),
        "up.bias": rng.normal(0, 0.1, 4 * width).astype(np.float32),
        "down.weight": rng.normal(0, (4 * width) ** -0.5, (4 * width, width)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"], name="lookup"),
        helper.make_node("MatMul", ["tokens", "up.weight"], ["up"], name="mlp/up"),
        helper.make_node("Add", ["up", "up.bias"], ["up.biased"], name="mlp/add"),
        helper.make_node("Tanh", ["up.biased"], ["up.active"], name="mlp/tanh"),
        helper.make_node("MatMul", ["up.active", "down.weight"], ["down"], name="mlp/down"),
        helper.make_node("ReduceMean", ["down"], ["embedding"], name="mean", axes=[1], keepdims=0),
    ]
    return save(
        path,
        nodes,
        weights,
        inputs={"input_ids": (TensorProto.INT64, ["batch", "sequence"])},
        outputs={"embedding": ["batch", width]},
    )


def recurrent_graph(path: Path, *, features: int = 32, hidden: int = 64) -> Path:
    """One LSTM over ``(steps, batch, features)``."""
    rng = np.random.default_rng(2)
    weights: dict[str, Array] = {
        "W": rng.normal(0, features**-0.5, (1, 4 * hidden, features)).astype(np.float32),
        "R": rng.normal(0, hidden**-0.5, (1, 4 * hidden, hidden)).astype(np.float32),
    }
    nodes = [
        helper.make_node("LSTM", ["sequence", "W", "R"], ["states", "last", ""], name="lstm", hidden_size=hidden),
    ]
    return save(
        path,
        nodes,
        weights,
        inputs={"sequence": (TensorProto.FLOAT, ["steps", "batch", features])},
        outputs={"states": ["steps", 1, "batch", hidden]},
    )


def elementwise_graph(path: Path) -> Path:
    """A graph without any weight to quantize."""
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="relu")]
    shape: list[int | str] = ["batch", 4]
    return save(path, nodes, {}, inputs={"x": (TensorProto.FLOAT, shape)}, outputs={"y": shape})


def images(count: int, *, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(count, *IMAGE_SHAPE)).astype(np.float32)


def image_dataset(count: int, *, seed: int = 0) -> Dataset:
    return Dataset(tuple({"image": image} for image in images(count, seed=seed)))
