"""What every backend must do alike."""

import gzip
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from unit.backends.one_node import save_graph, save_one_node

from serveprune.backends.protocol import Backend, Session
from serveprune.backends.selection import ONNX_RUNTIME, OPENVINO, load_backend
from serveprune.errors import Internal, InvalidArgument, ResourceExhausted, ServePruneError
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import Array, TensorSpec


@pytest.fixture(params=[(ONNX_RUNTIME, 2), (OPENVINO, 1), (OPENVINO, 2)], ids=lambda param: f"{param[0]}-{param[1]}")
def backend(request: pytest.FixtureRequest) -> Backend:
    name, executors = request.param
    return load_backend(name, executors=executors)


@pytest.fixture
def session(backend: Backend, tmp_path: Path) -> Session:
    return backend.load(save_graph(tmp_path / "adder.onnx"))


def feeds(rows: int = 2, *, width: int = 3, value: float = 1.0) -> dict[str, Array]:
    return {"x": np.full((rows, 3), value, np.float32), "bias": np.arange(width, dtype=np.float32)}


def test_session_tells_what_the_graph_takes_and_gives(session: Session) -> None:
    assert session.inputs == (TensorSpec("x", Datatype.FP32, (-1, 3)), TensorSpec("bias", Datatype.FP32, (-1,)))
    assert session.outputs == (TensorSpec("y", Datatype.FP32, (-1, 3)),)


def test_run_computes_the_named_outputs(session: Session) -> None:
    (y,) = session.run(feeds(), outputs=["y"])
    assert y.tolist() == [[1.0, 2.0, 3.0]] * 2


def test_run_is_refused_when_a_shape_does_not_fit(session: Session) -> None:
    with pytest.raises(InvalidArgument, match="the graph refused these inputs"):
        session.run({"x": np.ones((2, 4), np.float32), "bias": np.ones(3, np.float32)})


def test_run_is_refused_when_an_element_type_does_not_fit(session: Session) -> None:
    with pytest.raises(InvalidArgument, match="the graph refused these inputs"):
        session.run(feeds() | {"x": np.ones((2, 3), np.float64)})


def test_shapes_that_only_meet_inside_the_graph_are_refused_once_it_has_run(session: Session) -> None:
    session.run(feeds())
    with pytest.raises(InvalidArgument, match=r"the graph refused these inputs: node .*Add"):
        session.run(feeds(width=2))
    assert session.run(feeds())[0].shape == (2, 3)


@pytest.mark.parametrize(
    ("operator", "constant", "good", "bad"),
    [
        ("Reshape", np.array([-1, 7]), 7, 6),
        ("MatMul", np.ones((5, 4), np.float32), 5, 6),
    ],
)
def test_sizes_that_an_operator_cannot_take_are_refused(
    backend: Backend, tmp_path: Path, operator: str, constant: Array, good: int, bad: int
) -> None:
    path = save_one_node(tmp_path / "one.onnx", operator, element=TensorProto.FLOAT, constant=constant)
    session = backend.load(path)
    session.run({"x": np.ones(good, np.float32)})
    with pytest.raises(InvalidArgument, match=rf"the graph refused these inputs: node \S+ \({operator}\): ") as refusal:
        session.run({"x": np.ones(bad, np.float32)})
    assert "src/" not in refusal.value.message


def test_run_fails_when_an_input_is_missing(session: Session) -> None:
    # ONNX Runtime's binding does not tell this from a failure of its own; servers check it before.
    with pytest.raises(ServePruneError, match="bias"):
        session.run({"x": np.ones((2, 3), np.float32)})


def test_run_is_refused_when_there_is_no_such_input(session: Session) -> None:
    with pytest.raises(InvalidArgument, match="scale"):
        session.run(feeds() | {"scale": np.ones(3, np.float32)})


def test_run_is_refused_when_there_is_not_enough_memory(backend: Backend, tmp_path: Path) -> None:
    # (n, 1) times its transpose: 2^42 elements.
    path = save_one_node(tmp_path / "outer.onnx", "Einsum", element=TensorProto.FLOAT)
    model = onnx.load(path)
    del model.graph.node[:]
    model.graph.node.extend(
        [
            helper.make_node("Unsqueeze", ["x", "first"], ["row"]),
            helper.make_node("Unsqueeze", ["x", "second"], ["column"]),
            helper.make_node("Mul", ["row", "column"], ["y"]),
        ]
    )
    for name, axis in (("first", 0), ("second", 1)):
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], [axis]))
    onnx.save(model, path)
    session = backend.load(path)
    assert session.run({"x": np.full(3, 2, np.float32)})[0].tolist() == [[4.0] * 3] * 3
    with pytest.raises(ResourceExhausted, match="these inputs need more memory than there is"):
        session.run({"x": np.ones(2**21, np.float32)})


@pytest.mark.parametrize(
    ("element", "values"),
    [
        (TensorProto.BOOL, np.array([True, False])),
        (TensorProto.FLOAT16, np.array([0.5, -2.25], np.float16)),
        (TensorProto.INT8, np.array([-128, 127], np.int8)),
        (TensorProto.UINT8, np.array([0, 255], np.uint8)),
        (TensorProto.INT64, np.array([-(2**31), 2**31 - 1], np.int64)),
    ],
)
def test_elements_come_back_as_they_were_sent(backend: Backend, tmp_path: Path, element: int, values: Array) -> None:
    session = backend.load(save_one_node(tmp_path / "same.onnx", "Identity", element=element))
    (y,) = session.run({"x": values})
    assert y.dtype == values.dtype
    assert y.tolist() == values.tolist()


def test_inputs_may_be_read_only_or_strided(session: Session) -> None:
    given = feeds()
    given["x"].flags.writeable = False
    strided = np.arange(6, dtype=np.float32).reshape(3, 2).T
    assert session.run(given)[0].tolist() == [[1.0, 2.0, 3.0]] * 2
    assert session.run(given | {"x": strided})[0].tolist() == [[0.0, 3.0, 6.0], [1.0, 4.0, 7.0]]


def test_answer_stays_when_the_graph_is_run_again(session: Session) -> None:
    (first,) = session.run(feeds(value=1.0))
    kept = first.tolist()
    session.run(feeds(value=9.0))
    session.close()
    assert first.tolist() == kept


def test_answers_are_not_mixed_up_when_several_threads_run_at_once(session: Session) -> None:
    barrier = threading.Barrier(6)

    def ask(number: int) -> bool:
        barrier.wait(30)
        rows = 1 + number % 3
        return all(
            np.array_equal(
                session.run(feeds(rows, value=value))[0], np.full((rows, 3), value, np.float32) + np.arange(3)
            )
            for value in range(number * 100, number * 100 + 50)
        )

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(ask, range(6)))


def test_compressed_graph_is_loaded(backend: Backend, tmp_path: Path) -> None:
    plain = save_graph(tmp_path / "adder.onnx")
    packed = tmp_path / "model.onnx.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert backend.load(packed).run(feeds())[0].tolist() == [[1.0, 2.0, 3.0]] * 2


def test_run_fails_when_the_session_is_closed(session: Session) -> None:
    session.run(feeds())
    session.close()
    session.close()
    with pytest.raises(Internal, match="closed"):
        session.run(feeds())


def test_refused_load_does_not_tell_where_the_file_lies(backend: Backend, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        backend.load(tmp_path / "absent.onnx")
    assert str(tmp_path) not in refusal.value.message


def test_load_is_refused_when_the_file_is_no_graph(backend: Backend, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(save_graph(tmp_path / "whole.onnx").read_bytes()[:60])
    with pytest.raises(InvalidArgument, match=r"broken\.onnx: .* cannot load this graph"):
        backend.load(broken)


def test_load_is_refused_when_the_runtime_lacks_an_operator(backend: Backend, tmp_path: Path) -> None:
    graph = save_graph(tmp_path / "exotic.onnx", operator="Frobnicate", domain="example")
    with pytest.raises(InvalidArgument, match="Frobnicate"):
        backend.load(graph)
