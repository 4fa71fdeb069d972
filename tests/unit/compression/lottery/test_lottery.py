from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from unit.compression.graphs import elementwise_graph, embedding_graph
from unit.compression.lottery.classifiers import classifier_graph, initializers, labelled_arrays, labelled_dataset

from serveprune.compression.lottery.lottery import MASK_FILE, LotteryPass, write_masks
from serveprune.compression.lottery.report import LotteryReport
from serveprune.compression.passes import PassContext, PassReport, apply_pass
from serveprune.config.lottery import LotteryOptions
from serveprune.config.profile import QuantizeOptions
from serveprune.errors import InvalidArgument
from serveprune.evaluation.dataset import Dataset
from serveprune.evaluation.task import Task


def context(folder: Path, calibration: Dataset | None, **changed: Any) -> PassContext:
    training = {"budget": {"epochs": 3}, "batch_size": 16, "learning_rate": 0.05, "validations": 3}
    options = LotteryOptions.model_validate({"rounds": 2, "sparsity": 0.8, "training": training} | changed)
    folder.joinpath("work").mkdir()
    return PassContext(
        options=options,
        calibration=calibration,
        cpu="any",
        threads=1,
        seed=0,
        workspace=folder / "work",
        progress=lambda fraction: None,
        cache=folder / "cache",
        model_name="net",
        task=Task.CLASSIFICATION,
    )


def draw(folder: Path, graph: Path, calibration: Dataset | None, **changed: Any) -> PassReport:
    return apply_pass("lottery", graph, output=folder / "model.onnx", context=context(folder, calibration, **changed))


def test_lottery_writes_a_graph_that_runs_with_the_zeros_of_the_mask_file(tmp_path: Path) -> None:
    graph = classifier_graph(tmp_path / "net.onnx")
    found = draw(tmp_path, graph, labelled_dataset())
    report = LotteryReport.model_validate(found.findings)
    assert found.files == (MASK_FILE,)
    weights = initializers(tmp_path / "model.onnx")
    with np.load(tmp_path / MASK_FILE) as masks:
        assert set(masks) == {"in.weight", "mid.weight"}
        for layer in report.layers:
            assert masks[layer.name].dtype == np.bool_
            assert np.array_equal(weights[layer.name] != 0, masks[layer.name])
            assert (layer.weights, layer.zeros) == (masks[layer.name].size, int((~masks[layer.name]).sum()))
    assert report.rounds[-1].zeros == round(0.8 * report.weights) == sum(layer.zeros for layer in report.layers)
    points, labels = labelled_arrays(400, seed=5)
    scores = ort.InferenceSession(tmp_path / "model.onnx").run(None, {"x": points})[0]
    # The table's accuracy is that of the graph that was written, seen on other samples of the same kind.
    seen = float(np.mean(scores.argmax(axis=1) == labels))
    assert abs(seen - report.rounds[-1].ticket.accuracy) < 0.15
    assert list((tmp_path / "cache").iterdir()) == []


def test_lottery_begins_with_nothing_of_the_graphs_weights_unless_told(tmp_path: Path) -> None:
    graph = classifier_graph(tmp_path / "net.onnx")
    draw(tmp_path, graph, labelled_dataset())
    before, after = initializers(graph), initializers(tmp_path / "model.onnx")
    kept = after["mid.weight"] != 0
    assert abs(np.corrcoef(before["mid.weight"][kept], after["mid.weight"][kept])[0, 1]) < 0.3


def test_lottery_learns_through_a_softmax_at_the_end(tmp_path: Path) -> None:
    graph = classifier_graph(tmp_path / "net.onnx", softmax=True)
    report = LotteryReport.model_validate(draw(tmp_path, graph, labelled_dataset()).findings)
    assert report.dense.accuracy > 0.7


def test_lottery_refuses_samples_without_labels_and_says_where_they_go(tmp_path: Path) -> None:
    graph = classifier_graph(tmp_path / "net.onnx")
    unlabelled = replace(labelled_dataset(), labels=None)
    with pytest.raises(InvalidArgument, match=r"expected labelled samples.*without labels.*array `label`"):
        draw(tmp_path, graph, unlabelled)


def test_lottery_refuses_to_learn_from_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"got no calibration set; set models\.<name>\.calibration\.file"):
        draw(tmp_path, classifier_graph(tmp_path / "net.onnx"), None)


def test_lottery_refuses_labels_that_are_no_class_of_the_graph(tmp_path: Path) -> None:
    dataset = labelled_dataset()
    assert dataset.labels is not None
    shifted = replace(dataset, labels=dataset.labels + 3)
    with pytest.raises(InvalidArgument, match=r"labels from 0 to 3, for scores has 4 scores, got 4, 5, 6"):
        draw(tmp_path, classifier_graph(tmp_path / "net.onnx"), shifted)


def test_lottery_refuses_labels_of_one_class_only(tmp_path: Path) -> None:
    dataset = labelled_dataset()
    assert dataset.labels is not None
    with pytest.raises(InvalidArgument, match=r"at least 2 classes, got label 0 only"):
        draw(tmp_path, classifier_graph(tmp_path / "net.onnx"), replace(dataset, labels=dataset.labels * 0))


def test_lottery_refuses_too_few_samples(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="at least 8 different labelled samples, got 5"):
        draw(tmp_path, classifier_graph(tmp_path / "net.onnx"), labelled_dataset(5))


def test_lottery_refuses_a_graph_without_layers_and_labels_beyond_a_row_of_scores(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 2000, size=(20, 6))
    dataset = Dataset(tuple({"input_ids": row} for row in ids), labels=np.arange(20) % 2)
    relu = Dataset(tuple({"x": row.astype(np.float32)} for row in ids[:, :4]), labels=np.arange(20) % 2)
    with pytest.raises(InvalidArgument, match="expected matrices or filters to remove weights from"):
        draw(tmp_path, elementwise_graph(tmp_path / "relu.onnx"), relu)
    other = tmp_path / "other"
    other.mkdir()
    # An embedding of 64 numbers is a row of scores as far as anybody can tell; labels beyond it are not.
    with pytest.raises(InvalidArgument, match="labels from 0 to 63"):
        draw(other, embedding_graph(tmp_path / "net.onnx"), replace(dataset, labels=np.arange(20) + 60))


def test_lottery_refuses_a_quantized_graph(tmp_path: Path) -> None:
    graph = classifier_graph(tmp_path / "net.onnx")
    made = context(tmp_path, labelled_dataset())
    quantized = tmp_path / "q"
    quantized.mkdir()
    apply_pass("quantize", graph, output=quantized / "model.onnx", context=replace(made, options=QuantizeOptions()))
    with pytest.raises(InvalidArgument, match=r"no gradients go through integers.*put `lottery` before `quantize`"):
        LotteryPass().apply(quantized / "model.onnx", output=tmp_path / "model.onnx", context=made)


def test_masks_are_written_under_any_name_and_always_as_the_same_bytes(tmp_path: Path) -> None:
    masks = {"/layer/file": torch.tensor([[True, False]]), "file": torch.tensor([False])}
    write_masks(masks, tmp_path / "a.npz")
    write_masks(masks, tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz") as found:
        assert {name: found[name].tolist() for name in found} == {"/layer/file": [[True, False]], "file": [False]}
