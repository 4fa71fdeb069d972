from pathlib import Path

from onnx import helper
from unit.graph.graph_files import graph_model, linear_model, save, save_with_external_data

from serveprune.graph.footprint import graph_record
from serveprune.oip.datatype import Datatype


def test_graph_record_tells_interface_weights_and_operators(tmp_path: Path) -> None:
    path = save(linear_model(), tmp_path / "m.onnx")
    record = graph_record(path)
    assert [(value.name, value.datatype, value.shape) for value in record.inputs] == [("x", Datatype.FP32, (-1, 4))]
    assert [(value.name, value.shape) for value in record.outputs] == [("y", (-1, 3))]
    assert record.parameters == 12
    assert record.bytes == path.stat().st_size
    assert record.operators == {"MatMul": 1}


def test_graph_record_counts_external_bytes_when_weights_lie_beside(tmp_path: Path) -> None:
    path = save_with_external_data(linear_model(), tmp_path / "m.onnx", location="m.bin")
    assert graph_record(path).bytes == path.stat().st_size + 48
    assert graph_record(path).parameters == 12


def test_graph_record_counts_branches_when_the_graph_has_control_flow(tmp_path: Path) -> None:
    def branch(op: str) -> object:
        return helper.make_graph(
            [helper.make_node(op, ["x"], [f"{op}_out"])], op, [], [helper.make_tensor_value_info(f"{op}_out", 1, None)]
        )

    true = helper.make_tensor("flag", 9, [], [True])
    model = graph_model(
        [
            helper.make_node("Constant", [], ["flag"], value=true),
            helper.make_node("If", ["flag"], ["y"], then_branch=branch("Neg"), else_branch=branch("Abs")),
        ],
        inputs={"x": ["batch", 2]},
        outputs={"y": ["batch", 2]},
    )
    record = graph_record(save(model, tmp_path / "m.onnx"))
    assert record.operators == {"Constant": 1, "If": 1, "Neg": 1, "Abs": 1}
    assert record.parameters == 1
