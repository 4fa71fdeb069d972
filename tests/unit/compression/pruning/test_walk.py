from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from unit.compression.graphs import save

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.compression.pruning.walk import Halt, Walk
from serveprune.oip.tensor import Array


def shortcut_graph(path: Path) -> Path:
    """x -> a -> Relu "hidden" -> b -> "long"; hidden -> s -> "short"; y = long + short, shortcut computed last."""
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {name: rng.standard_normal((4, 4)).astype(np.float32) for name in "abs"}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["first"], name="first"),
        helper.make_node("Relu", ["first"], ["hidden"], name="relu"),
        helper.make_node("MatMul", ["hidden", "b"], ["long"], name="long"),
        helper.make_node("MatMul", ["hidden", "s"], ["short"], name="short"),
        helper.make_node("Add", ["long", "short"], ["y"], name="sum"),
    ]
    return save(path, nodes, weights, inputs={"x": (TensorProto.FLOAT, ["n", 4])}, outputs={"y": ["n", 4]})


@pytest.fixture
def model(tmp_path: Path) -> ir.Model:
    return ir.load(shortcut_graph(tmp_path / "net.onnx"))


@pytest.fixture
def batches() -> list[dict[str, Array]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((rows, 4)).astype(np.float32)} for rows in (3, 5, 2)]


def scale(model: ir.Model, name: str, factor: float) -> None:
    value = model.graph.initializers[name]
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(factor), name=name)


def values(model: ir.Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """All values of the graph, worked out with numpy."""
    weight = {name: value.const_value.numpy() for name, value in model.graph.initializers.items() if value.const_value}
    hidden = np.maximum(feeds["x"] @ weight["a"], 0)
    long, short = hidden @ weight["b"], hidden @ weight["s"]
    return {"hidden": hidden, "long": long, "short": short, "y": long + short}


def taken(walk: Walk) -> list[dict[str, Array]]:
    return list(walk.advance())


@pytest.mark.parametrize("most_held_bytes", [2**20, 100, 0])
def test_walk_shows_what_a_whole_run_gives_when_weights_change_ahead_of_it(
    tmp_path: Path, model: ir.Model, batches: list[dict[str, Array]], most_held_bytes: int
) -> None:
    halts = [
        Halt(("hidden",), before="first"),
        # The other term of the sum comes from a node that may yet change.
        Halt(("hidden", "short"), before="long"),
        Halt(("hidden", "long"), before="short"),
        Halt(("y",)),
    ]
    walk = Walk(model, halts, batches=batches, workspace=tmp_path, threads=1, most_held_bytes=most_held_bytes)
    for halt, changed in zip(halts, ("a", "b", "s", None), strict=True):
        seen = taken(walk)
        assert len(seen) == len(batches)
        for shown, feeds in zip(seen, batches, strict=True):
            assert set(shown) == set(halt.values)
            for name, array in shown.items():
                np.testing.assert_allclose(array, values(model, feeds)[name], rtol=1e-4, atol=1e-5)
        if changed is not None:
            scale(model, changed, -0.7)
    assert not list(tmp_path.glob("held-*"))


def test_walk_does_not_compute_again_what_lies_behind_it(
    tmp_path: Path, model: ir.Model, batches: list[dict[str, Array]]
) -> None:
    walk = Walk(model, [Halt(("hidden",), before="long"), Halt(("y",))], batches=batches, workspace=tmp_path, threads=1)
    taken(walk)
    expected = [values(model, feeds)["y"] for feeds in batches]
    scale(model, "a", 100.0)
    for shown, wanted in zip(taken(walk), expected, strict=True):
        np.testing.assert_allclose(shown["y"], wanted, rtol=1e-4, atol=1e-5)


def test_walk_sees_nodes_that_were_added_at_a_halt(
    tmp_path: Path, model: ir.Model, batches: list[dict[str, Array]]
) -> None:
    walk = Walk(model, [Halt(("hidden",), before="long"), Halt(("y",))], batches=batches, workspace=tmp_path, threads=1)
    taken(walk)
    (node,) = (node for node in model.graph if node.name == "long")
    users = list(node.outputs[0].uses())
    added = ir.node("Neg", [node.outputs[0]])
    added.outputs[0].name = "negative"
    for user, slot in users:
        user.replace_input_with(slot, added.outputs[0])
    model.graph.insert_after(node, added)
    for shown, feeds in zip(taken(walk), batches, strict=True):
        known = values(model, feeds)
        np.testing.assert_allclose(shown["y"], known["short"] - known["long"], rtol=1e-4, atol=1e-5)


def test_look_ahead_gives_the_answers_with_other_constants_and_goes_nowhere(
    tmp_path: Path, model: ir.Model, batches: list[dict[str, Array]]
) -> None:
    walk = Walk(model, [Halt(("hidden",), before="long"), Halt(("y",))], batches=batches, workspace=tmp_path, threads=1)
    taken(walk)
    for shown, feeds in zip(walk.look_ahead({"b": np.zeros((4, 4), np.float32)}), batches, strict=True):
        np.testing.assert_allclose(shown["y"], values(model, feeds)["short"], rtol=1e-4, atol=1e-5)
    for shown, feeds in zip(taken(walk), batches, strict=True):
        np.testing.assert_allclose(shown["y"], values(model, feeds)["y"], rtol=1e-4, atol=1e-5)


def test_walk_takes_along_what_a_subgraph_reads_from_outside(tmp_path: Path) -> None:
    branches = {
        name: helper.make_graph(
            [helper.make_node("Mul", ["doubled", factor], [f"{name}.out"], name=name)],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}.out", TensorProto.FLOAT, ["n"])],
        )
        for name, factor in (("then", "two"), ("otherwise", "three"))
    }
    nodes = [
        helper.make_node("Add", ["x", "x"], ["doubled"], name="double"),
        helper.make_node("ReduceSum", ["x"], ["sum"], name="sum", keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"], name="positive"),
        helper.make_node(
            "If", ["positive"], ["y"], name="if", then_branch=branches["then"], else_branch=branches["otherwise"]
        ),
    ]
    constants: dict[str, Array] = {
        "two": np.full(1, 2, np.float32),
        "three": np.full(1, 3, np.float32),
        "zero": np.zeros((), np.float32),
    }
    path = save(tmp_path / "if.onnx", nodes, constants, inputs={"x": (TensorProto.FLOAT, ["n"])}, outputs={"y": ["n"]})
    batches: list[dict[str, Array]] = [{"x": np.ones(3, np.float32)}, {"x": -np.ones(2, np.float32)}]
    halts = [Halt(("positive",), before="y"), Halt(("y",))]
    walk = Walk(ir.load(path), halts, batches=batches, workspace=tmp_path, threads=1)
    assert [bool(shown["positive"]) for shown in taken(walk)] == [True, False]
    whole = OnnxRuntimeBackend().load(path)
    for shown, feeds in zip(taken(walk), batches, strict=True):
        np.testing.assert_array_equal(shown["y"], whole.run(feeds)[0])
    np.testing.assert_array_equal(whole.run(batches[1])[0], np.full(2, -6, np.float32))
