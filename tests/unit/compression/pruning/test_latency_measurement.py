import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from unit.compression.graphs import IMAGE_SHAPE, convolutional_graph, save

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend, OnnxRuntimeSession
from serveprune.compression.pruning.dependency_graph import DependencyGraph
from serveprune.compression.pruning.footprint_cost import Footprint, footprint_cost
from serveprune.compression.pruning.fragment import fragments, narrowed, standalone, structure_digest
from serveprune.compression.pruning.group_axes import GroupAxes
from serveprune.compression.pruning.latency_measurement import calibration, measure_latency_table
from serveprune.compression.pruning.latency_table import LatencyTable
from serveprune.compression.pruning.observation import Observation, observe
from serveprune.compression.pruning.stopwatch import Stopwatch
from serveprune.oip.tensor import Array

Feeds = Callable[[int], dict[str, Array]]


class CountingBackend(OnnxRuntimeBackend):
    """Counts what it loads."""

    loads = 0

    def load(self, path: Path, *, threads: int = 1) -> OnnxRuntimeSession:
        self.loads += 1
        return super().load(path, threads=threads)


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


def image_feeds(batch: int) -> dict[str, Array]:
    return {"image": noise(batch, *IMAGE_SHAPE)}


def vector_feeds(batch: int) -> dict[str, Array]:
    return {"x": noise(batch, 24)}


def two_equal_layers(path: Path) -> Path:
    """Two residual feed-forward layers of the same shapes."""
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, Array] = {}
    value = "x"
    for layer in ("a", "b"):
        weights |= {
            f"{layer}.up": noise(24, 64, seed=1),
            f"{layer}.bias": noise(64),
            f"{layer}.down": noise(64, 24),
        }
        nodes += [
            helper.make_node("MatMul", [value, f"{layer}.up"], [f"{layer}.h"]),
            helper.make_node("Add", [f"{layer}.h", f"{layer}.bias"], [f"{layer}.sum"]),
            helper.make_node("Relu", [f"{layer}.sum"], [f"{layer}.relu"]),
            helper.make_node("MatMul", [f"{layer}.relu", f"{layer}.down"], [f"{layer}.out"]),
            helper.make_node("Add", [f"{layer}.out", value], [f"{layer}.y"]),
        ]
        value = f"{layer}.y"
    shape: list[int | str] = ["batch", 24]
    return save(path, nodes, weights, inputs={"x": (TensorProto.FLOAT, shape)}, outputs={value: shape})


def joined_branches(path: Path) -> Path:
    """Three convolutions side by side, joined, and one that reads them all."""
    names = ("a", "b", "c")
    weights = {f"{name}.weight": noise(16, 3, 1, 1) for name in names} | {"d.weight": noise(32, 48, 1, 1)}
    weights["e.weight"] = noise(3, 32, 1, 1)
    nodes = [helper.make_node("Conv", ["image", f"{name}.weight"], [name]) for name in names]
    nodes += [
        helper.make_node("Concat", names, ["joined"], axis=1),
        helper.make_node("Conv", ["joined", "d.weight"], ["d"]),
        helper.make_node("Conv", ["d", "e.weight"], ["y"]),
    ]
    shape: list[int | str] = ["batch", *IMAGE_SHAPE]
    return save(path, nodes, weights, inputs={"image": (TensorProto.FLOAT, shape)}, outputs={"y": shape})


def understood(path: Path, feeds: Feeds) -> tuple[ir.Model, DependencyGraph, Observation]:
    model = ir.load(path)
    observation = observe(model, [feeds(2), feeds(5)], workspace=path.parent)
    return model, DependencyGraph(model, observation), observation


def candidates(graph: DependencyGraph) -> list[list[int]]:
    return [[*range(8, group.width, 8), group.width] for group in graph.groups]


def removed(graph: DependencyGraph, widths: list[int]) -> list[int]:
    parts = [group.units[width:].tolist() for group, width in zip(graph.groups, widths, strict=True)]
    return [unit for part in parts for unit in part]


def measured(path: Path, feeds: Feeds, stopwatch: Stopwatch) -> LatencyTable:
    model, graph, _ = understood(path, feeds)
    return measure_latency_table(
        model, graph, candidates(graph), feeds=feeds(4), stopwatch=stopwatch, budget_seconds=0.1
    )


GRAPHS = pytest.mark.parametrize(
    ("build", "feeds"),
    [(convolutional_graph, image_feeds), (two_equal_layers, vector_feeds), (joined_branches, image_feeds)],
)


@GRAPHS
def test_fragments_compute_what_the_whole_model_computes(
    tmp_path: Path, build: Callable[[Path], Path], feeds: Feeds
) -> None:
    path = build(tmp_path / "model.onnx")
    model, graph, _ = understood(path, feeds)
    axes = GroupAxes(graph)
    proto = onnx.load(path)
    names = [name for node in proto.graph.node for name in node.output]
    proto.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in {output.name for output in proto.graph.output}
    )
    onnx.save(proto, tmp_path / "all.onnx")
    backend = OnnxRuntimeBackend()
    session = backend.load(tmp_path / "all.onnx")
    whole = dict(zip(names, session.run(feeds(3), outputs=names), strict=True)) | feeds(3)
    found = fragments(model.graph, axes)
    held = [id(node) for fragment in found for node in fragment.nodes]
    assert sorted(held) == sorted(id(node) for node in model.graph if axes.touching(node))
    for fragment in found:
        given = {value.name or "": whole[value.name or ""] for value in fragment.inputs}
        ir.save(standalone(fragment, model, feeds=given), tmp_path / "fragment.onnx")
        alone = backend.load(tmp_path / "fragment.onnx").run(given)
        for value, array in zip(fragment.outputs, alone, strict=True):
            np.testing.assert_allclose(array, whole[value.name or ""], rtol=1e-4, atol=1e-5)


def test_normalization_activation_and_residual_go_with_their_convolution(tmp_path: Path) -> None:
    model, graph, _ = understood(convolutional_graph(tmp_path / "model.onnx"), image_feeds)
    (fragment,) = fragments(model.graph, GroupAxes(graph))
    # One group: the trunk, which both convolutions write and the head reads.
    assert [node.op_type for node in fragment.nodes] == [node.op_type for node in model.graph]


def test_structure_digest_is_equal_for_equal_layers_and_not_for_narrower_ones(tmp_path: Path) -> None:
    model, graph, _ = understood(two_equal_layers(tmp_path / "model.onnx"), vector_feeds)
    given = {name: noise(4, 24) for name in ("x", "a.y")}
    first, second = (standalone(fragment, model, feeds=given) for fragment in fragments(model.graph, GroupAxes(graph)))
    assert structure_digest(first.graph) == structure_digest(second.graph)
    narrow, _ = narrowed(first, graph, removed=removed(graph, [32, 64]), feeds={"x": given["x"]})
    assert structure_digest(narrow.graph) != structure_digest(first.graph)


@GRAPHS
def test_footprint_counts_what_surgery_leaves(tmp_path: Path, build: Callable[[Path], Path], feeds: Feeds) -> None:
    model, graph, observation = understood(build(tmp_path / "model.onnx"), feeds)
    axes = GroupAxes(graph)
    widths = [group.width // 2 for group in graph.groups]
    small, _ = narrowed(model, graph, removed=removed(graph, widths), feeds=feeds(3))
    left = [value.const_value.numpy() for value in small.graph.initializers.values() if value.const_value]
    for kind, expected in left_by_kind(left).items():
        cost = footprint_cost(model, axes, shapes=observation.first, kind=kind)
        assert cost.total(np.array(widths)) == expected
    small_observation = observe(small, [feeds(2), feeds(5)], workspace=tmp_path)
    small_graph = DependencyGraph(small, small_observation)
    before = footprint_cost(model, axes, shapes=observation.first, kind="flops")
    after = footprint_cost(small, GroupAxes(small_graph), shapes=small_observation.first, kind="flops")
    assert before.total(np.array(widths)) == pytest.approx(after.total(after.dense))
    assert after.total(after.dense) < before.total(before.dense)


def left_by_kind(constants: list[Array]) -> dict[Footprint, int]:
    return {
        "parameters": sum(array.size for array in constants),
        "bytes": sum(array.nbytes for array in constants),
    }


def test_multiplications_are_those_of_the_textbook(tmp_path: Path) -> None:
    model, graph, observation = understood(convolutional_graph(tmp_path / "model.onnx"), image_feeds)
    cost = footprint_cost(model, GroupAxes(graph), shapes=observation.first, kind="flops")
    batch, places = 2, 16 * 16
    expected = batch * (places * (32 * 3 * 9 + 32 * 32 * 9) + 32 * 10)
    assert cost.total(cost.dense) == expected


@GRAPHS
def test_table_is_made_for_the_batch_and_rises_with_every_width(
    tmp_path: Path, build: Callable[[Path], Path], feeds: Feeds
) -> None:
    table = measured(build(tmp_path / "model.onnx"), feeds, Stopwatch(OnnxRuntimeBackend(), 1, tmp_path))
    dense = table.dense
    assert table.dense_ms > 0
    assert table.total(dense) > 0
    for group, width in enumerate(dense.tolist()):
        times = table.milliseconds_by_width(group, candidates=[8, width // 2, width])
        assert (np.diff(times) >= 0).all()
    assert not list(tmp_path.glob("timed*"))


def test_equal_layers_are_timed_once(tmp_path: Path) -> None:
    backend = CountingBackend()
    table = measured(two_equal_layers(tmp_path / "model.onnx"), vector_feeds, Stopwatch(backend, 1, tmp_path))
    assert np.array_equal(table.fragments[0].milliseconds, table.fragments[1].milliseconds)
    # The model once for its values, eight widths of one layer, and the model at three allocations.
    assert backend.loads == 1 + 8 + 3


def test_second_table_times_nothing_when_there_is_a_cache(tmp_path: Path) -> None:
    path, cache = two_equal_layers(tmp_path / "model.onnx"), tmp_path / "times"
    first = measured(path, vector_feeds, Stopwatch(OnnxRuntimeBackend(), 1, tmp_path, cache=cache))
    backend = CountingBackend()
    second = measured(path, vector_feeds, Stopwatch(backend, 1, tmp_path, cache=cache))
    assert backend.loads == 1
    assert second.calibration == first.calibration
    other_threads = CountingBackend()
    measured(path, vector_feeds, Stopwatch(other_threads, 2, tmp_path, cache=cache))
    assert other_threads.loads > 1


@pytest.mark.parametrize("content", ["not json", "{}", json.dumps({"milliseconds": [1.0]}), '{"milliseconds": null}'])
def test_times_are_taken_anew_when_the_cache_is_damaged(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, cache = two_equal_layers(tmp_path / "model.onnx"), tmp_path / "times"
    stopwatch = Stopwatch(OnnxRuntimeBackend(), 1, tmp_path, cache=cache)
    measured(path, vector_feeds, stopwatch)
    entries = sorted(cache.iterdir())
    assert len(entries) == 2
    for entry in entries:
        entry.write_text(content, encoding="utf-8")
    measured(path, vector_feeds, stopwatch)
    assert "taken anew" in caplog.text
    assert all(len(json.loads(entry.read_text(encoding="utf-8"))["milliseconds"]) > 1 for entry in entries)


def test_calibration_leaves_out_narrower_models_that_were_not_faster() -> None:
    assert calibration([1, 2, 3], [5, 9, 8]) == ((1, 5), (3, 8))
    assert calibration([1, 2, 3], [5, 6, 8]) == ((1, 5), (2, 6), (3, 8))
