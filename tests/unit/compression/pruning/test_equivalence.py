from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from unit.compression.pruning.networks import Network, read

from serveprune.compression.pruning.dependency_graph import DependencyGraph
from serveprune.compression.pruning.equivalence import check_equivalence, check_surgery
from serveprune.compression.pruning.surgery import masked, remove_units
from serveprune.errors import BuildFailed, InvalidArgument
from serveprune.oip.tensor import Array

FEEDS: list[dict[str, Array]] = [{"x": np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)}]


def two_layers(folder: Path) -> DependencyGraph:
    n = Network()
    x = n.input("N", 4)
    for name, (inputs, outputs) in {"a": (4, 8), "b": (8, 6)}.items():
        x = n.node("Relu", n.gemm(x, inputs, outputs, name=name))
    return read(n.save(folder / "network.onnx", n.gemm(x, 6, 2, name="head")), workspace=folder)


def test_difference_is_returned_when_the_graphs_agree(tmp_path: Path) -> None:
    graph = two_layers(tmp_path)
    removed = [int(graph.groups[0].units[2]), int(graph.groups[1].units[0])]
    assert check_surgery(tmp_path / "prepared.onnx", graph, removed, FEEDS, workspace=tmp_path) < 1e-6


def test_masked_graph_differs_from_the_dense_one(tmp_path: Path) -> None:
    graph = two_layers(tmp_path)
    model = ir.load(tmp_path / "prepared.onnx")
    masked(model, graph, graph.groups[0].units[:4].tolist())
    ir.save(model, tmp_path / "masked.onnx")
    with pytest.raises(BuildFailed, match=r"output '\w+' differs by"):
        check_equivalence(tmp_path / "prepared.onnx", tmp_path / "masked.onnx", FEEDS)


@pytest.mark.parametrize(("dtype", "allowed"), [(np.float32, 1e-4), (np.float16, 2e-3)])
def test_graphs_may_differ_by_roundings_of_their_weights(
    dtype: type[np.floating], allowed: float, tmp_path: Path
) -> None:
    def scaling(factor: float) -> Path:
        n = Network()
        scaled = n.node(
            "Mul",
            n.node("Cast", n.input("N", 4), to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))),
            n.constant(dtype(factor)),
        )
        return n.save(tmp_path / f"{factor}.onnx", n.node("Cast", scaled, to=onnx.TensorProto.FLOAT))

    assert check_equivalence(scaling(1 + allowed / 2), scaling(1), FEEDS) > 0
    with pytest.raises(BuildFailed, match="of its scale"):
        check_equivalence(scaling(1 + 4 * allowed), scaling(1), FEEDS)


def test_group_at_fault_is_named_when_surgery_is_wrong(tmp_path: Path) -> None:
    graph = two_layers(tmp_path)
    second = graph.groups[1]
    # A rule that forgot where the second group is felt: its mask is missing.
    graph._walk.contractions = [each for each in graph.contractions if each not in second.contractions]
    removed = [int(graph.groups[0].units[0]), *second.units[:3].tolist()]
    with pytest.raises(BuildFailed, match="the first group at fault is 'b'"):
        check_surgery(tmp_path / "prepared.onnx", graph, removed, FEEDS, workspace=tmp_path)


def test_graph_that_does_not_run_is_a_failed_build(tmp_path: Path) -> None:
    graph = two_layers(tmp_path)
    model = ir.load(tmp_path / "prepared.onnx")
    remove_units(model, graph, graph.groups[0].units[:3].tolist())
    array = model.graph.initializers["b"].const_value
    assert array is not None
    model.graph.initializers["b"].const_value = ir.tensor(array.numpy()[:, 1:], name="b")
    ir.save(model, tmp_path / "broken.onnx")
    with pytest.raises(BuildFailed, match="it does not run"):
        check_equivalence(tmp_path / "broken.onnx", tmp_path / "prepared.onnx", FEEDS)


def test_removing_a_whole_group_is_refused(tmp_path: Path) -> None:
    graph = two_layers(tmp_path)
    model = ir.load(tmp_path / "prepared.onnx")
    with pytest.raises(InvalidArgument, match="keep at least one unit"):
        remove_units(model, graph, graph.groups[0].units.tolist())
