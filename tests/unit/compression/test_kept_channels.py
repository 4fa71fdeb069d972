import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from unit.compression.contexts import pass_context
from unit.compression.graphs import convolutional_graph, images

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.compression.kept_channels import METADATA_KEY, KeptPositions, read_kept_channels, write_kept_channels
from serveprune.compression.passes import apply_pass
from serveprune.config.pruning import PruneOptions, PruneTarget
from serveprune.oip.tensor import Array


def model_with(*values: str) -> ir.Model:
    nodes = []
    for name in values:
        node = ir.node("Constant", [], attributes={"value_float": 1.0})
        node.outputs[0].name = name
        nodes.append(node)
    return ir.Model(ir.Graph([], [], nodes=nodes, opset_imports={"": 18}), ir_version=8)


def positions(length: int, *kept: int) -> KeptPositions:
    return KeptPositions(length, np.array(kept, np.int64))


def listed(model: ir.Model) -> dict[str, dict[int, tuple[int, list[int]]]]:
    return {
        name: {axis: (kept.length, kept.positions.tolist()) for axis, kept in axes.items()}
        for name, axes in read_kept_channels(model).items()
    }


def test_channels_are_read_as_they_were_written() -> None:
    model = model_with("a", "b")
    write_kept_channels(
        model, {"a": {1: positions(12, 0, 3, 11), 2: positions(3, 1)}, "b": {1: positions(12, 0, 3, 11)}}
    )
    assert listed(model) == {"a": {1: (12, [0, 3, 11]), 2: (3, [1])}, "b": {1: (12, [0, 3, 11])}}
    # What two values share is written once.
    assert len(json.loads(model.metadata_props[METADATA_KEY])["axes"]) == 2


def test_channels_of_several_removals_are_counted_in_those_of_the_first_graph() -> None:
    model = model_with("a", "b", "c")
    write_kept_channels(model, {"a": {1: positions(6, 1, 2, 4, 5)}, "b": {1: positions(4, 0)}})
    write_kept_channels(model, {"a": {1: positions(4, 0, 3)}, "c": {0: positions(2, 1)}})
    assert listed(model) == {"a": {1: (6, [1, 5])}, "b": {1: (4, [0])}, "c": {0: (2, [1])}}


def test_values_that_are_gone_are_forgotten() -> None:
    model = model_with("a", "b")
    write_kept_channels(model, {"a": {1: positions(6, 1, 2)}, "b": {1: positions(4, 0)}})
    later = model_with("b")
    later.metadata_props.update(model.metadata_props)
    write_kept_channels(later, {})
    assert listed(later) == {"b": {1: (4, [0])}}


def test_nothing_is_read_when_nothing_is_there_or_in_another_form() -> None:
    model = model_with("a")
    assert read_kept_channels(model) == {}
    model.metadata_props[METADATA_KEY] = json.dumps({"revision": 99})
    assert read_kept_channels(model) == {}


def values_of(graph: Path, names: list[str], feeds: dict[str, Array], folder: Path) -> list[Array]:
    model = onnx.load(graph)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    path = folder / f"more-{graph.name}"
    onnx.save(model, path)
    return OnnxRuntimeBackend().load(path).run(feeds, outputs=names)


def test_pruned_values_are_the_kept_channels_of_dense_after_one_pass_and_after_two(tmp_path: Path) -> None:
    dense = convolutional_graph(tmp_path / "dense.onnx", channels=64)
    context = pass_context(
        PruneOptions(target=PruneTarget(ratio=0.75), repair=()), calibration=images(24, seed=1), workspace=tmp_path
    )
    once, twice = tmp_path / "once.onnx", tmp_path / "twice.onnx"
    apply_pass("prune", dense, output=once, context=context)
    apply_pass("prune", once, output=twice, context=context)
    feeds = {"image": images(2, seed=3)}
    # Only the input comes before it, so its channels are those of dense, whatever else was cut.
    (whole,) = values_of(dense, ["stem.relu"], feeds, tmp_path)
    for graph, width in ((once, 48), (twice, 32)):
        (narrow,) = values_of(graph, ["stem.relu"], feeds, tmp_path)
        kept = read_kept_channels(ir.load(graph))["stem.relu"][1]
        assert narrow.shape[1] == len(kept.positions) == width
        assert kept.length == 64
        np.testing.assert_allclose(narrow, whole[:, kept.positions], atol=1e-5)
