import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend, OnnxRuntimeSession
from serveprune.errors import Internal, InvalidArgument, ResourceExhausted
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import Array, TensorSpec


def save_graph(path: Path, *, operator: str = "Add", domain: str = "") -> Path:
    """Write a graph that adds two float inputs of shape (batch, 3) and (3)."""
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "bias"], ["y"], name="/sum", domain=domain)],
        "adder",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("bias", TensorProto.FLOAT, ["width"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.fixture
def session(tmp_path: Path) -> OnnxRuntimeSession:
    return OnnxRuntimeBackend().load(save_graph(tmp_path / "adder.onnx"))


def test_session_tells_what_the_graph_takes_and_gives(session: OnnxRuntimeSession) -> None:
    assert session.inputs == (TensorSpec("x", Datatype.FP32, (-1, 3)), TensorSpec("bias", Datatype.FP32, (-1,)))
    assert session.outputs == (TensorSpec("y", Datatype.FP32, (-1, 3)),)


def test_run_computes_the_named_outputs(session: OnnxRuntimeSession) -> None:
    (y,) = session.run({"x": np.ones((2, 3), np.float32), "bias": np.arange(3, dtype=np.float32)}, outputs=["y"])
    assert y.tolist() == [[1.0, 2.0, 3.0]] * 2


def test_run_is_refused_when_a_shape_does_not_fit(session: OnnxRuntimeSession) -> None:
    with pytest.raises(InvalidArgument, match="the graph refused these inputs"):
        session.run({"x": np.ones((2, 4), np.float32), "bias": np.ones(3, np.float32)})


def test_shapes_that_only_meet_inside_the_graph_are_the_callers_fault_once_it_has_run(
    session: OnnxRuntimeSession,
) -> None:
    wrong = {"x": np.ones((2, 3), np.float32), "bias": np.ones(2, np.float32)}
    with pytest.raises(Internal):
        session.run(wrong)
    session.run({"x": np.ones((2, 3), np.float32), "bias": np.ones(3, np.float32)})
    with pytest.raises(InvalidArgument) as refusal:
        session.run(wrong)
    assert refusal.value.message == (
        "the graph refused these inputs: node /sum (Add): axis == 1 || axis == largest was false. "
        "Attempting to broadcast an axis by a dimension other than 1. 2 by 3"
    )


def save_one_node(path: Path, operator: str, *, element: int, constant: Array | None = None) -> Path:
    """Write a graph of one node from input ``x`` of one dynamic axis, and a constant, to output ``y``."""
    names = ["x"] if constant is None else ["x", "constant"]
    out = element if operator != "ConstantOfShape" else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["y"], name="the_node")],
        "one",
        [helper.make_tensor_value_info("x", element, ["batch"])],
        [helper.make_tensor_value_info("y", out, None)],
        [] if constant is None else [numpy_helper.from_array(constant, "constant")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.mark.parametrize(
    ("operator", "constant", "good", "bad", "message"),
    [
        ("Reshape", np.array([-1, 7]), np.ones(7, np.float32), np.ones(6, np.float32), "Input shape:{6}, requested"),
        ("MatMul", np.ones((5, 4), np.float32), np.ones(5, np.float32), np.ones(6, np.float32), "MatMul dimension"),
        ("ConstantOfShape", None, np.array([1]), np.array([-5]), "must be >= 0"),
        ("ConstantOfShape", None, np.array([1]), np.array([2**20] * 4), "Integer overflow"),
    ],
)
def test_refusals_name_the_node_and_the_reason_but_no_source(
    tmp_path: Path, operator: str, constant: Array | None, good: Array, bad: Array, message: str
) -> None:
    element = helper.np_dtype_to_tensor_dtype(good.dtype)
    session = OnnxRuntimeBackend().load(
        save_one_node(tmp_path / "one.onnx", operator, element=element, constant=constant)
    )
    session.run({"x": good})
    with pytest.raises(InvalidArgument) as refusal:
        session.run({"x": bad})
    assert refusal.value.message.startswith(f"the graph refused these inputs: node the_node ({operator}): ")
    assert message in refusal.value.message
    assert not re.search(r"::|\.(h|cc|cpp):|/onnxruntime|ONNXRuntimeError", refusal.value.message)


def test_run_is_refused_when_there_is_not_enough_memory(tmp_path: Path) -> None:
    path = save_one_node(tmp_path / "large.onnx", "ConstantOfShape", element=TensorProto.INT64)
    session = OnnxRuntimeBackend().load(path)
    with pytest.raises(ResourceExhausted, match=r"need more memory than there is: node the_node .*buffer of size"):
        session.run({"x": np.array([2**50])})


def strings(*values: bytes) -> Array:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def test_strings_go_in_and_come_out_as_bytes(tmp_path: Path) -> None:
    path = save_one_node(tmp_path / "strings.onnx", "Identity", element=TensorProto.STRING)
    session = OnnxRuntimeBackend().load(path)
    sent = ["abc", "größer 靴", ""]
    for elements in (sent, [text.encode() for text in sent]):
        (y,) = session.run({"x": np.array(elements, dtype=object)})
        assert y.tolist() == [text.encode() for text in sent]


def test_strings_are_seen_by_the_graph_as_they_were_sent(tmp_path: Path) -> None:
    path = save_one_node(tmp_path / "equal.onnx", "StringConcat", element=TensorProto.STRING, constant=strings(b"!"))
    (y,) = OnnxRuntimeBackend().load(path).run({"x": strings(b"abc")})
    assert y.tolist() == [b"abc!"]


def test_run_is_refused_when_a_string_is_no_text(tmp_path: Path) -> None:
    path = save_one_node(tmp_path / "strings.onnx", "Identity", element=TensorProto.STRING)
    with pytest.raises(InvalidArgument, match="input x, element 1: expected UTF-8 text, got byte 0xff at position 2"):
        OnnxRuntimeBackend().load(path).run({"x": strings(b"a", b"bc\xff")})


def test_refused_load_does_not_tell_where_the_file_lies(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        OnnxRuntimeBackend().load(tmp_path / "absent.onnx")
    assert str(tmp_path) not in refusal.value.message


def test_run_fails_when_the_session_is_closed(session: OnnxRuntimeSession) -> None:
    session.close()
    with pytest.raises(Internal, match="closed"):
        session.run({"x": np.ones((2, 3), np.float32), "bias": np.ones(3, np.float32)})


def test_load_is_refused_when_the_file_is_no_graph(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(save_graph(tmp_path / "whole.onnx").read_bytes()[:60])
    with pytest.raises(InvalidArgument, match=r"broken\.onnx: ONNX Runtime cannot load this graph"):
        OnnxRuntimeBackend().load(broken)


def test_load_is_refused_when_the_runtime_lacks_an_operator(tmp_path: Path) -> None:
    graph = save_graph(tmp_path / "exotic.onnx", operator="Frobnicate", domain="example")
    with pytest.raises(InvalidArgument, match="Frobnicate"):
        OnnxRuntimeBackend().load(graph)
