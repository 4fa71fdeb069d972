from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper
from unit.graph.graph_files import graph_model

from serveprune.errors import InvalidArgument
from serveprune.graph.names import repair_file_names, repair_names


def _trap() -> onnx.ModelProto:
    """What torch's exporter writes for `(x + x) * x` when the output is to be called `add`."""
    return graph_model(
        [helper.make_node("Add", ["x", "x"], ["add"]), helper.make_node("Mul", ["add", "x"], ["add"])],
        inputs={"x": ["batch", 2]},
        outputs={"add": ["batch", 2]},
    )


def test_onnx_runtime_refuses_a_name_when_it_is_defined_twice() -> None:
    with pytest.raises(Exception, match="Duplicate definition of name"):
        ort.InferenceSession(_trap().SerializeToString())


def test_file_is_repaired_when_an_output_has_the_name_of_an_earlier_value() -> None:
    model = _trap()
    notes = repair_file_names(model, label="m.onnx")
    assert len(notes) == 1
    assert "'add'" in notes[0]
    x = np.array([[1.0, 3.0]], np.float32)
    session = ort.InferenceSession(model.SerializeToString())
    assert [value.name for value in session.get_outputs()] == ["add"]
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], [[2.0, 18.0]])


def test_file_is_repaired_when_a_weight_has_the_name_of_an_output() -> None:
    model = graph_model(
        [helper.make_node("Mul", ["x", "y"], ["y"])],
        inputs={"x": ["batch", 2]},
        outputs={"y": ["batch", 2]},
        weights={"y": np.array([2.0, 5.0], np.float32)},
    )
    assert repair_file_names(model, label="m.onnx")
    session = ort.InferenceSession(model.SerializeToString())
    np.testing.assert_array_equal(session.run(None, {"x": np.ones((1, 2), np.float32)})[0], [[2.0, 5.0]])


def test_file_is_refused_when_a_later_node_could_mean_either_value() -> None:
    model = _trap()
    model.graph.node.append(helper.make_node("Neg", ["add"], ["z"], name="late"))
    model.graph.output.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["batch", 2]))
    with pytest.raises(InvalidArgument, match=r"m\.onnx: the name 'add' is defined more than once and node 'late'"):
        repair_file_names(model, label="m.onnx")


def test_file_is_left_alone_when_every_name_is_its_own() -> None:
    model = graph_model([helper.make_node("Neg", ["x"], ["y"])], inputs={"x": [1, 2]}, outputs={"y": [1, 2]})
    before = model.SerializeToString()
    assert repair_file_names(model, label="m.onnx") == ()
    assert model.SerializeToString() == before


def test_values_in_memory_are_renamed_when_they_share_the_output_name(tmp_path: Path) -> None:
    model = ir.serde.deserialize_model(_trap_with_distinct_names())
    inner = next(node for node in model.graph if node.op_type == "Add").outputs[0]
    weight = model.graph.initializers["w"]
    inner.name = "y"
    weight.name = "y_1"
    model.graph.outputs[0].name = "y"
    notes = repair_names(model)
    assert len(notes) == 1
    ir.save(model, tmp_path / "m.onnx")
    session = ort.InferenceSession(tmp_path / "m.onnx")
    x = np.array([[1.0, 3.0]], np.float32)
    assert [value.name for value in session.get_outputs()] == ["y"]
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], [[1.0 * 8, 3.0 * 10]])


def _trap_with_distinct_names() -> onnx.ModelProto:
    return graph_model(
        [helper.make_node("Add", ["x", "w"], ["inner"]), helper.make_node("Mul", ["inner", "x"], ["out"])],
        inputs={"x": ["batch", 2]},
        outputs={"out": ["batch", 2]},
        weights={"w": np.array([7.0, 7.0], np.float32)},
    )
