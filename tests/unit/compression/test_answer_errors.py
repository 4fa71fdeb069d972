from pathlib import Path

import numpy as np
import onnx
import pytest
from unit.compression.graphs import convolutional_graph, image_dataset

from serveprune.compression.answer_errors import AnswerErrors


def shifted(graph: Path, *, by: float) -> Path:
    """The same graph with every answer moved by a constant."""
    model = onnx.load(graph)
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == "head.bias"]
    array = onnx.numpy_helper.to_array(bias)
    bias.CopyFrom(onnx.numpy_helper.from_array((array + by).astype(np.float32), bias.name))
    path = graph.with_name("shifted.onnx")
    onnx.save(model, path)
    return path


def test_error_is_none_for_the_graph_itself_and_grows_with_the_square_of_the_change(tmp_path: Path) -> None:
    graph = convolutional_graph(tmp_path / "net.onnx")
    # Two batches, the second of one row: the mean is that of all samples.
    errors = AnswerErrors(graph, samples=image_dataset(17, seed=3), threads=1)
    assert errors.of(graph) == 0.0
    once, twice = (errors.of(shifted(graph, by=by)) for by in (0.1, 0.2))
    assert once > 0
    assert twice == pytest.approx(4 * once, rel=1e-3)


def test_error_does_not_depend_on_how_samples_are_batched(tmp_path: Path) -> None:
    graph, samples = convolutional_graph(tmp_path / "net.onnx"), image_dataset(17, seed=3)
    few = AnswerErrors(graph, samples=samples.head(16), threads=1).of(shifted(graph, by=0.1))
    answers = AnswerErrors(graph, samples=samples.select([*range(16), 0]), threads=1).of(shifted(graph, by=0.1))
    assert answers == pytest.approx(few, rel=0.2)
