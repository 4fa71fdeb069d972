from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from unit.compression.contexts import image_set
from unit.compression.distillation.text_networks import sentences, text_encoder
from unit.compression.graphs import convolutional_graph, images

from serveprune.compression.distillation.rounding import StaticRounding
from serveprune.compression.learning.batches import tensors
from serveprune.compression.pruning.preparation import prepare
from serveprune.evaluation.dataset import Dataset
from serveprune.graph.executor.graph_module import GraphModule
from serveprune.oip.tensor import Array

WITH_VNNI, WITHOUT = "x86_64 avx2 avx512f avx512_vnni", "x86_64 avx2"


def rounding_of(graph: Path, samples: Dataset, *, cpu: str, workspace: Path) -> StaticRounding:
    prepared = workspace / "prepared.onnx"
    prepare(graph, output=prepared)
    return StaticRounding(
        prepared, samples=samples, cpu=cpu, workspace=workspace, threads=1, progress=lambda fraction: None
    )


def as_written(path: Path, feeds: dict[str, Array]) -> Array:
    """What the quantized file says, operator by operator, without kernels that round in their own way."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    answer: Array = session.run(None, feeds)[0]
    return answer


@pytest.mark.parametrize("cpu", [WITH_VNNI, WITHOUT])
@pytest.mark.parametrize("text", [False, True])
def test_student_rounds_what_the_quantized_graph_rounds(tmp_path: Path, cpu: str, text: bool) -> None:
    graph = text_encoder(tmp_path / "net.onnx") if text else convolutional_graph(tmp_path / "net.onnx")
    samples = sentences(40) if text else image_set(images(40))
    rounding = rounding_of(graph, samples, cpu=cpu, workspace=tmp_path)
    feeds = samples.collate([0, 1, 2, 3])
    module = GraphModule(rounding.model, name="net").eval()
    with torch.no_grad():
        (exact,) = module(tensors(feeds)).values()
        (rounded,) = module(tensors(feeds), roundings=rounding.functions).values()
    written = as_written(tmp_path / "rounded.onnx", feeds)
    apart, moved = (float(np.square(made.numpy() - written).mean()) for made in (rounded, exact))
    # A value on the edge between two levels may fall to either side; rounding itself is much more than that.
    assert apart < 0.1 * moved


@pytest.mark.parametrize("cpu", [WITH_VNNI, WITHOUT])
@pytest.mark.parametrize("text", [False, True])
def test_weights_are_rounded_to_those_in_the_quantized_graph(tmp_path: Path, cpu: str, text: bool) -> None:
    graph = text_encoder(tmp_path / "net.onnx") if text else convolutional_graph(tmp_path / "net.onnx")
    rounding = rounding_of(graph, sentences(40) if text else image_set(images(40)), cpu=cpu, workspace=tmp_path)
    weights = GraphModule(rounding.model, name="net").weights
    stored = onnx.load(tmp_path / "rounded.onnx")
    arrays = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in stored.graph.initializer}
    rounded = rounding.functions.keys() & weights.keys()
    assert len(rounded) >= 3
    for name in rounded:
        integers, scale, zero = (arrays[f"{name}_{part}"] for part in ("quantized", "scale", "zero_point"))
        axes = [node.attribute[0].i for node in stored.graph.node if f"{name}_quantized" in node.input and scale.ndim]
        shape = [-1 if axis in axes else 1 for axis in range(integers.ndim)] if scale.ndim else ()
        written = (integers - zero.reshape(shape)) * scale.reshape(shape)
        made = rounding.functions[name](weights[name]).detach().numpy()
        np.testing.assert_allclose(made, written, atol=1e-6 * np.abs(written).max())


def test_gradients_pass_the_rounding_within_the_range_and_stop_beyond_it(tmp_path: Path) -> None:
    samples = image_set(images(40))
    rounding = rounding_of(convolutional_graph(tmp_path / "net.onnx"), samples, cpu=WITH_VNNI, workspace=tmp_path)
    image = torch.tensor([0.1, -0.3, 1000.0], requires_grad=True)
    rounded = rounding.functions["image"](image)
    torch.autograd.backward(rounded.sum())
    assert image.grad is not None
    assert image.grad.tolist() == [1.0, 1.0, 0.0]
    assert float(rounded[2].detach()) < 10
