from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from unit.compression.pruning.networks import Network

from serveprune.compression.pruning.observation import observe_sizes, sized_feeds
from serveprune.errors import InvalidArgument
from serveprune.graph.probe import ProbeInput
from serveprune.oip.datatype import Datatype

TOKENS = ProbeInput("tokens", Datatype.INT64, ("batch", "sequence"))
IMAGE = ProbeInput("image", Datatype.FP32, ("batch", 3, "height", "width"))


def test_no_dynamic_size_is_the_same_in_both_feeds() -> None:
    for first, second in sized_feeds([TOKENS, IMAGE]):
        for name in first:
            dynamic = [axis for axis in range(first[name].ndim) if (name, axis) != ("image", 1)]
            assert all(first[name].shape[axis] != second[name].shape[axis] for axis in dynamic)


def test_values_come_from_the_sample_when_there_is_one() -> None:
    sample = {"tokens": np.array([101, 7, 8, 102])}
    first, second = next(iter(sized_feeds([TOKENS], sample=sample)))
    assert first["tokens"].tolist() == [[101, 7], [101, 7]]
    assert second["tokens"].tolist() == [[101, 7, 8, 102]] * 3


def test_static_and_dynamic_axes_are_told_apart(tmp_path: Path) -> None:
    n = Network()
    x = n.node("Relu", n.input("N", 3, "H", "W"))
    model = ir.load(n.save(tmp_path / "network.onnx", n.node("Flatten", x, axis=2)))
    observation = observe_sizes(model, workspace=tmp_path)
    assert observation.shape("relu_1") == (None, 3, None, None)
    assert observation.shape("flatten_2") == (None, None)
    assert observation.shape("nonsense") is None


def test_larger_sizes_are_tried_when_small_ones_do_not_suit(tmp_path: Path) -> None:
    n = Network()
    x = n.node("Conv", n.input("N", 3, "H", "W"), n.weight(2, 3, 20, 20))
    model = ir.load(n.save(tmp_path / "network.onnx", x))
    observation = observe_sizes(model, workspace=tmp_path)
    assert observation.first["x"] == (2, 3, 32, 64)
    assert observation.second["x"] == (3, 3, 64, 128)


def test_graph_that_takes_no_size_is_refused_with_its_complaint(tmp_path: Path) -> None:
    n = Network()
    model = ir.load(n.save(tmp_path / "network.onnx", n.node("Reshape", n.input("N", "S"), n.integers(7, 11, 13))))
    with pytest.raises(InvalidArgument, match=r"none of the input sizes tried .* give calibration samples"):
        observe_sizes(model, workspace=tmp_path)
