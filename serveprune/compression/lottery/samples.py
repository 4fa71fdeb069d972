"""Labelled samples of a classifier, in three parts, and what is asked of the network with them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from serveprune.compression.learning.batches import tensors
from serveprune.errors import InvalidArgument
from serveprune.evaluation.dataset import Dataset
from serveprune.graph.executor.graph_module import GraphModule
from serveprune.graph.node import operator

_FEWEST_SAMPLES = 8
_JUDGED_SHARE = 0.75
"""Of the held-out part; the rest chooses."""

_FEWEST_CLASSES = 2
_BATCH_SIZE = 256
_SMALLEST = 1e-12
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Scores:
    """The output with a score per class.

    Attributes:
        name: Of the output.
        probabilities: Whether the scores are probabilities; else logits.
    """

    name: str
    probabilities: bool

    def logits(self, answers: Mapping[str, Tensor]) -> Tensor:
        """Return ``(N, classes)`` logits."""
        scores = answers[self.name]
        return scores.clamp_min(_SMALLEST).log() if self.probabilities else scores


@dataclass(frozen=True, slots=True)
class LotterySamples:
    """What is learned from, what chooses the best weights of a training, and what judges them."""

    learned: Dataset
    choosing: Dataset
    judged: Dataset

    @classmethod
    def of(cls, calibration: Dataset | None, *, held_out: float) -> "LotterySamples":
        """Split a labelled set, always in the same way.

        Raises:
            InvalidArgument: There is none, it has no labels, or too few samples.
        """
        if calibration is None or calibration.labels is None:
            came = "no calibration set" if calibration is None else "a calibration set without labels"
            raise InvalidArgument(
                f"lottery: expected labelled samples to learn from, got {came}; set models.<name>.calibration.file "
                "(for the command line: --calibration) to a .npz with an array `label`, or a .jsonl with `label` in "
                "each line"
            )
        if len(set(calibration.digests())) < _FEWEST_SAMPLES:
            raise InvalidArgument(
                f"lottery: expected at least {_FEWEST_SAMPLES} different labelled samples, got "
                f"{len(set(calibration.digests()))}; add samples to the calibration set"
            )
        learned, rest = calibration.split(1 - held_out)
        if len(set(rest.digests())) < len(("choosing", "judged")):
            raise InvalidArgument(
                f"lottery: expected at least 2 different samples in the held-out part, got {len(rest)} of "
                f"{len(calibration)}; raise held_out, or add samples"
            )
        choosing, judged = rest.split(1 - _JUDGED_SHARE)
        return cls(learned, choosing, judged)


def class_scores(model: ir.Model, name: str) -> Scores:
    """Return what an output of the graph says about classes."""
    output = next(value for value in model.graph.outputs if value.name == name)
    node = output.producer()
    return Scores(name, probabilities=node is not None and operator(node) == "Softmax")


def cross_entropy(
    module: GraphModule, dataset: Dataset, scores: Scores, feeds: dict[str, Tensor], indices: NDArray[np.int64]
) -> Tensor:
    """Return the mean loss of a batch, a scalar."""
    assert dataset.labels is not None
    return functional.cross_entropy(scores.logits(module(feeds)), torch.from_numpy(dataset.labels[indices]))


def accuracy(module: GraphModule, dataset: Dataset, scores: Scores) -> float:
    """Return the part of the samples whose highest score is at their label; the module is put in evaluation mode."""
    assert dataset.labels is not None
    module.eval()
    right = 0
    with torch.no_grad():
        for indices, feeds in dataset.batches(_BATCH_SIZE):
            best = module(tensors(feeds))[scores.name].argmax(dim=1).numpy()
            right += int((best == dataset.labels[indices]).sum())
    return right / len(dataset)


def require_fitting(module: GraphModule, samples: LotterySamples, scores: Scores) -> None:
    """Look at the answers to a few samples, and at all labels.

    Raises:
        InvalidArgument: The output has no score per class, or labels are no class of it.
    """
    _, feeds = next(iter(samples.learned.batches(2)))
    module.eval()
    with torch.no_grad():
        answers = module(tensors(feeds))[scores.name]
    rows = next(iter(feeds.values())).shape[0]
    if answers.dim() != 2 or answers.shape[0] != rows or answers.shape[1] < _FEWEST_CLASSES:
        raise InvalidArgument(
            f"lottery: expected an output with a score per class, (batch, classes), got {scores.name} of shape "
            f"{tuple(answers.shape)} for {rows} samples"
        )
    classes = answers.shape[1]
    found = {int(label) for part in (samples.learned, samples.choosing, samples.judged) for label in _labels(part)}
    unknown = sorted(label for label in found if not 0 <= label < classes)
    if unknown:
        named = ", ".join(map(str, unknown[:_MOST_NAMED])) + (", ..." if len(unknown) > _MOST_NAMED else "")
        raise InvalidArgument(
            f"lottery: expected labels from 0 to {classes - 1}, for {scores.name} has {classes} scores, got {named}"
        )
    if len(found) < _FEWEST_CLASSES:
        raise InvalidArgument(f"lottery: expected samples of at least 2 classes, got label {next(iter(found))} only")


def _labels(dataset: Dataset) -> NDArray[np.int64]:
    assert dataset.labels is not None
    return np.unique(dataset.labels)
