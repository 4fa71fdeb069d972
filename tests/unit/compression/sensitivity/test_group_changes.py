from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
from unit.compression.graphs import convolutional_graph, image_dataset, images

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.compression.pruning.pruning import Pruning
from serveprune.compression.sensitivity.group_changes import GroupChanges
from serveprune.compression.sensitivity.timing import PieceTimer
from serveprune.config.pruning import PruneOptions, PruneTarget
from serveprune.oip.tensor import Array

SAMPLES = image_dataset(48, seed=3)
OPTIONS = PruneOptions(target=PruneTarget(ratio=0.5), round_to=8)


@pytest.fixture
def changes(tmp_path: Path) -> GroupChanges:
    pruning = Pruning(
        convolutional_graph(tmp_path / "net.onnx"),
        OPTIONS,
        samples=SAMPLES,
        workspace=tmp_path,
        threads=1,
        serving_threads=1,
        cache=None,
        seed=0,
    )
    return GroupChanges(pruning, OPTIONS, samples=SAMPLES, workspace=tmp_path, threads=1)


def answers(path: Path) -> Array:
    with closing(OnnxRuntimeBackend().load(path)) as session:
        return session.run({"image": images(64, seed=9)})[0]


def test_groups_lose_a_quarter_a_half_and_three_quarters_in_steps_of_round_to(changes: GroupChanges) -> None:
    assert [(each.group.name, each.after) for each in changes.narrowings] == [
        ("stem.weight", 24),
        ("stem.weight", 16),
        ("stem.weight", 8),
    ]


def test_narrowed_graph_is_smaller_and_its_readers_make_up_for_the_loss(changes: GroupChanges, tmp_path: Path) -> None:
    half = changes.narrowings[1]
    changes.write(half, tmp_path / "half.onnx")
    shapes = {tensor.name: list(tensor.dims) for tensor in onnx.load(tmp_path / "half.onnx").graph.initializer}
    assert (shapes["stem.weight"][0], shapes["block.weight"][:2], shapes["head.weight"][1]) == (16, [16, 16], 16)
    # The same cut without new weights, from the same graph.
    plain = onnx.load(tmp_path / "half.onnx")
    whole = {tensor.name: tensor for tensor in onnx.load(tmp_path / "prepared.onnx").graph.initializer}
    stays = np.setdiff1d(np.arange(32), half.going)
    for tensor in plain.graph.initializer:
        if tensor.name in ("block.weight", "head.weight"):
            array = onnx.numpy_helper.to_array(whole[tensor.name])[:, stays]
            array = array[stays] if tensor.name == "block.weight" else array
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    onnx.save(plain, tmp_path / "plain.onnx")
    dense = answers(tmp_path / "net.onnx")
    fitted, unfitted = (np.square(answers(tmp_path / f"{name}.onnx") - dense).mean() for name in ("half", "plain"))
    assert fitted < 0.7 * unfitted


def test_gain_is_timed_once_for_one_structure_and_larger_for_a_stronger_cut(
    changes: GroupChanges, tmp_path: Path
) -> None:
    timer = PieceTimer(batch_size=8, threads=1, workspace=tmp_path)
    first = changes.gain(changes.narrowings[0], timer)
    assert changes.gain(changes.narrowings[0], timer) is first
    assert first.low_ms <= first.median_ms <= first.high_ms
    assert first.rounds >= 10
