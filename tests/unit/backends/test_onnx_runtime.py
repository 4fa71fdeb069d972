import re
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from unit.backends.one_node import save_graph, save_one_node

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend, OnnxRuntimeSession
from serveprune.errors import Internal, InvalidArgument, ResourceExhausted
from serveprune.oip.tensor import Array


@pytest.fixture
def session(tmp_path: Path) -> OnnxRuntimeSession:
    return OnnxRuntimeBackend().load(save_graph(tmp_path / "adder.onnx"))


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
