from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend, OnnxRuntimeSession
from serveprune.errors import InvalidArgument
from serveprune.models.warm_up import find_padding, fixed_length, has_dynamic_rows, rows_are_apart, time_batches
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import Array, TensorSpec
from serveprune.scheduling.padding import Padding

WIDTH = 4


def node(operator: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(operator, inputs.split(), [output], **attributes)


EMBED = (
    node("Gather", "embedding ids", "embedded"),
    node("Cast", "attention_mask", "mask", to=TensorProto.FLOAT),
    node("Unsqueeze", "mask last", "columns"),
)
MASKED = (*EMBED, node("Mul", "embedded columns", "tokens"))
MEAN_OF_MASKED = (
    *MASKED,
    node("ReduceSum", "tokens second", "sum", keepdims=0),
    node("ReduceSum", "columns second", "count", keepdims=0),
    node("Div", "sum count", "pooled"),
)
MEAN_OF_ALL = (*MASKED, node("ReduceMean", "embedded second", "pooled", keepdims=0))
MINUS_THE_BATCH = (*MASKED, node("ReduceMean", "tokens first", "level"), node("Sub", "tokens level", "pooled"))
PRODUCTS = (
    *MASKED,
    node("Transpose", "tokens", "turned", perm=[0, 2, 1]),
    node("MatMul", "tokens turned", "pooled"),
)


def encoder(tmp_path: Path, nodes: Sequence[NodeProto], *, mask: str = "attention_mask") -> OnnxRuntimeSession:
    """Load a graph of token ids and a mask, with an output for each token and one of them pooled somehow."""
    renamed = [
        helper.make_node(
            each.op_type,
            [mask if name == "attention_mask" else name for name in each.input],
            list(each.output),
            **{attribute.name: helper.get_attribute_value(attribute) for attribute in each.attribute},
        )
        for each in nodes
    ]
    constants = {
        "embedding": np.random.default_rng(0).normal(size=(50, WIDTH)).astype(np.float32),
        "first": np.array([0]),
        "second": np.array([1]),
        "last": np.array([2]),
    }
    used = {name for each in renamed for name in each.input}
    graph = helper.make_graph(
        renamed,
        "encoder",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", "length"]) for name in ("ids", mask)],
        [
            helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["rows", "length", WIDTH]),
            helper.make_tensor_value_info("pooled", TensorProto.FLOAT, None),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used],
    )
    path = tmp_path / "encoder.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return OnnxRuntimeBackend().load(path)


def test_padding_is_found_where_a_mask_says_what_counts(tmp_path: Path) -> None:
    session = encoder(tmp_path, MEAN_OF_MASKED)
    assert find_padding(session) == Padding({"ids": 0, "attention_mask": 0}, frozenset({"tokens"}))


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param(MEAN_OF_ALL, id="one output does not look at the mask"),
        pytest.param(MINUS_THE_BATCH, id="rows are mixed"),
        pytest.param(PRODUCTS, id="one output grows on two axes"),
    ],
)
def test_nothing_is_padded_where_it_would_change_an_answer(tmp_path: Path, nodes: Sequence[NodeProto]) -> None:
    assert find_padding(encoder(tmp_path, nodes)) is None


def test_nothing_is_padded_where_no_input_is_called_a_mask(tmp_path: Path) -> None:
    assert find_padding(encoder(tmp_path, MEAN_OF_MASKED, mask="weights")) is None


@pytest.mark.parametrize(("nodes", "apart"), [(MEAN_OF_MASKED, True), (MEAN_OF_ALL, True), (MINUS_THE_BATCH, False)])
def test_rows_are_apart_where_each_gets_the_same_answer_alone(
    tmp_path: Path, nodes: Sequence[NodeProto], apart: bool
) -> None:
    assert rows_are_apart(encoder(tmp_path, nodes)) is apart


class Recorded:
    """A session around one function, which remembers what it was run on."""

    def __init__(
        self, *, function: Callable[[Array], Array] = np.copy, shape: tuple[int, ...] = (-1, -1), in_caller: bool = True
    ) -> None:
        self.function, self.computes_in_caller = function, in_caller
        self.inputs = self.outputs = (TensorSpec("x", Datatype.FP32, shape),)
        self.shapes: list[tuple[int, ...]] = []

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        self.shapes.append(feeds["x"].shape)
        return [self.function(feeds["x"])]

    def close(self) -> None:
        return None


PADDED = Padding({"x": 0}, frozenset())


def time(
    session: Recorded,
    *,
    padding: Padding | None = None,
    rows: int = 1,
    elements: int | None = None,
    budget: float = 1e6,
) -> set[tuple[int, int]]:
    table = time_batches(session, padding=padding, max_rows=rows, max_elements=elements, budget_seconds=budget)
    assert all(seconds >= 0 for seconds in table.measured.values())
    return set(table.measured)


@pytest.mark.parametrize("in_caller", [True, False])
def test_batches_are_timed_over_rows(in_caller: bool) -> None:
    sizes = time(Recorded(shape=(-1, 3, 2), in_caller=in_caller), rows=12)
    assert sizes == {(rows, 6) for rows in (1, 2, 4, 8, 12)}


def test_batches_are_timed_over_rows_and_lengths_where_they_are_padded() -> None:
    assert time(Recorded(), padding=PADDED, rows=4) == {
        (rows, length) for rows in (1, 2, 4) for length in (8, 32, 128, 512)
    }


def test_batches_larger_than_any_there_will_be_are_not_timed() -> None:
    sizes = time(Recorded(), padding=PADDED, rows=4, elements=64)
    assert sizes == {(1, 8), (2, 8), (4, 8), (1, 32), (2, 32), (1, 128), (1, 512)}


def test_only_the_smallest_batch_is_timed_when_there_is_no_time() -> None:
    session = Recorded()
    assert time(session, padding=PADDED, rows=4, budget=0.0) == {(1, 8)}
    assert len(session.shapes) >= 2


def test_lengths_that_the_graph_refuses_are_left_out() -> None:
    def refuse_long(x: Array) -> Array:
        if x.shape[1] > 32:
            raise InvalidArgument("there are 32 positions")
        return x

    assert time(Recorded(function=refuse_long), padding=PADDED, rows=2) == {(1, 8), (2, 8), (1, 32), (2, 32)}


@pytest.mark.parametrize(("in_caller", "clock"), [(True, "thread_time"), (False, "perf_counter")])
def test_time_of_a_batch_is_the_least_that_was_seen(
    monkeypatch: pytest.MonkeyPatch, in_caller: bool, clock: str
) -> None:
    """On the clock of the thread if that computes, for then others do not count."""
    now, runs = 0.0, iter((5.0, 0.25, 7.0))

    def slow(x: Array) -> Array:
        nonlocal now
        now += next(runs)
        return x

    monkeypatch.setattr(f"serveprune.models.warm_up.time.{clock}", lambda: now)
    session = Recorded(function=slow, in_caller=in_caller)
    table = time_batches(session, padding=None, max_rows=1, max_elements=None, budget_seconds=1.0)
    assert table.measured == {(1, 8): 0.25}


@pytest.mark.parametrize(
    ("shapes", "length", "dynamic"),
    [
        ([(-1, 3, 4), (-1, 5)], 12, True),
        ([(-1,)], 1, True),
        ([(-1, -1)], None, True),
        ([(-1, 3), (-1, -1)], None, True),
        ([(2, 3)], 3, False),
        ([()], 1, False),
    ],
)
def test_length_of_rows_is_fixed_where_the_graph_fixes_all_sizes(
    shapes: list[tuple[int, ...]], length: int | None, dynamic: bool
) -> None:
    specs = tuple(TensorSpec(f"x{index}", Datatype.FP32, shape) for index, shape in enumerate(shapes))
    assert fixed_length(specs) == length
    session = Recorded()
    session.inputs = session.outputs = specs  # type: ignore[assignment]
    assert has_dynamic_rows(session) is dynamic
