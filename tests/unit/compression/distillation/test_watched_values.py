from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from unit.compression.distillation.text_networks import sentences, text_encoder
from unit.compression.graphs import convolutional_graph
from unit.compression.pruning.networks import Network

from serveprune.compression.distillation.watched_values import (
    Meaning,
    WatchedValue,
    watched_intermediates,
    watched_outputs,
)
from serveprune.compression.kept_channels import KeptPositions, write_kept_channels
from serveprune.compression.pruning.observation import observe_sizes
from serveprune.errors import InvalidArgument
from serveprune.evaluation.task import Task
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import DYNAMIC, TensorSpec


def intermediates(path: Path, asked: str | list[str], *, text: bool, workspace: Path) -> tuple[WatchedValue, ...]:
    model = ir.load(path)
    sample = sentences(1).samples[0] if text else None
    observation = observe_sizes(model, workspace=workspace, sample=sample)
    return watched_intermediates(asked, student=model, teacher=ir.load(path), observation=observation, padded=text)


def test_values_after_residual_blocks_are_what_the_sums_are_normalised_or_bent_to(tmp_path: Path) -> None:
    values = intermediates(text_encoder(tmp_path / "text.onnx"), "auto", text=True, workspace=tmp_path)
    producers = {output.name: node.op_type for node in ir.load(tmp_path / "text.onnx").graph for output in node.outputs}
    assert [producers[value.name] for value in values] == ["LayerNormalization"] * 2
    assert [(value.by_token, value.shape) for value in values] == [(True, (None, None, 16))] * 2
    (only,) = intermediates(convolutional_graph(tmp_path / "net.onnx"), "auto", text=False, workspace=tmp_path)
    assert (only.name, only.by_token) == ("block.relu", False)


def test_named_values_are_taken_and_none_are_when_so_asked(tmp_path: Path) -> None:
    graph = convolutional_graph(tmp_path / "net.onnx")
    found = intermediates(graph, ["stem.out", "pooled"], text=False, workspace=tmp_path)
    assert [value.name for value in found] == ["stem.out", "pooled"]
    assert intermediates(graph, "none", text=False, workspace=tmp_path) == ()


@pytest.mark.parametrize("name", ["stem.weight", "nothing", "shape_1"])
def test_name_is_refused_when_it_is_no_value_of_each_sample(tmp_path: Path, name: str) -> None:
    n = Network()
    x = n.input("batch", 3, 8, 8)
    shape = n.node("Shape", n.conv(x, 3, 16, name="stem.weight"))
    n.save(tmp_path / "net.onnx", n.pooled_head("conv_1", 16), n.node("Cast", shape, to=1))
    with pytest.raises(InvalidArgument, match=f"expected names of floats that both .* got '{name}'"):
        intermediates(tmp_path / "net.onnx", [name], text=False, workspace=tmp_path)


def watched(shape: tuple[int | None, ...], **kept: KeptPositions) -> WatchedValue:
    axes = tuple((int(axis.removeprefix("axis")), positions) for axis, positions in kept.items())
    return WatchedValue("value", Meaning.INTERMEDIATE, False, shape, axes)


def test_teachers_value_is_projected_through_the_channels_that_pruning_left() -> None:
    teacher = np.arange(2 * 6 * 4).reshape(2, 6, 4)
    kept = KeptPositions(6, np.array([0, 2, 5]))
    made = watched((None, 3, None), axis1=kept).projected(teacher)
    np.testing.assert_array_equal(made, teacher[:, [0, 2, 5]])
    # An axis that repeats the channels loses them in each repetition.
    repeated = watched((None, 2), axis1=KeptPositions(3, np.array([2]))).projected(teacher[:, :, 0])
    np.testing.assert_array_equal(repeated, teacher[:, [2, 5], 0])


@pytest.mark.parametrize("shape", [(None, 5, 4), (None, 6), (None, 3, 4)])
def test_values_of_other_shapes_are_refused_with_both_shapes(shape: tuple[int | None, ...]) -> None:
    with pytest.raises(InvalidArgument, match=r"'value': expected one that has the same shape .* got \[2, 6, 4\]"):
        watched(shape).projected(np.zeros((2, 6, 4)))


def test_kept_channels_of_the_graph_are_those_of_the_watched_value(tmp_path: Path) -> None:
    path = convolutional_graph(tmp_path / "net.onnx")
    model = ir.load(path)
    write_kept_channels(model, {"block.relu": {1: KeptPositions(40, np.arange(32))}})
    observation = observe_sizes(model, workspace=tmp_path)
    (value,) = watched_intermediates(
        "auto", student=model, teacher=ir.load(path), observation=observation, padded=False
    )
    ((axis, kept),) = value.kept
    assert (axis, kept.length, len(kept.positions)) == (1, 40, 32)


def spec(name: str, *shape: int, datatype: Datatype = Datatype.FP32) -> TensorSpec:
    return TensorSpec(name, datatype, shape)


def test_outputs_are_those_of_the_task_and_all_floats_where_it_has_none() -> None:
    logits, hidden = spec("logits", DYNAMIC, 5), spec("hidden", DYNAMIC, DYNAMIC, 8)
    tokens = spec("ids", DYNAMIC, datatype=Datatype.INT64)

    def found(task: Task, *outputs: TensorSpec) -> list[tuple[str, Meaning, bool]]:
        return [(value.name, value.meaning, value.by_token) for value in watched_outputs(task, outputs, padded=True)]

    assert found(Task.CLASSIFICATION, logits, hidden) == [("logits", Meaning.CLASSES, False)]
    assert found(Task.EMBEDDING, hidden, logits) == [("logits", Meaning.EMBEDDING, False)]
    assert found(Task.GENERIC, hidden, logits, tokens) == [
        ("hidden", Meaning.ANSWER, True),
        ("logits", Meaning.ANSWER, False),
    ]
    assert found(Task.CLASSIFICATION, hidden) == [("hidden", Meaning.ANSWER, True)]
    with pytest.raises(InvalidArgument, match="an output of floats"):
        watched_outputs(Task.GENERIC, [tokens], padded=False)
