from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from unit.compression.pruning.networks import Network, prune

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.compression.pruning.preparation import prepare
from serveprune.errors import InvalidArgument


def test_layers_come_apart_when_they_share_a_zero_bias(tmp_path: Path) -> None:
    n = Network()
    zero = n.constant(np.zeros(8, np.float32), name="zero")
    ones = n.constant(np.ones((1, 8), np.float32), name="ones")
    x = n.input("N", 4)
    for index, width in enumerate((4, 8, 8)):
        x = n.node("MatMul", x, n.weight(width, 8, name=f"w{index}"))
        x = n.node("Mul", n.node("Relu", n.node("Add", x, zero)), ones)
    path = n.save(tmp_path / "network.onnx", n.gemm(x, 8, 2, name="head"))
    trial = prune(path, workspace=tmp_path)
    matrices = [{piece.name for piece in group.slices if piece.name[0] in "wh"} for group in trial.graph.groups]
    assert matrices == [{"w0", "w1"}, {"w1", "w2"}, {"w2", "head"}]


def test_tied_embedding_stays_one_matrix_when_pruned(tmp_path: Path) -> None:
    n = Network()
    table = n.weight(20, 8, name="table")
    x = n.node("Relu", n.node("Gather", table, n.input("N", "S", integers=True)))
    path = n.save(tmp_path / "network.onnx", n.node("MatMul", x, n.node("Transpose", table, perm=[1, 0])))
    trial = prune(path, workspace=tmp_path)
    assert trial.after["table"] == (20, 5)
    assert not any(shape in ((20, 8), (8, 20), (5, 20)) for shape in trial.after.values())


def test_nodes_in_any_order_are_sorted(tmp_path: Path) -> None:
    n = Network()
    x = n.gemm(n.input("N", 4), 4, 8, name="a")
    x = n.node("Add", x, n.gemm(n.node("Relu", x), 8, 8, name="b"))
    model = onnx.load(n.save(tmp_path / "network.onnx", n.gemm(x, 8, 2, name="head")))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    onnx.save(model, tmp_path / "reversed.onnx")
    trial = prune(tmp_path / "reversed.onnx", workspace=tmp_path)
    assert trial.groups == {(8, frozenset({("a", 0), ("b", 0), ("b", 1), ("head", 1)}))}
    assert trial.difference < 1e-4


def test_shared_constants_come_apart_when_they_lie_in_another_file(tmp_path: Path) -> None:
    n = Network()
    shift = n.weight(8, name="shift")
    x = n.gemm(n.input("N", 4), 4, 8, name="a")
    x = n.gemm(n.node("Add", x, shift), 8, 8, name="b")
    model = onnx.load(n.save(tmp_path / "network.onnx", n.gemm(n.node("Add", x, shift), 8, 2, name="head")))
    onnx.save(model, tmp_path / "beside.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    trial = prune(tmp_path / "beside.onnx", workspace=tmp_path)
    assert [group.width for group in trial.graph.groups] == [8, 8]


def test_functions_are_inlined_and_constants_lifted(tmp_path: Path) -> None:
    body = [
        helper.make_node("Constant", [], ["half"], value=helper.make_tensor("half", TensorProto.FLOAT, [], [0.5])),
        helper.make_node("Mul", ["x", "half"], ["y"]),
    ]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
    function = helper.make_function("mine", "Halve", ["x"], ["y"], body, opsets[:1])
    graph = helper.make_graph(
        [helper.make_node("Halve", ["x"], ["y"], domain="mine")],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
    )
    onnx.save(helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8), tmp_path / "f.onnx")
    model = prepare(tmp_path / "f.onnx", output=tmp_path / "prepared.onnx")
    (node,) = model.graph
    assert (node.op_type, bool(node.name), len(model.graph.initializers)) == ("Mul", True, 1)
    x = np.array([[2, 4, 6]], np.float32)
    (result,) = OnnxRuntimeBackend().load(tmp_path / "prepared.onnx").run({"x": x})
    assert result.tolist() == [[1, 2, 3]]


def test_batch_normalization_stays(tmp_path: Path) -> None:
    n = Network()
    x = n.conv(n.input("N", 3, 8, 8), 3, 8, name="a")
    variance = n.constant(np.ones(8, np.float32))
    x = n.node("BatchNormalization", x, n.weight(8), n.weight(8), n.weight(8), variance)
    path = n.save(tmp_path / "network.onnx", n.pooled_head(x, 8))
    model = prepare(path, output=tmp_path / "prepared.onnx")
    assert "BatchNormalization" in [node.op_type for node in model.graph]


@pytest.mark.parametrize("operator", ["DynamicQuantizeLinear", "MatMulInteger"])
def test_quantized_graph_is_refused_with_what_to_do(operator: str, tmp_path: Path) -> None:
    n = Network()
    x = n.input("N", 4)
    whole, scale, zero = n.node("DynamicQuantizeLinear", x, outputs=3)
    if operator == "DynamicQuantizeLinear":
        output = n.node("DequantizeLinear", whole, scale, zero)
    else:
        output = n.node("Cast", n.node("MatMulInteger", whole, n.constant(np.ones((4, 2), np.uint8))), to=1)
    path = n.save(tmp_path / "network.onnx", output)
    with pytest.raises(InvalidArgument, match=r"already quantized .*: prune before quantizing"):
        prepare(path, output=tmp_path / "prepared.onnx")


def test_prepared_model_is_the_file_that_was_written(tmp_path: Path) -> None:
    n = Network()
    path = n.save(tmp_path / "network.onnx", n.gemm(n.input("N", 4), 4, 3, name="a"))
    model = prepare(path, output=tmp_path / "prepared.onnx")
    written = ir.load(tmp_path / "prepared.onnx")
    assert [node.name for node in model.graph] == [node.name for node in written.graph]
    assert set(model.graph.initializers) == set(written.graph.initializers)
