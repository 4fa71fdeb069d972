from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from unit.compression.graphs import convolutional_graph, images, save

from serveprune.compression.quantization.preparation import prepare_for_quantization
from serveprune.oip.tensor import Array


def run(path: Path, **feeds: Array) -> Array:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    result: Array = session.run(None, feeds)[0]
    return result


def test_preparation_folds_batch_normalization_into_convolutions_with_and_without_bias(tmp_path: Path) -> None:
    graph = convolutional_graph(tmp_path / "model.onnx")
    prepared = prepare_for_quantization(graph, output=tmp_path / "prepared.onnx", threads=1)
    operators = Counter(node.op_type for node in prepared.graph.node)
    assert operators["Conv"] == 2
    assert "BatchNormalization" not in operators
    sample = images(5, seed=4)
    np.testing.assert_allclose(
        run(tmp_path / "prepared.onnx", image=sample), run(graph, image=sample), rtol=1e-4, atol=1e-5
    )


def test_preparation_stays_equivalent_when_batch_normalization_follows_a_transposed_convolution(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {"w": rng.normal(size=(4, 6, 2, 2)).astype(np.float32)}
    for name in ("scale", "shift", "mean", "variance"):
        weights[name] = rng.uniform(0.5, 1.5, 6).astype(np.float32)
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w"], ["up"], name="up", strides=[2, 2]),
        helper.make_node("BatchNormalization", ["up", "scale", "shift", "mean", "variance"], ["y"], name="norm"),
    ]
    graph = save(
        tmp_path / "model.onnx",
        nodes,
        weights,
        inputs={"x": (TensorProto.FLOAT, ["batch", 4, "height", "width"])},
        outputs={"y": ["batch", 6, "up_height", "up_width"]},
    )
    prepare_for_quantization(graph, output=tmp_path / "prepared.onnx", threads=1)
    x = rng.normal(size=(2, 4, 3, 5)).astype(np.float32)
    np.testing.assert_allclose(run(tmp_path / "prepared.onnx", x=x), run(graph, x=x), rtol=1e-4, atol=1e-5)


def test_preparation_makes_weights_of_constants_and_names_every_node(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((4, 3), dtype=np.float32))
    nodes = [
        helper.make_node("Constant", [], ["w"], value=weight),
        helper.make_node("Identity", ["w"], ["same"]),
        helper.make_node("MatMul", ["x", "same"], ["product"]),
        helper.make_node("Relu", ["product"], ["y"]),
    ]
    graph = save(
        tmp_path / "model.onnx", nodes, {}, inputs={"x": (TensorProto.FLOAT, ["n", 4])}, outputs={"y": ["n", 3]}
    )
    prepared = prepare_for_quantization(graph, output=tmp_path / "prepared.onnx", threads=1)
    assert [node.op_type for node in prepared.graph.node] == ["MatMul", "Relu"]
    assert [list(tensor.dims) for tensor in prepared.graph.initializer] == [[4, 3]]
    names = [node.name for node in prepared.graph.node]
    assert all(names)
    assert len(set(names)) == 2


def test_preparation_keeps_the_names_of_nodes_that_ignore_patterns_are_written_for(tmp_path: Path) -> None:
    graph = convolutional_graph(tmp_path / "model.onnx")
    prepared = prepare_for_quantization(graph, output=tmp_path / "prepared.onnx", threads=1)
    names = {node.name for node in prepared.graph.node}
    assert {"stem/conv", "block/conv", "block/add", "head"} <= names


def test_preparation_reads_external_data_and_writes_one_file_when_it_fits(tmp_path: Path) -> None:
    model = onnx.load(convolutional_graph(tmp_path / "single.onnx"))
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    folder = tmp_path / "workspace"
    folder.mkdir()
    prepare_for_quantization(tmp_path / "model.onnx", output=folder / "prepared.onnx", threads=1)
    moved = (folder / "prepared.onnx").rename(tmp_path / "alone.onnx")
    sample = images(2)
    np.testing.assert_allclose(
        run(moved, image=sample), run(tmp_path / "single.onnx", image=sample), rtol=1e-4, atol=1e-5
    )
