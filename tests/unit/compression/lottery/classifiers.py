"""A small classifier and labelled samples that it can learn."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from unit.compression.graphs import save

from serveprune.evaluation.dataset import Dataset
from serveprune.oip.tensor import Array

FEATURES, HIDDEN, CLASSES = 8, 24, 4


def classifier_graph(path: Path, *, softmax: bool = False) -> Path:
    """Three matrix products with BatchNormalization after the first; dynamic batch."""
    rng = np.random.default_rng(3)

    def normal(*shape: int) -> Array:
        return rng.normal(0, 1 / np.sqrt(shape[-1]), shape).astype(np.float32)

    weights: dict[str, Array] = {
        "in.weight": normal(HIDDEN, FEATURES),
        "in.bias": normal(1, HIDDEN)[0],
        "norm.scale": rng.uniform(0.5, 2, HIDDEN).astype(np.float32),
        "norm.shift": normal(1, HIDDEN)[0],
        "norm.mean": normal(1, HIDDEN)[0],
        "norm.variance": rng.uniform(0.5, 2, HIDDEN).astype(np.float32),
        "mid.weight": normal(HIDDEN, HIDDEN),
        "mid.bias": normal(1, HIDDEN)[0],
        "out.weight": normal(CLASSES, HIDDEN),
        "out.bias": normal(1, CLASSES)[0],
    }
    norm = ["in.out", *(f"norm.{name}" for name in ("scale", "shift", "mean", "variance"))]
    nodes = [
        helper.make_node("Gemm", ["x", "in.weight", "in.bias"], ["in.out"], name="in", transB=1),
        helper.make_node("BatchNormalization", norm, ["norm.out"], name="norm"),
        helper.make_node("Relu", ["norm.out"], ["in.active"], name="relu"),
        helper.make_node("MatMul", ["in.active", "mid.weight"], ["mid.product"], name="mid"),
        helper.make_node("Add", ["mid.product", "mid.bias"], ["mid.out"], name="mid/add"),
        helper.make_node("Relu", ["mid.out"], ["mid.active"], name="mid/relu"),
        helper.make_node("Gemm", ["mid.active", "out.weight", "out.bias"], ["scores"], name="out", transB=1),
    ]
    last = "scores"
    if softmax:
        nodes.append(helper.make_node("Softmax", ["scores"], ["probabilities"], name="softmax"))
        last = "probabilities"
    shape: list[int | str] = ["batch", CLASSES]
    inputs: dict[str, tuple[int, list[int | str]]] = {"x": (TensorProto.FLOAT, ["batch", FEATURES])}
    return save(path, nodes, weights, inputs=inputs, outputs={last: shape})  # type: ignore[arg-type]


def labelled_arrays(count: int = 240, *, seed: int = 0) -> tuple[Array, Array]:
    """Points around one centre per class, ``(count, 8)`` float32, and their classes."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(0, 2, (CLASSES, FEATURES))
    labels = rng.integers(0, CLASSES, count)
    points = centres[labels] + rng.normal(0, 1, (count, FEATURES))
    return points.astype(np.float32), labels.astype(np.int64)


def labelled_dataset(count: int = 240, *, seed: int = 0) -> Dataset:
    points, labels = labelled_arrays(count, seed=seed)
    return Dataset(tuple({"x": point} for point in points), labels=labels)


def initializers(path: Path) -> dict[str, Array]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
