from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from unit.compression.graphs import convolutional_graph, elementwise_graph, embedding_graph, recurrent_graph
from unit.compression.pruning.networks import Network

from serveprune.compression.pruning.preparation import prepare
from serveprune.compression.sparsity.prunable_weights import WeightSelection, select_weights
from serveprune.errors import InvalidArgument
from serveprune.graph.node import constant


def selected(graph: Path, *ignore: str, embeddings: bool = True) -> tuple[ir.Model, WeightSelection]:
    model = prepare(graph, output=graph.with_name("prepared.onnx"))
    return model, select_weights(model, embeddings=embeddings, ignore=ignore)


def test_filters_and_matrices_take_part_and_biases_and_norms_never(tmp_path: Path) -> None:
    _, found = selected(convolutional_graph(tmp_path / "net.onnx"))
    assert [weight.name for weight in found.weights] == ["stem.weight", "block.weight", "head.weight"]


def test_recurrent_matrices_take_part_without_a_map(tmp_path: Path) -> None:
    _, found = selected(recurrent_graph(tmp_path / "net.onnx"))
    assert [(weight.name, weight.map) for weight in found.weights] == [("W", None), ("R", None)]


def test_tables_take_part_unless_told_otherwise(tmp_path: Path) -> None:
    graph = embedding_graph(tmp_path / "net.onnx")
    assert [weight.is_table for weight in selected(graph)[1].weights] == [True, False, False]
    _, without = selected(graph, embeddings=False)
    assert [weight.name for weight in without.weights] == ["up.weight", "down.weight"]
    assert without.left_whole == {"table": "embeddings: false"}


def test_a_weight_that_something_else_reads_stays_whole(tmp_path: Path) -> None:
    n = Network()
    x = n.input("batch", 4)
    shared = n.weight(4, 4, name="shared")
    outside = n.node("Add", n.node("MatMul", x, shared), n.node("ReduceSum", n.node("Sigmoid", shared)))
    _, found = selected(n.save(tmp_path / "net.onnx", n.linear(outside, 4, 8, name="own")))
    assert [weight.name for weight in found.weights] == ["own"]


@pytest.mark.parametrize("ignore", ["head.weight", "head*", "block/conv"])
def test_ignored_weights_and_nodes_stay_whole(tmp_path: Path, ignore: str) -> None:
    _, found = selected(convolutional_graph(tmp_path / "net.onnx"), ignore)
    (reason,) = found.left_whole.values()
    assert reason == f"ignore: {ignore}"
    assert len(found.weights) == 2


def test_a_pattern_that_matches_nothing_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"'decoder\*' matches no weight.*stem.weight, block.weight, head.weight"):
        selected(convolutional_graph(tmp_path / "net.onnx"), "decoder*")


def test_a_graph_without_matrices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="got none; left whole: the graph has no matrices"):
        selected(elementwise_graph(tmp_path / "net.onnx"))


def test_matrix_is_outputs_by_inputs_and_goes_back_to_the_same_array(tmp_path: Path) -> None:
    n = Network()
    x = n.conv(n.input("batch", 4, 6, 6), 4, 6, name="conv")
    pooled = n.node("Flatten", n.node("GlobalAveragePool", x))
    tall = n.linear(pooled, 6, 5, name="matmul")
    left = n.node("MatMul", n.weight(3, 5, name="left"), n.node("Unsqueeze", tall, n.integers(2)))
    graph = n.save(tmp_path / "net.onnx", n.gemm(n.node("Flatten", left), 3, 2, name="gemm"))
    model, found = selected(graph)
    shapes = {}
    for weight in found.weights:
        array = constant(model.graph.initializers[weight.name])
        assert array is not None
        matrix = weight.matrix(array)
        shapes[weight.name] = matrix.shape
        assert np.array_equal(weight.array(matrix, like=array), array)
        if weight.map is not None:
            assert np.array_equal(weight.map.matrix(array)[weight.columns(array)].T, matrix)
    assert shapes == {"conv": (6, 36), "matmul": (5, 6), "left": (3, 5), "gemm": (2, 3)}


def test_neighbouring_columns_of_a_filter_are_neighbouring_channels(tmp_path: Path) -> None:
    model, found = selected(convolutional_graph(tmp_path / "net.onnx"))
    block = found.weights[1]
    array = constant(model.graph.initializers["block.weight"])
    assert array is not None
    assert np.array_equal(block.matrix(array)[5, :4], array[5, :4, 0, 0])
    assert block.inputs(array) == 32
