from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from unit.compression.pruning.networks import Network, prune, read

from serveprune.compression.pruning.dependency_graph import DependencyGraph
from serveprune.compression.pruning.observation import observe_sizes


def test_unknown_operator_keeps_what_reaches_it_and_is_reported_once(tmp_path: Path) -> None:
    n = Network()
    x = n.linear(n.input("N", "S", 4), 4, 8, name="a")
    for name in ("b", "c"):
        x = n.node("Einsum", x, n.weight(8, 8, name=name), equation="nsc,cd->nsd")
    x = n.linear(n.node("Relu", n.linear(x, 8, 6, name="d")), 6, 3, name="e")
    graph = read(n.save(tmp_path / "network.onnx", x), workspace=tmp_path)
    assert graph.unknown_operators == ("Einsum",)
    assert dict(graph.why_pinned())["not understood, kept: Einsum"] >= 3
    assert [group.name for group in graph.groups] == ["d"]


def test_nothing_prunable_is_explained(tmp_path: Path) -> None:
    n = Network()
    x = n.node("Softmax", n.linear(n.input("N", "S", 4), 4, 8, name="a"))
    graph = read(n.save(tmp_path / "network.onnx", n.linear(x, 8, 3, name="b")), workspace=tmp_path)
    assert graph.groups == ()
    description = graph.describe()
    assert "nothing can be pruned" in description
    assert "taken as a whole by Softmax" in description
    assert "is an output of the graph" in description


def test_description_names_groups_and_what_they_own(tmp_path: Path) -> None:
    n = Network()
    x = n.conv(n.conv(n.input("N", 3, 8, 8), 3, 8, name="a"), 8, 6, name="b")
    graph = read(n.save(tmp_path / "network.onnx", n.pooled_head(x, 6)), workspace=tmp_path)
    assert graph.describe().splitlines()[:2] == [
        "a: 8 channels: a[0], a.bias[0], b[1]",
        "b: 6 channels: b[0], b.bias[0], head[1]",
    ]


def test_groups_on_one_weight_have_names_of_their_own(tmp_path: Path) -> None:
    n = Network()
    parts = n.node("Split", n.linear(n.input("N", "S", 4), 4, 8, name="a"), n.integers(5, 3), outputs=2, axis=-1)
    both = [n.linear(part, width, 2, name=f"b{width}") for part, width in zip(parts, (5, 3), strict=True)]
    graph = read(n.save(tmp_path / "network.onnx", n.node("Add", *both)), workspace=tmp_path)
    assert [(group.name, group.width) for group in graph.groups] == [("a", 5), ("a:2", 3)]


def test_channels_without_a_reader_that_sums_them_are_no_group(tmp_path: Path) -> None:
    n = Network()
    x = n.linear(n.input("N", "S", 4), 4, 8, name="a")
    n.node("Relu", n.linear(x, 8, 5, name="unread"))
    graph = read(n.save(tmp_path / "network.onnx", n.linear(x, 8, 2, name="b")), workspace=tmp_path)
    assert [group.name for group in graph.groups] == ["a"]


def test_conv_before_a_flattened_linear_is_of_kind_channels(tmp_path: Path) -> None:
    n = Network()
    x = n.node("Flatten", n.conv(n.input("N", 3, 4, 4), 3, 8, name="a"))
    graph = read(n.save(tmp_path / "network.onnx", n.gemm(n.node("Relu", x), 128, 2, name="b")), workspace=tmp_path)
    assert [(group.kind, group.width) for group in graph.groups] == [("channels", 8)]


@pytest.mark.parametrize("operator", ["If", "Loop"])
def test_value_used_inside_a_body_is_kept(operator: str, tmp_path: Path) -> None:
    n = Network()
    x = n.input("N", "S", 4)
    a = n.linear(x, 4, 8, name="a")
    b = n.linear(x, 4, 8, name="b")
    value = helper.make_tensor_value_info
    negated = helper.make_node("Neg", [a], ["negated"])
    if operator == "If":
        branches = {
            name: helper.make_graph(
                [helper.make_node(op, [a], [f"{name}_value"])], name, [], [value(f"{name}_value", 1, None)]
            )
            for name, op in (("then_branch", "Neg"), ("else_branch", "Abs"))
        }
        condition = n.node("Greater", n.node("ReduceSum", x, keepdims=0), n.constant(np.float32(0)))
        inner = n.node("If", condition, then_branch=branches["then_branch"], else_branch=branches["else_branch"])
    else:
        body = helper.make_graph(
            [
                negated,
                helper.make_node("Identity", ["go"], ["go_on"]),
                helper.make_node("Add", ["sum", "negated"], ["more"]),
            ],
            "body",
            [value("step", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("sum", 1, None)],
            [value("go_on", TensorProto.BOOL, []), value("more", 1, None)],
        )
        inner = n.node("Loop", n.constant(np.int64(2)), "", n.linear(x, 4, 8, name="start"), body=body)
    output = n.linear(n.node("Relu", b), 8, 3, name="head", bias=False)
    output = n.node("Add", output, n.linear(inner, 8, 3, name="c", bias=False))
    path = n.save(tmp_path / "network.onnx", output)
    trial = prune(path, workspace=tmp_path)
    assert trial.groups == {(8, frozenset({("b", 1), ("head", 0)}))}
    assert trial.pinned_because("a", 1) == f"used inside the body of {operator}"


def test_free_part_of_a_concatenation_shrinks_beside_a_pinned_one(tmp_path: Path) -> None:
    n = Network()
    x = n.input("N", "S", 4)
    kept = n.node("Softmax", n.linear(x, 4, 6, name="kept"))
    joined = n.node("Concat", kept, n.linear(x, 4, 5, name="free"), x, axis=-1)
    trial = prune(n.save(tmp_path / "network.onnx", n.linear(joined, 15, 3, name="b")), workspace=tmp_path)
    assert trial.groups == {(5, frozenset({("free", 1), ("b", 0)}))}
    assert trial.after["b"] == (13, 3)
    assert trial.after["kept"] == (4, 6)


def test_one_of_two_prunable_axes_is_kept_when_a_flatten_joins_them(tmp_path: Path) -> None:
    n = Network()
    tokens = n.node("MatMul", n.weight(10, 6, name="tokens"), n.input("N", 6, 4))
    both = n.node("Flatten", n.node("Relu", n.linear(tokens, 4, 8, name="channels")))
    trial = prune(n.save(tmp_path / "network.onnx", n.gemm(both, 80, 3, name="b")), workspace=tmp_path)
    assert trial.groups == {(10, frozenset({("tokens", 0), ("b", 1)}))}
    assert (trial.pinned_because("channels", 1) or "").startswith("joined with another prunable axis")


def test_expand_keeps_the_one_of_a_computed_shape(tmp_path: Path) -> None:
    n = Network()
    x = n.input("N", "S", 4)
    rows = n.node("Slice", n.node("Shape", x), n.integers(0), n.integers(2))
    mean = n.node("ReduceMean", n.linear(x, 4, 8, name="a"), n.integers(1))
    wide = n.node("Expand", mean, n.node("Concat", rows, n.integers(1), axis=0))
    trial = prune(n.save(tmp_path / "network.onnx", n.linear(wide, 8, 3, name="b")), workspace=tmp_path)
    assert trial.groups == {(8, frozenset({("a", 1), ("b", 0)}))}


def test_channels_are_kept_where_space_is_expected(tmp_path: Path) -> None:
    n = Network()
    rows = n.linear(n.input("N", 3, 8, 4), 4, 8, name="a")
    path = n.save(tmp_path / "network.onnx", n.pooled_head(n.conv(rows, 3, 5, name="b"), 5))
    trial = prune(path, workspace=tmp_path)
    assert trial.groups == {(5, frozenset({("b", 0), ("head", 1)}))}
    assert (trial.pinned_because("a", 1) or "").startswith("space of Conv")


def test_half_precision_network_is_pruned(tmp_path: Path) -> None:
    n = Network()
    x = n.node("Cast", n.input("N", 4), to=TensorProto.FLOAT16)
    rng = np.random.default_rng(0)
    for index, (inputs, outputs) in enumerate([(4, 8), (8, 3)]):
        weight = n.constant(rng.normal(size=(inputs, outputs)).astype(np.float16), name=f"w{index}")
        x = n.node("Relu", n.node("MatMul", x, weight))
    path = n.save(tmp_path / "network.onnx", n.node("Cast", x, to=TensorProto.FLOAT))
    model = ir.load(path)
    graph = DependencyGraph(model, observe_sizes(model, workspace=tmp_path))
    assert [(group.name, group.width) for group in graph.groups] == [("w0", 8)]


def test_large_vocabulary_is_pinned_without_a_group(tmp_path: Path) -> None:
    n = Network()
    x = n.node("Gather", n.weight(60_000, 8, name="table"), n.input("N", "S", integers=True))
    graph = read(n.save(tmp_path / "network.onnx", n.linear(x, 8, 60_000, name="b")), workspace=tmp_path)
    assert [(group.name, group.width) for group in graph.groups] == [("table", 8)]
    assert {(pin.name, pin.axis, pin.width) for pin in graph.pinned} >= {("table", 0, 60_000), ("b", 1, 60_000)}


def test_dynamic_size_is_not_taken_for_channels_when_it_equals_them(tmp_path: Path) -> None:
    n = Network()
    x = n.input("N", "S", 9)  # one of the sizes that sequences are tried at
    scores = n.node("MatMul", x, n.node("Transpose", n.linear(x, 9, 9, name="a"), perm=[0, 2, 1]))
    path = n.save(tmp_path / "network.onnx", n.node("MatMul", n.node("Relu", scores), x))
    assert prune(path, workspace=tmp_path).groups == set()


def test_observation_has_no_value_of_a_sequence_type(tmp_path: Path) -> None:
    n = Network()
    x = n.linear(n.input("N", 4), 4, 8, name="a")
    parts = n.node("SplitToSequence", x, n.constant(np.int64(4)), axis=1)
    x = n.node("SequenceAt", parts, n.constant(np.int64(0)))
    graph = read(n.save(tmp_path / "network.onnx", n.gemm(x, 4, 2, name="b")), workspace=tmp_path)
    assert graph.unknown_operators == ("SequenceAt", "SplitToSequence")
    assert graph.groups == ()
    assert onnx.load(tmp_path / "observed.onnx").graph.output
