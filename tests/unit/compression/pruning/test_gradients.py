from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from unit.compression.pruning.networks import Network, read

from serveprune.compression.pruning.dependency_graph import DependencyGraph
from serveprune.compression.pruning.gradient_importance import GradientImportance
from serveprune.compression.pruning.gradients import GradientMethod, GradientSource, unit_scores, weight_scores
from serveprune.errors import InvalidArgument
from serveprune.evaluation.dataset import Dataset
from serveprune.evaluation.quality import spearman
from serveprune.evaluation.task import Task
from serveprune.graph.node import constant
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import Array, TensorSpec

_WIDTH, _CLASSES, _SAMPLES = 8, 3, 24
_OUTPUT = TensorSpec("answer", Datatype.FP32, (-1, _CLASSES))
_METHODS: tuple[GradientMethod, ...] = ("taylor", "fisher")


class _Residual:
    """``s = a(x) + b(relu(a(x)))``, then ``head(mean(relu(s)))``: two values hold the same channels."""

    def __init__(self, folder: Path) -> None:
        network = Network(seed=1)
        one = network.conv(network.input("N", 3, 6, 6), 3, _WIDTH, name="a")
        total = network.node("Add", one, network.conv(network.node("Relu", one), _WIDTH, _WIDTH, name="b"))
        pooled = network.node("Flatten", network.node("GlobalAveragePool", network.node("Relu", total)))
        path = network.save(folder / "network.onnx", network.gemm(pooled, _WIDTH, _CLASSES, name="head"))
        self.graph: DependencyGraph = read(path, workspace=folder)
        self.model = ir.load(folder / "prepared.onnx")
        self.output = replace(_OUTPUT, name=self.model.graph.outputs[0].name or "")
        weights = {name: constant(value) for name, value in self.model.graph.initializers.items()}
        self.weights = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
        (self.head_bias,) = (array for name, array in self.weights.items() if name.startswith("constant_"))

    def answer(self, image: Tensor, mask: Tensor) -> Tensor:
        """Compute the same with torch, with a mask of the channels wherever they are summed over."""
        column, weights = mask.reshape(1, -1, 1, 1), self.weights
        one = functional.conv2d(image, weights["a"], weights["a.bias"], padding=1)
        total = one + functional.conv2d(one.relu() * column, weights["b"], weights["b.bias"], padding=1)
        pooled = total.relu().mean((2, 3)) * mask
        return pooled @ weights["head"].T + self.head_bias

    def scores(self, method: GradientMethod, source: GradientSource) -> Array:
        (group,) = self.graph.groups
        return unit_scores(self.model, self.graph, [group], method=method, source=source)[group.name]

    def source(self, images: Array, *, task: Task = Task.CLASSIFICATION, labels: Array | None = None) -> GradientSource:
        return GradientSource(
            samples=Dataset(tuple({"x": image} for image in images), labels=labels),
            task=task,
            outputs=[self.output],
            loss="answers" if labels is None else "labels",
            name="net",
            seed=0,
            threads=1,
        )


@pytest.fixture
def network(tmp_path: Path) -> _Residual:
    return _Residual(tmp_path)


@pytest.fixture
def images() -> Array:
    return np.random.default_rng(2).standard_normal((_SAMPLES, 3, 6, 6)).astype(np.float32)


@pytest.fixture
def labels() -> Array:
    return np.random.default_rng(3).integers(0, _CLASSES, _SAMPLES)


@pytest.mark.parametrize("method", _METHODS)
def test_unit_scores_are_gradients_of_a_mask_when_there_are_labels(
    network: _Residual, images: Array, labels: Array, method: GradientMethod
) -> None:
    felt = []
    for image, label in zip(images, labels, strict=True):
        mask = torch.ones(_WIDTH, requires_grad=True)
        loss = functional.cross_entropy(network.answer(torch.from_numpy(image[None]), mask), torch.tensor([label]))
        felt.append(torch.autograd.grad(loss, mask)[0].numpy())
    expected = np.abs(felt).mean(axis=0) if method == "taylor" else np.square(felt).mean(axis=0)
    scores = network.scores(method, network.source(images, labels=labels))
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def _fisher(network: _Residual, images: Array) -> Array:
    """Return the diagonal of the Fisher matrix of the mask, of each sample, class by class."""
    found = []
    for image in images:
        mask = torch.ones(_WIDTH, requires_grad=True)
        shares = network.answer(torch.from_numpy(image[None]), mask).log_softmax(-1)[0]
        total = np.zeros(_WIDTH)
        for share in shares:
            (gradient,) = torch.autograd.grad(share, mask, retain_graph=True)
            total += float(share.detach().exp()) * gradient.double().numpy() ** 2
        found.append(total)
    return np.array(found)


def test_fisher_is_the_curvature_of_the_divergence_when_there_are_no_labels(network: _Residual, images: Array) -> None:
    scores = network.scores("fisher", network.source(images))
    np.testing.assert_allclose(scores, _fisher(network, images).mean(axis=0), rtol=0.35)


def test_taylor_is_the_mean_root_of_the_curvature_when_there_are_no_labels(network: _Residual, images: Array) -> None:
    scores = network.scores("taylor", network.source(images))
    # The mean size of a normal number is this times its deviation.
    expected = np.sqrt(2 / np.pi) * np.sqrt(_fisher(network, images)).mean(axis=0)
    np.testing.assert_allclose(scores, expected, rtol=0.2)


@pytest.mark.parametrize("method", _METHODS)
def test_scores_order_units_like_their_removal_does_when_there_are_no_labels(
    network: _Residual, images: Array, method: GradientMethod
) -> None:
    whole = network.answer(torch.from_numpy(images), torch.ones(_WIDTH)).log_softmax(-1)
    lost = []
    for unit in range(_WIDTH):
        mask = torch.ones(_WIDTH)
        mask[unit] = 0
        without = network.answer(torch.from_numpy(images), mask).log_softmax(-1)
        lost.append(float(functional.kl_div(without, whole, log_target=True, reduction="batchmean")))
    assert spearman(network.scores(method, network.source(images)), np.array(lost)) > 0.7


def test_scores_of_embeddings_do_not_change_when_all_answers_are_longer(network: _Residual, images: Array) -> None:
    source = network.source(images, task=Task.EMBEDDING)
    before = network.scores("fisher", source)
    for name in ("head", next(name for name in network.weights if name.startswith("constant_"))):
        value = network.model.graph.initializers[name]
        value.const_value = ir.tensor(network.weights[name].numpy() * 10, name=name)
    np.testing.assert_allclose(network.scores("fisher", source), before, rtol=1e-4)


def test_scores_count_squared_errors_when_answers_are_generic(network: _Residual, images: Array) -> None:
    expected = np.zeros(_WIDTH)
    for image in images:
        mask = torch.ones(_WIDTH, requires_grad=True)
        for answer in network.answer(torch.from_numpy(image[None]), mask)[0]:
            (gradient,) = torch.autograd.grad(answer, mask, retain_graph=True)
            expected += gradient.numpy() ** 2 / len(images)
    scores = network.scores("fisher", network.source(images, task=Task.GENERIC))
    np.testing.assert_allclose(scores, expected, rtol=0.35)


@pytest.mark.parametrize("method", _METHODS)
def test_weight_scores_are_gradients_of_single_weights_when_there_are_labels(
    network: _Residual, images: Array, labels: Array, method: GradientMethod
) -> None:
    weight = network.weights["b"].requires_grad_()
    felt = []
    for image, label in zip(images, labels, strict=True):
        answer = network.answer(torch.from_numpy(image[None]), torch.ones(_WIDTH))
        (gradient,) = torch.autograd.grad(functional.cross_entropy(answer, torch.tensor([label])), weight)
        felt.append(gradient.numpy())
    array = weight.detach().numpy()
    taylor, fisher = np.abs(array) * np.abs(felt).mean(axis=0), array**2 * np.square(felt).mean(axis=0)
    source = network.source(images, labels=labels)
    scores = weight_scores(network.model, ["b", "absent"], method=method, source=source)
    assert list(scores) == ["b"]
    np.testing.assert_allclose(scores["b"], taylor if method == "taylor" else fisher, rtol=1e-3, atol=1e-10)


def test_scores_are_the_same_when_they_are_taken_again(network: _Residual, images: Array) -> None:
    source = network.source(images)
    np.testing.assert_array_equal(network.scores("taylor", source), network.scores("taylor", source))


def test_order_takes_what_the_loss_feels_least_first_when_asked_for_a_group(network: _Residual, images: Array) -> None:
    (group,) = network.graph.groups
    source = network.source(images)
    importance = GradientImportance("fisher", model=network.model, graph=network.graph, groups=[group], source=source)
    order = importance.order(group, [], weights={}, moments={})
    scores = network.scores("fisher", source)
    np.testing.assert_array_equal(order.units, np.argsort(scores))
    np.testing.assert_allclose(order.errors, [0, *np.cumsum(np.sort(scores)) / scores.sum()])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "labels"}, "net: expected a classifier and labels for loss: labels; the calibration set has none"),
        ({"loss": "labels", "task": Task.EMBEDDING}, "the answers mean embedding"),
        ({"outputs": [TensorSpec("answer", Datatype.INT64, (-1,))], "task": Task.GENERIC}, "an output of floats"),
    ],
)
def test_scores_are_refused_when_there_is_no_loss_to_take(
    network: _Residual, images: Array, change: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        network.scores("taylor", replace(network.source(images), **change))  # type: ignore[arg-type]


def test_scores_are_refused_when_a_label_is_no_class(network: _Residual, images: Array) -> None:
    source = network.source(images, labels=np.full(_SAMPLES, _CLASSES))
    with pytest.raises(InvalidArgument, match="expected labels from 0 to 2, the classes of this model; got 3"):
        network.scores("taylor", source)
