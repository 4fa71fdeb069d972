"""A small text encoder, and sentences for it."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from unit.compression.pruning.networks import Network

from serveprune.evaluation.dataset import Dataset

WORDS, WIDTH, HIDDEN = 40, 16, 32


def text_encoder(path: Path, *, seed: int = 0) -> Path:
    """Token ids and mask ``(batch, length)`` to one vector: table, two residual blocks with norms, masked mean."""
    n = Network(seed=seed)
    ids, mask = n.input("batch", "length", name="ids", integers=True), n.input("batch", "length", name="mask")
    x = n.node("Gather", n.weight(WORDS, WIDTH, name="table"), ids)
    for block in ("first", "second"):
        inner = n.node("Relu", n.linear(x, WIDTH, HIDDEN, name=f"{block}.up"))
        total = n.node("Add", x, n.linear(inner, HIDDEN, WIDTH, name=f"{block}.down"))
        scale = n.constant(np.ones(WIDTH, np.float32), name=f"{block}.norm")
        x = n.node("LayerNormalization", total, scale, n.weight(WIDTH, name=f"{block}.shift"), axis=-1)
    column = n.node("Unsqueeze", mask, n.integers(2))
    summed = n.node("ReduceSum", n.node("Mul", x, column), n.integers(1), keepdims=0)
    count = n.node("ReduceSum", mask, n.integers(1), keepdims=1)
    n.save(path, n.node("Div", summed, count))
    model = onnx.load(path)
    output = model.graph.output[0]
    output.CopyFrom(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, ["batch", WIDTH]))
    onnx.save(model, path)
    return path


def sentences(count: int, *, seed: int = 0, longest: int = 9) -> Dataset:
    """Texts of 2 to ``longest`` words; padding repeats word 0 with mask 0."""
    generator = np.random.default_rng(seed)
    samples = tuple(
        {"ids": generator.integers(1, WORDS, length), "mask": np.ones(length, np.float32)}
        for length in generator.integers(2, longest + 1, count)
    )
    return Dataset(samples, padding={"ids": 0, "mask": 0})
