from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from unit.compression.graphs import (
    convolutional_graph,
    elementwise_graph,
    embedding_graph,
    image_dataset,
    recurrent_graph,
)
from unit.compression.pruning.networks import Network

from serveprune.artifacts.environment import environment
from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.compression.passes import PassContext, apply_pass
from serveprune.config.profile import PassConfig, QuantizeOptions
from serveprune.errors import InvalidArgument
from serveprune.evaluation.dataset import Dataset
from serveprune.oip.tensor import Array

Sparsify = Callable[..., dict[str, Any]]


@pytest.fixture
def sparsify(tmp_path: Path) -> Sparsify:
    """Return what runs the pass on a graph and gives its findings; the result is `sparse.onnx`."""

    def run(graph: Path, *, calibration: Dataset | None = None, **options: Any) -> dict[str, Any]:
        wish = {} if "pattern" in options else {"target": {"sparsity": options.pop("sparsity", 0.5)}}
        prune = PassConfig.model_validate({"prune": {"structure": "weights", **wish, **options}}).prune
        assert prune is not None
        workspace = tmp_path / "workspace"
        workspace.mkdir(exist_ok=True)
        context = PassContext(
            options=prune,
            calibration=calibration,
            cpu=environment()["cpu"],
            threads=1,
            seed=0,
            workspace=workspace,
            progress=lambda fraction: None,
        )
        return dict(apply_pass("prune", graph, output=tmp_path / "sparse.onnx", context=context).findings)

    return run


def weights(graph: Path) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(graph).graph.initializer}


def zeros(array: Array) -> float:
    return float((array == 0).mean())


def dead_network(path: Path) -> Path:
    """A hidden layer of 16 of which four neurons have next to no weights, and no bias at all."""
    n = Network()
    first = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    first[:, 3:7] *= 1e-4
    hidden = n.node("Relu", n.node("MatMul", n.input("batch", 8), n.constant(first, name="first")))
    return n.save(path, n.linear(hidden, 16, 4, name="second"))


@pytest.mark.parametrize("importance", ["magnitude", "wanda", "reconstruction", "taylor", "fisher", "random"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_zeros_are_as_many_as_asked_and_the_report_counts_them(
    sparsify: Sparsify, tmp_path: Path, importance: str, scope: str
) -> None:
    graph = convolutional_graph(tmp_path / "net.onnx")
    found = sparsify(graph, calibration=image_dataset(48), sparsity=0.7, importance=importance, scope=scope)
    assert found["sparsity_before_removal"] == pytest.approx(0.7, abs=0.001)
    left = weights(tmp_path / "sparse.onnx")
    for layer in found["layers"]:
        assert layer["sparsity"] == pytest.approx(zeros(left[layer["weight"]]))
        if scope == "layer" and not found["removed_units"]:
            assert layer["sparsity"] == pytest.approx(0.7, abs=0.01)
    assert [layer["weight"] for layer in found["layers"]] == ["stem.weight", "block.weight", "head.weight"]
    assert "ONNX Runtime on CPU multiplies by a zero" in found["runtime"]
    biases = {name: array for name, array in left.items() if array.ndim == 1}
    assert all(array.all() for array in biases.values())


@pytest.mark.parametrize("importance", ["magnitude", "wanda", "reconstruction"])
def test_pattern_holds_along_neighbouring_input_channels(sparsify: Sparsify, tmp_path: Path, importance: str) -> None:
    graph = convolutional_graph(tmp_path / "net.onnx")
    found = sparsify(graph, calibration=image_dataset(48), pattern="2:4", importance=importance)
    left = weights(tmp_path / "sparse.onnx")
    block = left["block.weight"].reshape(32, 8, 4, 9)
    assert ((block != 0).sum(axis=2) <= 2).all()
    assert ((left["head.weight"].reshape(10, 8, 4) != 0).sum(axis=2) <= 2).all()
    assert left["stem.weight"].all()
    assert found["left_whole"] == {"stem.weight": "its 3 inputs do not divide by 4"}
    assert "stem.weight: its 3 inputs do not divide by 4" in found["warnings"][0]
    assert "GPUs with sparse tensor cores compute 2:4 faster, with a runtime that uses them" in found["runtime"]


def test_rounds_end_at_the_target_and_never_bring_a_weight_back(sparsify: Sparsify, tmp_path: Path) -> None:
    graph = convolutional_graph(tmp_path / "net.onnx")
    found = sparsify(graph, sparsity=0.8, importance="magnitude", schedule={"rounds": 3})
    assert found["sparsity_before_removal"] == pytest.approx(0.8, abs=0.001)
    once = sparsify(graph, sparsity=0.8, importance="magnitude")
    # Magnitudes do not change from round to round.
    assert found["layers"] == once["layers"]


def test_zeros_of_an_earlier_pass_stay_and_count(sparsify: Sparsify, tmp_path: Path) -> None:
    graph = convolutional_graph(tmp_path / "net.onnx")
    sparsify(graph, sparsity=0.5, importance="magnitude")
    half = (tmp_path / "sparse.onnx").rename(tmp_path / "half.onnx")
    sparsify(half, sparsity=0.75, importance="reconstruction", calibration=image_dataset(48), scope="layer")
    before, after = weights(half), weights(tmp_path / "sparse.onnx")
    assert zeros(after["block.weight"]) == pytest.approx(0.75, abs=0.01)
    assert (after["block.weight"][before["block.weight"] == 0] == 0).all()
    with pytest.raises(
        InvalidArgument, match=r"asked for a sparsity of 0\.3, but 0\.5 of these weights are zero already"
    ):
        sparsify(half, sparsity=0.3, importance="magnitude")


def test_tables_and_recurrent_layers_are_judged_by_magnitude_and_named(sparsify: Sparsify, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tokens = Dataset(tuple({"input_ids": rng.integers(0, 2000, 12)} for _ in range(24)))
    found = sparsify(embedding_graph(tmp_path / "text.onnx"), calibration=tokens, sparsity=0.6)
    assert found["by_magnitude"] == ["table"]
    table = weights(tmp_path / "sparse.onnx")["table"]
    assert ((table == 0).sum(axis=1) >= 38).all()  # 60 % of 64, in every row
    states = Dataset(tuple({"sequence": rng.normal(size=(2, 32)).astype(np.float32)} for _ in range(8)))
    found = sparsify(recurrent_graph(tmp_path / "states.onnx"), calibration=states, sparsity=0.6)
    assert found["by_magnitude"] == ["W", "R"]


def test_neurons_that_became_zero_are_removed_and_the_answers_stay(sparsify: Sparsify, tmp_path: Path) -> None:
    graph = dead_network(tmp_path / "net.onnx")
    found = sparsify(graph, importance="magnitude", sparsity=0.4, scope="global")
    assert found["removed_units"] == {"first": 4}
    assert weights(tmp_path / "sparse.onnx")["first"].shape == (8, 12)
    assert "4 units that had become zero in whole were removed, which does make it faster" in found["runtime"]


def test_a_pattern_keeps_every_neuron_so_that_its_groups_hold(sparsify: Sparsify, tmp_path: Path) -> None:
    found = sparsify(dead_network(tmp_path / "net.onnx"), importance="magnitude", pattern="1:8")
    assert found["removed_units"] == {}
    assert weights(tmp_path / "sparse.onnx")["first"].shape == (8, 16)


def test_integers_keep_zeros_exactly_zero(sparsify: Sparsify, tmp_path: Path) -> None:
    graph = convolutional_graph(tmp_path / "net.onnx")
    samples = image_dataset(48)
    sparsify(graph, sparsity=0.8, importance="magnitude", ignore=("head*",))
    (tmp_path / "quantizing").mkdir()
    context = PassContext(
        options=QuantizeOptions(),
        calibration=samples,
        cpu=environment()["cpu"],
        threads=1,
        seed=0,
        workspace=tmp_path / "quantizing",
        progress=lambda fraction: None,
    )
    apply_pass("quantize", tmp_path / "sparse.onnx", output=tmp_path / "int8.onnx", context=context)
    float_weights, integers = weights(tmp_path / "sparse.onnx"), weights(tmp_path / "int8.onnx")
    filters = {array.shape: array for array in integers.values() if array.dtype == np.int8 and array.ndim == 4}
    for name in ("stem.weight", "block.weight"):
        array = float_weights[name]
        assert (filters[array.shape][array == 0] == 0).all()
    points = [array for name, array in integers.items() if "weight" in name and name.endswith("zero_point")]
    assert points
    assert all(not array.any() for array in points)


def test_structured_pruning_can_come_first(sparsify: Sparsify, tmp_path: Path) -> None:
    graph, samples = convolutional_graph(tmp_path / "net.onnx"), image_dataset(48)
    prune = PassConfig.model_validate({"prune": {"target": {"ratio": 0.5}}}).prune
    assert prune is not None
    (tmp_path / "pruning").mkdir()
    context = PassContext(
        options=prune,
        calibration=samples,
        cpu=environment()["cpu"],
        threads=1,
        seed=0,
        workspace=tmp_path / "pruning",
        progress=lambda fraction: None,
    )
    apply_pass("prune", graph, output=tmp_path / "narrow.onnx", context=context)
    found = sparsify(tmp_path / "narrow.onnx", calibration=samples, sparsity=0.6)
    assert found["sparsity_before_removal"] == pytest.approx(0.6, abs=0.001)
    session = OnnxRuntimeBackend().load(tmp_path / "sparse.onnx")
    assert session.run({"image": np.zeros((2, 3, 16, 16), np.float32)})[0].shape == (2, 10)


def test_made_up_inputs_are_learned_from_when_told_to(sparsify: Sparsify, tmp_path: Path) -> None:
    graph = convolutional_graph(tmp_path / "net.onnx")
    with pytest.raises(InvalidArgument, match="expected unlabelled samples to learn from, got none"):
        sparsify(graph, importance="wanda")
    found = sparsify(graph, importance="wanda", synthetic_samples=16)
    assert found["learned_from"] == "synthetic inputs"
    assert "made-up inputs" in found["warnings"][0]


def test_a_pattern_that_fits_no_layer_is_refused(sparsify: Sparsify, tmp_path: Path) -> None:
    told = r"pattern 3:7 fits no weight of this graph: stem.weight: its 3 inputs do not divide by 7; block.weight"
    with pytest.raises(InvalidArgument, match=told):
        sparsify(convolutional_graph(tmp_path / "net.onnx"), pattern="3:7", importance="magnitude")


def test_a_graph_with_nothing_to_prune_is_refused(sparsify: Sparsify, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="the graph has no matrices of floats"):
        sparsify(elementwise_graph(tmp_path / "net.onnx"), importance="magnitude")


def test_integers_of_tables_and_matrices_keep_zeros_exactly_zero(sparsify: Sparsify, tmp_path: Path) -> None:
    sparsify(embedding_graph(tmp_path / "text.onnx"), sparsity=0.7, importance="magnitude")
    (tmp_path / "quantizing").mkdir()
    context = PassContext(
        options=QuantizeOptions(scheme="dynamic"),
        calibration=None,
        cpu=environment()["cpu"],
        threads=1,
        seed=0,
        workspace=tmp_path / "quantizing",
        progress=lambda fraction: None,
    )
    apply_pass("quantize", tmp_path / "sparse.onnx", output=tmp_path / "int8.onnx", context=context)
    float_weights, integers = weights(tmp_path / "sparse.onnx"), weights(tmp_path / "int8.onnx")
    for name in ("table", "up.weight", "down.weight"):
        # A table's zero point may be any byte; what is stored for a zero is that very byte.
        back = integers[f"{name}_quantized"].astype(int) - integers[f"{name}_zero_point"].astype(int)
        assert (back[float_weights[name] == 0] == 0).all()
        assert zeros(back) >= 0.7
