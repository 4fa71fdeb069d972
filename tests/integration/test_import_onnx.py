from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from unit.graph.graph_files import graph_model, linear_model, save, save_with_external_data

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.config.model import ModelConfig
from serveprune.errors import InvalidArgument
from serveprune.graph import onnx_file
from serveprune.graph.importing import ImportedGraph, import_model
from serveprune.graph.interface import source_inputs

_X = np.array([[1, 2, 3, 4], [0.5, 0, 0, -1], [3, 1, 1, 1]], np.float32)
_WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)


def _import(path: Path, folder: Path) -> ImportedGraph:
    folder.mkdir(exist_ok=True)
    model = ModelConfig.model_validate({"source": {"onnx": str(path)}})
    imported = import_model(model, folder=folder, progress=lambda stage, fraction: None)
    declared = source_inputs(model)
    assert declared is None or declared == tuple(record.spec for record in imported.graph.inputs)
    return imported


def test_onnx_file_is_stored_as_it_computes(tmp_path: Path) -> None:
    imported = _import(save(linear_model(), tmp_path / "m.onnx"), tmp_path / "out")
    assert imported.notes == ()
    assert imported.parity_max_abs_error is None
    assert imported.preprocessing is None
    session = OnnxRuntimeBackend().load(tmp_path / "out" / "model.onnx")
    np.testing.assert_allclose(session.run({"x": _X})[0], _X @ _WEIGHT)


def test_external_data_is_embedded_when_it_is_small(tmp_path: Path) -> None:
    path = save_with_external_data(linear_model(), tmp_path / "m.onnx", location="weights.bin")
    imported = _import(path, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["model.onnx"]
    assert imported.graph.bytes == (tmp_path / "out" / "model.onnx").stat().st_size
    (tmp_path / "weights.bin").unlink()
    session = OnnxRuntimeBackend().load(tmp_path / "out" / "model.onnx")
    np.testing.assert_allclose(session.run({"x": _X})[0], _X @ _WEIGHT)


def test_weights_lie_beside_the_graph_when_they_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "MAX_EMBEDDED_BYTES", 1000)
    weight = np.random.default_rng(0).standard_normal((4, 300)).astype(np.float32)
    model = graph_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        inputs={"x": ["batch", 4]},
        outputs={"y": ["batch", 300]},
        weights={"w": weight},
    )
    path = save_with_external_data(model, tmp_path / "m.onnx", location="weights.bin")
    imported = _import(path, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["model.onnx", "model.onnx.data"]
    assert imported.graph.bytes > weight.nbytes
    assert imported.graph.parameters == weight.size
    session = OnnxRuntimeBackend().load(tmp_path / "out" / "model.onnx")
    np.testing.assert_allclose(session.run({"x": _X})[0], _X @ weight, rtol=1e-5)


def test_external_data_is_refused_when_it_lies_outside(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = save_with_external_data(
        linear_model(), tmp_path / "model" / "m.onnx", location="../secret", data=tmp_path / "secret"
    )
    with pytest.raises(InvalidArgument, match=r"m\.onnx: external data of 'w'"):
        _import(path, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\x0a" * 50, bytes(range(256)) * 4])
def test_file_is_refused_when_it_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(InvalidArgument, match=r"m\.onnx: expected an ONNX model"):
        _import(path, tmp_path / "out")


def test_file_is_refused_when_it_is_truncated_anywhere(tmp_path: Path) -> None:
    whole = linear_model().SerializeToString()
    path = tmp_path / "m.onnx"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InvalidArgument, match=r"m\.onnx"):
            _import(path, tmp_path / "out")


def test_file_is_refused_when_the_runtime_lacks_an_operator(tmp_path: Path) -> None:
    path = save(linear_model(op="Frobnicate"), tmp_path / "m.onnx")
    with pytest.raises(InvalidArgument, match=r"m\.onnx: ONNX Runtime cannot load this graph: .*Frobnicate"):
        _import(path, tmp_path / "out")


def test_file_is_refused_when_it_takes_nothing(tmp_path: Path) -> None:
    model = graph_model(
        [helper.make_node("Neg", ["w"], ["y"])], inputs={}, outputs={"y": [4, 3]}, weights={"w": _WEIGHT}
    )
    with pytest.raises(InvalidArgument, match=r"m\.onnx: expected a graph with at least one input"):
        _import(save(model, tmp_path / "m.onnx"), tmp_path / "out")


def test_file_is_refused_when_an_input_has_no_batch_axis(tmp_path: Path) -> None:
    model = graph_model([helper.make_node("Neg", ["x"], ["y"])], inputs={"x": []}, outputs={"y": []})
    with pytest.raises(InvalidArgument, match=r"m\.onnx: input 'x' has no batch axis"):
        _import(save(model, tmp_path / "m.onnx"), tmp_path / "out")


def test_file_is_refused_when_an_output_has_no_batch_axis(tmp_path: Path) -> None:
    model = graph_model(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)], inputs={"x": ["batch", 2]}, outputs={"y": []}
    )
    with pytest.raises(InvalidArgument, match="every output needs the batch as its first axis"):
        _import(save(model, tmp_path / "m.onnx"), tmp_path / "out")


def test_file_is_refused_when_an_input_is_no_tensor(tmp_path: Path) -> None:
    model = linear_model()
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
    model.graph.input[0].CopyFrom(sequence)
    with pytest.raises(InvalidArgument, match=r"m\.onnx: x: expected a tensor, got sequence_type"):
        _import(save(model, tmp_path / "m.onnx"), tmp_path / "out")


def test_batch_axis_is_freed_when_it_is_fixed_at_one_and_nothing_depends_on_it(tmp_path: Path) -> None:
    path = save(linear_model(shape=[1, 4], output=[1, 3]), tmp_path / "m.onnx")
    imported = _import(path, tmp_path / "out")
    assert imported.graph.inputs[0].shape == (-1, 4)
    assert imported.graph.outputs[0].shape == (-1, 3)
    assert any("is dynamic now" in note for note in imported.notes)
    session = OnnxRuntimeBackend().load(tmp_path / "out" / "model.onnx")
    np.testing.assert_allclose(session.run({"x": _X})[0], _X @ _WEIGHT)


def test_batch_axis_stays_fixed_when_the_graph_depends_on_it(tmp_path: Path) -> None:
    model = graph_model(
        [helper.make_node("Reshape", ["x", "shape"], ["flat"]), helper.make_node("Neg", ["flat"], ["y"])],
        inputs={"x": [1, 2, 3]},
        outputs={"y": [1, 6]},
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 6], np.int64), "shape"))
    imported = _import(save(model, tmp_path / "m.onnx"), tmp_path / "out")
    assert imported.graph.inputs[0].shape == (1, 2, 3)
    assert imported.notes == ("the batch axis is fixed ('x' at 1): requests cannot be batched",)
    session = OnnxRuntimeBackend().load(tmp_path / "out" / "model.onnx")
    assert session.run({"x": np.ones((1, 2, 3), np.float32)})[0].shape == (1, 6)


def test_batch_axis_stays_fixed_when_rows_would_mix(tmp_path: Path) -> None:
    model = graph_model(
        [helper.make_node("ReduceMean", ["x", "axes"], ["mean"]), helper.make_node("Sub", ["x", "mean"], ["y"])],
        inputs={"x": [1, 5]},
        outputs={"y": [1, 5]},
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "axes"))
    imported = _import(save(model, tmp_path / "m.onnx"), tmp_path / "out")
    assert imported.graph.inputs[0].shape == (1, 5)


def test_file_is_refused_when_its_batch_axis_is_not_as_dynamic_as_declared(tmp_path: Path) -> None:
    model = graph_model(
        [helper.make_node("Reshape", ["x", "shape"], ["flat"]), helper.make_node("Neg", ["flat"], ["y"])],
        inputs={"x": ["batch", 2, 3]},
        outputs={"y": ["batch", 6]},
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 6], np.int64), "shape"))
    with pytest.raises(
        InvalidArgument, match=r"m\.onnx: the batch axis is declared dynamic, but the graph takes 1 row"
    ):
        _import(save(model, tmp_path / "m.onnx"), tmp_path / "out")


def test_neighbours_that_change_an_answer_are_noted(tmp_path: Path) -> None:
    model = graph_model(
        [helper.make_node("ReduceMax", ["x"], ["max"]), helper.make_node("Div", ["x", "max"], ["y"])],
        inputs={"x": ["batch", 5]},
        outputs={"y": ["batch", 5]},
    )
    imported = _import(save(model, tmp_path / "m.onnx"), tmp_path / "out")
    assert imported.notes == ("an answer changes with its neighbours in the batch",)


def test_repeated_name_is_repaired_when_an_onnx_file_has_one(tmp_path: Path) -> None:
    model = graph_model(
        [helper.make_node("Add", ["x", "x"], ["add"]), helper.make_node("Mul", ["add", "x"], ["add"])],
        inputs={"x": ["batch", 2]},
        outputs={"add": ["batch", 2]},
    )
    imported = _import(save(model, tmp_path / "m.onnx"), tmp_path / "out")
    assert imported.notes == ("the name 'add' was defined twice; the earlier value was renamed",)
    session = OnnxRuntimeBackend().load(tmp_path / "out" / "model.onnx")
    np.testing.assert_allclose(session.run({"x": np.array([[1.0, 3.0]], np.float32)})[0], [[2.0, 18.0]])


def test_weights_listed_as_inputs_become_constants(tmp_path: Path) -> None:
    model = linear_model()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    imported = _import(save(model, tmp_path / "m.onnx"), tmp_path / "out")
    assert [record.name for record in imported.graph.inputs] == ["x"]
    stored = onnx.load(tmp_path / "out" / "model.onnx")
    assert [value.name for value in stored.graph.input] == ["x"]


def test_shape_of_an_output_is_inferred_when_the_file_lacks_it(tmp_path: Path) -> None:
    model = linear_model()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    imported = _import(save(model, tmp_path / "m.onnx"), tmp_path / "out")
    assert imported.graph.outputs[0].shape == (-1, 3)


def test_batch_normalization_is_kept_when_an_onnx_file_has_it(tmp_path: Path) -> None:
    ones = np.ones(2, np.float32)
    model = graph_model(
        [helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"])],
        inputs={"x": ["batch", 2, 4, 4]},
        outputs={"y": ["batch", 2, 4, 4]},
        weights={"s": ones, "b": ones, "m": ones, "v": ones},
    )
    assert _import(save(model, tmp_path / "m.onnx"), tmp_path / "out").graph.operators == {"BatchNormalization": 1}


def test_declared_tokenizer_is_stored_when_the_configuration_names_one(tmp_path: Path) -> None:
    tokenizer = tmp_path / "my-tokenizer.json"
    tokenizer.write_text("{}")
    source = {"onnx": str(save(linear_model(), tmp_path / "m.onnx"))}
    model = ModelConfig.model_validate(
        {"source": source, "preprocessing": {"kind": "text", "tokenizer": str(tokenizer), "max_length": 7}}
    )
    (tmp_path / "out").mkdir()
    imported = import_model(model, folder=tmp_path / "out", progress=lambda stage, fraction: None)
    assert imported.preprocessing is not None
    assert imported.preprocessing.model_dump(mode="json") == {
        "kind": "text",
        "tokenizer": "tokenizer.json",
        "max_length": 7,
        "input": "text",
    }
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


def test_graph_has_no_annotations_when_it_is_stored(tmp_path: Path) -> None:
    annotated = linear_model()
    weight = annotated.graph.initializer[0]
    annotated.graph.value_info.append(helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    _import(save(annotated, tmp_path / "m.onnx"), tmp_path / "out")
    stored = onnx.load(tmp_path / "out" / "model.onnx").graph
    assert stored.initializer
    assert not stored.value_info
