from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from serveprune.backends.protocol import Session
from serveprune.backends.selection import load_backend
from serveprune.errors import FailedPrecondition
from serveprune.models.agreement import require_agreement
from serveprune.oip.tensor import Array

FEEDS = {"x": np.array([[1.0, -2.0, 4.0]], np.float32)}


def session(folder: Path, *, factor: float = 1.0, columns: int = 3, backend: str = "onnxruntime") -> Session:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", columns]) for name in "xy"]
    weight = numpy_helper.from_array(np.full(columns, factor, np.float32), "factor")
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])], "mul", values[:1], values[1:], [weight]
    )
    path = folder / f"{factor}-{columns}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return load_backend(backend).load(path)


def test_equal_answers_agree_across_backends(tmp_path: Path) -> None:
    other = session(tmp_path, factor=1.7, backend="openvino")
    require_agreement(other, session(tmp_path, factor=1.7), FEEDS, backend="openvino")


def test_answers_that_differ_are_refused_with_the_difference(tmp_path: Path) -> None:
    with pytest.raises(
        FailedPrecondition, match=r"output y differs by 0\.05 of its largest value.*backend: onnxruntime"
    ):
        require_agreement(session(tmp_path, factor=1.05), session(tmp_path), FEEDS, backend="openvino")


def test_nan_is_no_agreement(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="differs by nan"):
        require_agreement(session(tmp_path, factor=float("nan")), session(tmp_path), FEEDS, backend="openvino")


def test_backend_that_fails_where_the_reference_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="backend openvino fails where ONNX Runtime answers"):
        require_agreement(session(tmp_path, columns=2), session(tmp_path), FEEDS, backend="openvino")


def test_backend_is_refused_when_the_reference_refuses_what_both_should_answer(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="cannot be compared with ONNX Runtime, which refuses made-up inputs"):
        require_agreement(session(tmp_path, factor=9.0), session(tmp_path, columns=2), FEEDS, backend="openvino")


def test_infinities_agree_when_they_are_at_the_same_places(tmp_path: Path) -> None:
    def endless(value: float) -> dict[str, Array]:
        return {"x": np.array([[1.0, -np.inf, value]], np.float32)}

    same, other = session(tmp_path), session(tmp_path, factor=1.0 + 1e-6)
    require_agreement(other, same, endless(3.0), backend="openvino")
    require_agreement(other, same, endless(np.nan), backend="openvino")
    with pytest.raises(FailedPrecondition, match="differs by nan"):
        require_agreement(session(tmp_path, factor=-1.0), same, endless(3.0), backend="openvino")
