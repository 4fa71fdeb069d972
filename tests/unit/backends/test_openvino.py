import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from unit.backends.one_node import save_graph, save_lookup, save_one_node

from serveprune.backends.onnx_runtime import graph_interface
from serveprune.backends.openvino import OpenVinoBackend, OpenVinoSession
from serveprune.backends.openvino_checks import InputChecks, shape_problem
from serveprune.errors import InvalidArgument, MissingExtra
from serveprune.oip.tensor import Array


def save(
    path: Path, nodes: list[onnx.NodeProto], *, inputs: dict[str, list[int | str]], weights: dict[str, Any]
) -> Path:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.INT64, None)],
        [numpy_helper.from_array(np.array(values), name) for name, values in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize(("element", "what"), [(TensorProto.STRING, "strings"), (TensorProto.DOUBLE, "64 bit floats")])
def test_load_is_refused_when_openvino_would_compute_something_else(tmp_path: Path, element: int, what: str) -> None:
    path = save_one_node(tmp_path / "same.onnx", "Identity", element=element)
    with pytest.raises(InvalidArgument, match=rf"same\.onnx: x holds {what}.*serve this graph with backend: onnx"):
        OpenVinoBackend().load(path)


@pytest.mark.parametrize("element", [np.int64, np.uint64])
def test_run_is_refused_when_an_integer_needs_more_than_32_bits(tmp_path: Path, element: type) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(element))
    session = OpenVinoBackend().load(save_one_node(tmp_path / "same.onnx", "Identity", element=kind))
    with pytest.raises(
        InvalidArgument, match="x: expected values from -2147483648 to 2147483647, got 0 to 1099511627776"
    ):
        session.run({"x": np.array([0, 2**40], element)})


def test_run_is_refused_when_an_index_points_beyond_its_table(tmp_path: Path) -> None:
    session = OpenVinoBackend().load(save_lookup(tmp_path / "table.onnx", "Gather", rows=500))
    assert session.run({"x": np.array([[2], [-500]])})[0][:, 0].tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
    for index in (500, -501):
        with pytest.raises(InvalidArgument, match="x: expected values from -500 to 499"):
            session.run({"x": np.array([[2], [index]])})


def test_load_is_refused_when_indices_are_computed_from_values(tmp_path: Path) -> None:
    path = save_lookup(tmp_path / "table.onnx", "GatherND", rows=5)
    with pytest.raises(InvalidArgument, match=r"table\.onnx: node \S+ \(GatherND\) takes indices that are computed"):
        OpenVinoBackend().load(path)


def test_indices_that_follow_from_shapes_are_held_against_what_they_index(tmp_path: Path) -> None:
    # y = mask[0, 1, .., length of ids - 1]: right only where the mask is as long as the ids.
    nodes = [
        helper.make_node("Shape", ["ids"], ["length"]),
        helper.make_node("Squeeze", ["length"], ["count"]),
        helper.make_node("Range", ["zero", "count", "one"], ["positions"]),
        helper.make_node("Unsqueeze", ["positions", "last"], ["indices"]),
        helper.make_node("GatherND", ["mask", "indices"], ["y"], name="find"),
    ]
    scalars = [numpy_helper.from_array(np.array(value), name) for name, value in (("zero", 0), ("one", 1))]
    path = save(tmp_path / "mask.onnx", nodes, inputs={"ids": ["n"], "mask": ["m"]}, weights={"last": [1]})
    model = onnx.load(path)
    model.graph.initializer.extend(scalars)
    onnx.save(model, path)
    session = OpenVinoBackend().load(path)
    assert session.run({"ids": np.zeros(3, np.int64), "mask": np.array([4, 5, 6])})[0].tolist() == [4, 5, 6]
    with pytest.raises(InvalidArgument, match=r"\(GatherND\): an index points beyond \[2\]"):
        session.run({"ids": np.zeros(3, np.int64), "mask": np.array([4, 5])})


def positions(path: Path) -> Path:
    """Write y = table[0, 1, .., length of ids - 1], as sentence encoders look up positions in a table of 10."""
    nodes = [
        helper.make_node("Shape", ["ids"], ["length"]),
        helper.make_node("Squeeze", ["length"], ["count"]),
        helper.make_node("Range", ["zero", "count", "one"], ["positions"]),
        helper.make_node("Gather", ["table", "positions"], ["y"], name="find"),
    ]
    save(path, nodes, inputs={"ids": ["n"]}, weights={"table": list(range(10))})
    model = onnx.load(path)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(value), name) for name, value in (("zero", 0), ("one", 1))
    )
    onnx.save(model, path)
    return path


def test_run_is_refused_when_there_are_more_positions_than_the_table_has(tmp_path: Path) -> None:
    session = OpenVinoBackend().load(positions(tmp_path / "positions.onnx"))
    assert session.run({"ids": np.zeros(10, np.int64)})[0].tolist() == list(range(10))
    with pytest.raises(InvalidArgument, match=r"\(Gather\): an index points beyond \[10\]"):
        session.run({"ids": np.zeros(12, np.int64)})


def test_constant_index_is_held_against_a_size_that_requests_choose(tmp_path: Path) -> None:
    node = helper.make_node("Gather", ["x", "third"], ["y"], name="find")
    session = OpenVinoBackend().load(save(tmp_path / "third.onnx", [node], inputs={"x": ["n"]}, weights={"third": [2]}))
    assert session.run({"x": np.array([4, 5, 6])})[0].tolist() == [6]
    with pytest.raises(InvalidArgument, match=r"\(Gather\): an index points beyond \[2\]"):
        session.run({"x": np.array([4, 5])})


def test_constant_indices_of_gathernd_are_held_against_a_size_that_requests_choose(tmp_path: Path) -> None:
    node = helper.make_node("GatherND", ["x", "far"], ["y"], name="find")
    path = save(tmp_path / "far.onnx", [node], inputs={"x": ["n"]}, weights={"far": [[2]]})
    session = OpenVinoBackend().load(path)
    assert session.run({"x": np.array([4, 5, 6])})[0].tolist() == [6]
    with pytest.raises(InvalidArgument, match=r"\(GatherND\): an index points beyond \[2\]"):
        session.run({"x": np.array([4, 5])})


def test_load_is_refused_when_indices_are_an_input_that_was_made_larger(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Expand", ["at", "size"], ["wide"]),
        helper.make_node("GatherND", ["x", "wide"], ["y"], name="find"),
    ]
    path = save(tmp_path / "wide.onnx", nodes, inputs={"x": ["n"], "at": [1, 1]}, weights={"size": [3, 1]})
    with pytest.raises(InvalidArgument, match=r"\(GatherND\) takes indices that are computed"):
        OpenVinoBackend().load(path)


def test_load_is_refused_when_what_is_looked_up_was_computed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["ids", "two"], ["shifted"]),
        helper.make_node("Gather", ["table", "shifted"], ["y"], name="find"),
    ]
    weights = {"two": [2], "table": list(range(10))}
    with pytest.raises(InvalidArgument, match=r"\(Gather\) takes indices that are computed"):
        OpenVinoBackend().load(save(tmp_path / "shifted.onnx", nodes, inputs={"ids": ["n"]}, weights=weights))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_load_is_refused_when_requests_say_how_long_sequences_are(tmp_path: Path, kind: str) -> None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    shapes = {"w": (1, gates * 2, 2), "r": (1, gates * 2, 2)}
    weights = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in shapes.items()]
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", "w", "r", "", "lengths"], ["y"], hidden_size=2)],
        "recurrent",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, "n", 2]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["n"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    path = tmp_path / "recurrent.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(InvalidArgument, match=rf"\({kind}Sequence\) takes indices that are computed"):
        OpenVinoBackend().load(path)


@pytest.mark.parametrize("operator", ["CumSum", "If"])
def test_load_is_refused_when_it_is_not_known_what_an_operator_checks(tmp_path: Path, operator: str) -> None:
    if operator == "If":
        then = helper.make_graph(
            [helper.make_node("Identity", ["x"], ["inner"])],
            "branch",
            [],
            [helper.make_tensor_value_info("inner", TensorProto.INT64, None)],
        )
        nodes = [
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Cast", ["sum"], ["which"], to=TensorProto.BOOL),
            helper.make_node("If", ["which"], ["y"], then_branch=then, else_branch=then),
        ]
        path = save(tmp_path / "graph.onnx", nodes, inputs={"x": ["n"]}, weights={})
    else:
        nodes = [helper.make_node("CumSum", ["x", "axis"], ["y"])]
        path = save(tmp_path / "graph.onnx", nodes, inputs={"x": ["n"], "axis": [1]}, weights={})
    with pytest.raises(InvalidArgument, match=rf"\({operator}\): it is not known what OpenVINO checks"):
        OpenVinoBackend().load(path)


@pytest.mark.parametrize("executors", [1, 2])
def test_answers_of_an_earlier_run_are_never_given_when_a_run_fails(tmp_path: Path, executors: int) -> None:
    """Of an operator that fails while it runs, behind the check that keeps it away."""

    class Unchecked(InputChecks):
        def __init__(self) -> None:
            return None

        def check(self, feeds: Mapping[str, Array]) -> tuple[tuple[int, ...], ...]:
            return ((1, 5),)

    nodes = [helper.make_node("ReverseSequence", ["x", "l"], ["y"], batch_axis=0, time_axis=1)]
    path = save(tmp_path / "reverse.onnx", nodes, inputs={"x": [1, 5], "l": [1]}, weights={})
    backend = OpenVinoBackend(executors=executors)
    inputs, outputs = graph_interface(path)
    compiled = backend._core.compile_model(str(path), "CPU", backend._properties(1))
    session = OpenVinoSession(
        compiled,
        backend._package,
        Unchecked(),
        inputs=inputs,
        outputs=outputs,
        requests=executors,
    )
    for _ in range(3):
        assert session.run({"x": np.array([[11, 12, 13, 14, 15]]), "l": np.array([2])})[0].tolist() == [
            [12, 11, 13, 14, 15]
        ]
        with pytest.raises(InvalidArgument, match="the graph refused these inputs") as refused:
            session.run({"x": np.array([[1, 2, 3, 4, 5]]), "l": np.array([9])})
        assert ".cpp" not in refused.value.message


def test_load_is_refused_when_values_decide_a_shape(tmp_path: Path) -> None:
    path = save(tmp_path / "some.onnx", [helper.make_node("NonZero", ["x"], ["y"])], inputs={"x": ["n"]}, weights={})
    with pytest.raises(InvalidArgument, match="depends on values, which OpenVINO does not check"):
        OpenVinoBackend().load(path)


def test_inputs_that_nothing_depends_on_may_be_sent(tmp_path: Path) -> None:
    node = helper.make_node("Neg", ["x"], ["y"])
    path = save(tmp_path / "unused.onnx", [node], inputs={"idle": ["n"], "x": ["n"]}, weights={})
    session = OpenVinoBackend().load(path)
    assert [spec.name for spec in session.inputs] == ["idle", "x"]
    assert session.run({"idle": np.ones(2, np.int64), "x": np.array([3, 4])})[0].tolist() == [-3, -4]


@pytest.mark.parametrize(
    "first",
    [helper.make_node("Identity", ["x"], ["same"]), helper.make_node("Cast", ["x"], ["same"], to=TensorProto.INT64)],
    ids=["Identity", "Cast"],
)
def test_inputs_are_found_when_a_value_of_the_graph_equals_one(tmp_path: Path, first: onnx.NodeProto) -> None:
    path = save(
        tmp_path / "same.onnx", [first, helper.make_node("Neg", ["same"], ["y"])], inputs={"x": ["n"]}, weights={}
    )
    assert OpenVinoBackend().load(path).run({"x": np.array([1, 2])})[0].tolist() == [-1, -2]
    lookup = [first, helper.make_node("Gather", ["table", "same"], ["y"])]
    path = save(tmp_path / "lookup.onnx", lookup, inputs={"x": ["n"]}, weights={"table": [5, 6, 7]})
    session = OpenVinoBackend().load(path)
    assert session.run({"x": np.array([2, 0])})[0].tolist() == [7, 5]
    with pytest.raises(InvalidArgument, match="x: expected values from -3 to 2"):
        session.run({"x": np.array([3])})


def test_float32_is_computed_in_float32(tmp_path: Path) -> None:
    # bfloat16, the default where the processor has it, keeps 8 bits: it would answer 256.
    weight = np.eye(64, dtype=np.float32)
    path = save_one_node(tmp_path / "product.onnx", "MatMul", element=TensorProto.FLOAT, constant=weight)
    session = OpenVinoBackend().load(path)
    x = np.full(64, 257.00003, np.float32)
    assert session.run({"x": x})[0].tolist() == x.tolist()


def test_as_many_requests_are_kept_as_run_at_once(tmp_path: Path) -> None:
    session = OpenVinoBackend(executors=2).load(save_graph(tmp_path / "adder.onnx"))
    for rows in range(1, 30):
        session.run({"x": np.ones((rows, 3), np.float32), "bias": np.ones(3, np.float32)})
    assert len(session._idle) == 1


def test_backend_is_refused_with_the_extra_to_install_when_openvino_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r'pip install "serveprune\[openvino\]"'):
        OpenVinoBackend()


def test_use_is_not_reported_over_the_network(tmp_path: Path) -> None:
    # The reporting package leaves an identity in the home folder as soon as it is imported.
    script = "from serveprune.backends.openvino import OpenVinoBackend; OpenVinoBackend()"
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run(
        [sys.executable, "-c", script], check=True, env={"HOME": str(home), "PYTHONPATH": ":".join(sys.path)}
    )
    assert not (home / "intel").exists()


def test_refusal_names_the_innermost_node_and_no_source() -> None:
    node = "While validating node '{} (a)' with friendly_name '{}':\n"
    outer, inner = node.format("opset1::Add outer", "outer"), node.format("opset8::Gather inner", "inner")
    message = (
        f"Check 'merge' failed at src/core/x.hpp:26:\n{outer}Exception from src/y.cpp:1:\n{inner}Shapes differ.\n\n"
    )
    assert shape_problem(message) == "node inner (Gather): Shapes differ"
    assert shape_problem("Check 'x' failed at src/core/y.cpp:1:\n") == "the shapes do not fit"
