from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend, OnnxRuntimeSession
from serveprune.errors import Internal, InvalidArgument
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import TensorSpec


def save_graph(path: Path, *, operator: str = "Add", domain: str = "") -> Path:
    """Write a graph that adds two float inputs of shape (batch, 3) and (3)."""
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "bias"], ["y"], domain=domain)],
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


def test_run_fails_when_shapes_only_meet_inside_the_graph(session: OnnxRuntimeSession) -> None:
    with pytest.raises((Internal, InvalidArgument)):
        session.run({"x": np.ones((2, 3), np.float32), "bias": np.ones(2, np.float32)})


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
