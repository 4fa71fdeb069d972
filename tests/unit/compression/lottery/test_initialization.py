from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file
from unit.compression.graphs import convolutional_graph, recurrent_graph, save
from unit.compression.lottery.classifiers import FEATURES, HIDDEN, classifier_graph, initializers

from serveprune.compression.lottery.initialization import redraw, take_weights
from serveprune.errors import InvalidArgument
from serveprune.oip.tensor import Array


def drawn(path: Path, *, seed: int = 0) -> dict[str, Array]:
    model = ir.load(path)
    redraw(model, seed=seed)
    return {
        name: np.array(value.const_value.numpy())
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }


def fills(array: Array, bound: float) -> bool:
    """Whether values are spread over (-bound, bound), as a uniform draw of hundreds is."""
    spread = np.std(array) / (bound / np.sqrt(3))
    return bool(np.abs(array).max() <= bound and 0.8 < spread < 1.2)


def test_redraw_draws_linear_layers_and_their_biases_as_torch_does(tmp_path: Path) -> None:
    path = classifier_graph(tmp_path / "net.onnx")
    found = drawn(path)
    assert fills(found["in.weight"], FEATURES**-0.5)  # Gemm, transB
    assert fills(found["mid.weight"], HIDDEN**-0.5)  # MatMul
    assert np.abs(found["in.bias"]).max() <= FEATURES**-0.5
    assert np.abs(found["mid.bias"]).max() <= HIDDEN**-0.5  # an Add behind the MatMul
    linear = torch.nn.Linear(FEATURES, HIDDEN)
    assert abs(found["in.weight"].std() / linear.weight.detach().numpy().std() - 1) < 0.2


def test_redraw_begins_normalization_with_one_and_zero(tmp_path: Path) -> None:
    found = drawn(classifier_graph(tmp_path / "net.onnx"))
    for name, number in (("scale", 1), ("shift", 0), ("mean", 0), ("variance", 1)):
        assert np.all(found[f"norm.{name}"] == number)


def test_redraw_counts_the_inputs_of_a_filter_with_its_space(tmp_path: Path) -> None:
    found = drawn(convolutional_graph(tmp_path / "net.onnx"))
    assert fills(found["block.weight"], (32 * 9) ** -0.5)
    assert np.abs(found["block.bias"]).max() <= (32 * 9) ** -0.5


def test_redraw_draws_recurrent_weights_by_their_hidden_size(tmp_path: Path) -> None:
    found = drawn(recurrent_graph(tmp_path / "net.onnx"))
    assert fills(found["W"], 64**-0.5)
    assert fills(found["R"], 64**-0.5)


def test_redraw_gives_the_same_for_the_same_seed_and_else_something_else(tmp_path: Path) -> None:
    path = classifier_graph(tmp_path / "net.onnx")
    first, again, other = drawn(path), drawn(path), drawn(path, seed=1)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["mid.weight"], other["mid.weight"])
    assert not np.array_equal(first["mid.weight"], initializers(path)["mid.weight"])


def test_redraw_names_what_no_known_layer_reads_and_leaves_it(tmp_path: Path) -> None:
    shape: list[int | str] = ["batch", 4]
    nodes = [helper.make_node("Mul", ["x", "scale"], ["y"], name="scaled")]
    weights = {"scale": np.arange(4, dtype=np.float32)}
    path = save(tmp_path / "net.onnx", nodes, weights, inputs={"x": (TensorProto.FLOAT, shape)}, outputs={"y": shape})
    model = ir.load(path)
    assert redraw(model, seed=0) == ("scale",)
    value = model.graph.initializers["scale"].const_value
    assert value is not None
    assert value.numpy().tolist() == [0, 1, 2, 3]


def test_take_weights_sets_them_bit_for_bit(tmp_path: Path) -> None:
    path = classifier_graph(tmp_path / "net.onnx")
    wanted = drawn(path, seed=5)
    save_file({name: torch.from_numpy(array) for name, array in wanted.items()}, tmp_path / "w.safetensors")
    model = ir.load(path)
    take_weights(model, tmp_path / "w.safetensors")
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        assert np.array_equal(value.const_value.numpy(), wanted[name])


def test_take_weights_names_every_weight_that_is_missing_or_does_not_fit(tmp_path: Path) -> None:
    path = classifier_graph(tmp_path / "net.onnx")
    weights = {name: torch.from_numpy(array) for name, array in drawn(path).items()}
    del weights["mid.weight"]
    weights["out.bias"] = torch.zeros(7)
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(
        InvalidArgument, match=r"mid\.weight is missing.*out\.bias: expected the shape \(4,\), got \(7,\)"
    ):
        take_weights(ir.load(path), tmp_path / "w.safetensors")


def test_take_weights_says_so_when_the_file_is_something_else(tmp_path: Path) -> None:
    path = classifier_graph(tmp_path / "net.onnx")
    with pytest.raises(InvalidArgument, match=r"expected a safetensors file, got net\.onnx"):
        take_weights(ir.load(path), path)
