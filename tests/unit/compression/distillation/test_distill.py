from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from unit.compression.contexts import image_set, pass_context
from unit.compression.distillation.text_networks import sentences, text_encoder
from unit.compression.graphs import convolutional_graph, images

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.compression.distillation import held_samples
from serveprune.compression.distillation.distillation import Distillation
from serveprune.compression.distillation.objective import Objective
from serveprune.compression.kept_channels import METADATA_KEY
from serveprune.compression.learning import training
from serveprune.compression.learning.batches import tensors
from serveprune.compression.passes import PassContext, PassReport, apply_pass
from serveprune.config.distillation import DistillOptions
from serveprune.config.profile import QuantizeOptions
from serveprune.config.pruning import PruneOptions, PruneTarget
from serveprune.errors import BuildFailed, InvalidArgument
from serveprune.evaluation.dataset import Dataset
from serveprune.evaluation.task import Task
from serveprune.oip.tensor import Array

SAMPLES = 160


class Killed(Exception):
    pass


class Pair:
    """A dense graph, what is left of it, and samples."""

    def __init__(self, folder: Path, *, text: bool) -> None:
        self.folder = folder
        self.task = Task.EMBEDDING if text else Task.CLASSIFICATION
        self.samples = sentences(SAMPLES, seed=1) if text else image_set(images(SAMPLES, seed=1))
        self.judged = sentences(64, seed=2) if text else image_set(images(64, seed=2))
        self.dense = text_encoder(folder / "dense.onnx") if text else convolutional_graph(folder / "dense.onnx")
        self.graph = folder / "pruned.onnx"
        options = PruneOptions(target=PruneTarget(ratio=0.5), round_to=4, repair=())
        (folder / "pruning").mkdir()
        apply_pass("prune", self.dense, output=self.graph, context=self.context(options, folder / "pruning"))

    def context(self, options: Any, workspace: Path, **more: Any) -> PassContext:
        given = {"calibration": self.samples, "dense": self.dense, "task": self.task, **more}
        return pass_context(options, workspace=workspace, **given)

    def distill(self, *, name: str = "out", graph: Path | None = None, more: Any = None, **chosen: Any) -> PassReport:
        workspace = self.folder / f"workspace-{name}"
        workspace.mkdir()
        settings = {"budget": {"steps": 60}, "batch_size": 16, "learning_rate": 2e-3, "validations": 6, **chosen}
        options = DistillOptions.model_validate(settings)
        context = self.context(options, workspace, **(more or {}))
        return apply_pass("distill", graph or self.graph, output=self.folder / f"{name}.onnx", context=context)

    def quality(self, graph: Path) -> float:
        """Mean cosine of the vectors, or of the centred class scores, on samples that no pass has seen."""
        rows = []
        for path in (self.dense, graph):
            session = OnnxRuntimeBackend().load(path)
            answers = [(indices, session.run(feeds)[0]) for indices, feeds in self.judged.batches(16)]
            order = np.argsort(np.concatenate([indices for indices, _ in answers]))
            rows.append(np.concatenate([made for _, made in answers])[order])
        if self.task is Task.CLASSIFICATION:
            rows = [made - made.mean(1, keepdims=True) for made in rows]
        lengths = [np.linalg.norm(made, axis=1) for made in rows]
        return float(((rows[0] * rows[1]).sum(1) / lengths[0] / lengths[1]).mean())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("pictures"), text=False)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("texts"), text=True)


def weights(path: Path) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", ["pictures", "texts"])
def test_pruned_graph_answers_more_like_dense_when_it_has_learned_from_it(
    kind: str, request: pytest.FixtureRequest
) -> None:
    pair: Pair = request.getfixturevalue(kind)
    found = pair.distill(name="better").findings
    better = pair.folder / "better.onnx"
    assert found["quality"] > found["quality_before"]
    assert found["ended_by"] == "budget"
    assert found["samples"] == {"learned_from": SAMPLES - 16, "held_out": 16}
    assert len(found["intermediate"]) == (2 if kind == "texts" else 1)
    assert found["warnings"] == []
    assert found["quality_metric"] == ("cosine" if kind == "texts" else "probability_overlap")
    # On samples that neither pass has seen.
    assert 1 - pair.quality(better) < 0.8 * (1 - pair.quality(pair.graph))
    # The same graph, and it still says which channels are left.
    before, after = onnx.load(pair.graph), onnx.load(better)
    assert [node.op_type for node in before.graph.node] == [node.op_type for node in after.graph.node]
    assert [tensor.dims for tensor in before.graph.initializer] == [tensor.dims for tensor in after.graph.initializer]
    notes = [{entry.key: entry.value for entry in model.metadata_props}[METADATA_KEY] for model in (before, after)]
    assert notes[0] == notes[1]


def test_same_seed_gives_the_same_weights_whether_dense_answers_fit_in_memory_or_not(
    pictures: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures.distill(name="one", budget={"steps": 12})
    monkeypatch.setattr(held_samples.HeldSamples.__init__, "__kwdefaults__", {"most_bytes": 4000})
    pictures.distill(name="other", budget={"steps": 12})
    assert list((pictures.folder / "workspace-other").glob("teacher-*.bin"))
    assert same(pictures.folder / "one.onnx", pictures.folder / "other.onnx")


def test_build_that_was_killed_goes_on_from_its_checkpoint(
    pictures: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures.distill(name="undisturbed")
    steps: list[int] = []
    original = training.Training._take_step

    def step_or_die(self: training.Training, batch: Any, progress: float) -> float:
        steps.append(len(steps))
        if len(steps) == 26:
            raise Killed
        return original(self, batch, progress)

    monkeypatch.setattr(training.Training, "_take_step", step_or_die)
    with pytest.raises(Killed):
        pictures.distill(name="killed", more={"cache": tmp_path})
    (checkpoint,) = tmp_path.iterdir()
    assert checkpoint.suffix == ".checkpoint"
    pictures.distill(name="resumed", more={"cache": tmp_path})
    # 20 of the 25 steps were kept, so 40 were left.
    assert len(steps) == 26 + 40
    assert same(pictures.folder / "undisturbed.onnx", pictures.folder / "resumed.onnx")
    assert list(tmp_path.iterdir()) == []


def test_zeros_of_sparse_weights_stay_and_those_of_others_do_not(pictures: Pair, tmp_path: Path) -> None:
    model = onnx.load(pictures.graph)
    sparse: dict[str, Array] = {}
    for tensor in model.graph.initializer:
        share = {"stem.weight": 0.5, "block.weight": 0.2}.get(tensor.name)
        if share is not None:
            array = numpy_helper.to_array(tensor).copy()
            array[np.random.default_rng(0).random(array.shape) < share] = 0
            sparse[tensor.name] = array
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, tmp_path / "sparse.onnx")
    found = pictures.distill(name="sparse", graph=tmp_path / "sparse.onnx").findings
    assert found["weights"]["zeros_kept"] == ["stem.weight"]
    learned = weights(pictures.folder / "sparse.onnx")
    np.testing.assert_array_equal(learned["stem.weight"] == 0, sparse["stem.weight"] == 0)
    assert (learned["block.weight"] != 0).all()
    assert not np.array_equal(learned["stem.weight"], sparse["stem.weight"])


def test_ignored_weights_and_frozen_statistics_stay_as_they_are(pictures: Pair) -> None:
    found = pictures.distill(name="frozen", ignore=["stem.w*"], batch_norm="frozen").findings
    assert found["weights"]["left_alone"] == ["stem.weight"]
    before, after = weights(pictures.graph), weights(pictures.folder / "frozen.onnx")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert "stem.weight" not in changed
    assert not any(name.endswith((".mean", ".variance")) for name in changed)
    assert {"block.weight", "stem.scale", "head.weight"} <= changed


def test_statistics_follow_the_weights_when_they_are_trained(pictures: Pair) -> None:
    pictures.distill(name="statistics", batch_norm="train")
    before, after = weights(pictures.graph), weights(pictures.folder / "statistics.onnx")
    assert not np.array_equal(before["block.mean"], after["block.mean"])


def test_labels_are_learned_when_they_are_there_and_asked_for(pictures: Pair) -> None:
    constant = image_set(images(SAMPLES, seed=1), labels=np.full(SAMPLES, 7))
    losses = {"labels": 5.0, "divergence": 0.1, "intermediate": 0.0}
    chosen: dict[str, Any] = {"losses": losses, "learning_rate": 0.02}
    found = pictures.distill(name="labels", more={"calibration": constant}, **chosen).findings
    assert found["intermediate"] == []
    session = OnnxRuntimeBackend().load(pictures.folder / "labels.onnx")
    (scores,) = session.run({"image": images(32, seed=9)})
    assert (scores.argmax(1) == 7).all()


def _labelled(value: int) -> Dataset:
    return image_set(images(SAMPLES, seed=1), labels=np.full(SAMPLES, value))


@pytest.mark.parametrize(
    ("options", "more", "reason"),
    [
        ({}, {"calibration": None}, "expected unlabelled samples to learn from, got none"),
        ({}, {"calibration": image_set(images(1))}, "the calibration set is too small"),
        ({"losses": {"labels": 1.0}}, {}, "wants a calibration set with labels, and this one has none"),
        ({"losses": {"labels": 1.0}}, {"calibration": _labelled(10)}, "expected labels from 0 to 9, .* got 10 to 10"),
        (
            {"losses": {"labels": 1.0}},
            {"calibration": _labelled(1), "task": Task.EMBEDDING},
            "wants a classifier, and this model's answers are not scores",
        ),
        ({"ignore": ["decoder*"]}, {}, r"ignore pattern 'decoder\*' matches no weight of the graph; weights are: stem"),
        ({"ignore": ["*"]}, {}, "the ignore patterns match all of them"),
        ({"intermediate": ["nothing"]}, {}, "got 'nothing'; values after residual blocks are: block.relu"),
        ({"budget": {"seconds": 0.001}, "batch_size": 1}, {}, r"seconds, which one epoch .* needs .* got 0.001"),
    ],
)
def test_pass_is_refused_with_the_reason(
    pictures: Pair, options: dict[str, Any], more: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        pictures.distill(name=f"refused-{tmp_path.name}", more=more, **options)


def test_quantized_graph_is_refused_because_it_has_no_gradients(pictures: Pair, tmp_path: Path) -> None:
    options = QuantizeOptions()
    apply_pass("quantize", pictures.graph, output=tmp_path / "int8.onnx", context=pictures.context(options, tmp_path))
    with pytest.raises(InvalidArgument, match="distill: no gradients through an integer or quantized graph"):
        pictures.distill(name="quantized", graph=tmp_path / "int8.onnx")


def test_pass_fails_clearly_when_nothing_was_better_than_the_beginning(pictures: Pair) -> None:
    with pytest.raises(BuildFailed, match=r"the pass changed nothing: after 12 steps .* no better than the 1.0000 it"):
        pictures.distill(name="nothing", graph=pictures.dense, budget={"steps": 12})
    assert not (pictures.folder / "nothing.onnx").exists()


def test_best_weights_are_kept_with_a_warning_when_the_loss_runs_away(
    pictures: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[..., Any] = Objective.__call__
    calls: list[int] = []

    def runs_away(self: Any, *given: Any) -> Any:
        calls.append(1)
        return original(self, *given) * (float("inf") if len(calls) > 35 else 1.0)

    monkeypatch.setattr(Objective, "__call__", runs_away)
    found = pictures.distill(name="runaway").findings
    assert found["ended_by"] == "diverged"
    assert 0 < found["best_step"] <= 30
    (warning,) = found["warnings"]
    assert warning.startswith(f"distill: the loss ran away in step 36; the weights of step {found['best_step']} were")
    assert pictures.quality(pictures.folder / "runaway.onnx") > pictures.quality(pictures.graph)


def test_padding_changes_nothing_of_what_is_learned(texts: Pair) -> None:
    """Each sample alone, without padding, gives the loss that a padded batch gives in the mean of tokens."""
    chosen = DistillOptions.model_validate({"budget": {"steps": 1}, "batch_size": 4})
    workspace = texts.folder / "losses"
    workspace.mkdir()
    found = Distillation(texts.graph, chosen, context=texts.context(chosen, workspace))
    teacher = found._teacher(found._samples, (*found._outputs, *found._intermediates), lambda done: None, share=1.0)
    loss = Objective(found._answer, chosen, teacher=teacher, samples=found._samples)
    lengths = [found._samples.length(index) or 0 for index in range(len(found._samples))]
    short, long = lengths.index(2), lengths.index(9)

    def of(*indices: int) -> float:
        feeds = tensors(found._samples.collate(list(indices)))
        return float(loss(feeds, np.array(indices)).detach())

    output_only = DistillOptions.model_validate({"losses": {"intermediate": 0.0}})
    answers = Objective(found._answer, output_only, teacher=teacher, samples=found._samples)

    def of_answers(*indices: int) -> float:
        return float(answers(tensors(found._samples.collate(list(indices))), np.array(indices)).detach())

    inner = {index: of(index) - of_answers(index) for index in (short, long)}
    by_tokens = (2 * inner[short] + 9 * inner[long]) / 11
    assert of_answers(short, long) == pytest.approx((of_answers(short) + of_answers(long)) / 2, rel=1e-4)
    assert of(short, long) - of_answers(short, long) == pytest.approx(by_tokens, rel=1e-3)
