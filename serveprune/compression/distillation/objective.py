"""What distillation makes small, and how it judges what it reached."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from serveprune.compression.distillation.losses import (
    class_divergence,
    cosine_distance,
    logits,
    squared_error,
)
from serveprune.compression.distillation.teacher import TeacherAnswers
from serveprune.compression.distillation.watched_values import Meaning, WatchedValue
from serveprune.compression.learning.batches import tensors
from serveprune.config.distillation import DistillOptions
from serveprune.evaluation.dataset import Dataset
from serveprune.evaluation.quality import SignalEnergies

Student = Callable[[Mapping[str, Tensor], tuple[str, ...]], dict[str, Tensor]]
"""Takes feeds and the names of intermediate values; returns the outputs and those."""

_JUDGED_ROWS = 64


class Objective:
    """The losses of a student's values against its teacher's."""

    def __init__(self, student: Student, options: DistillOptions, *, teacher: TeacherAnswers, samples: Dataset) -> None:
        """Compute nothing yet.

        Args:
            student: What is trained.
            options: Weights of the losses, and the temperature.
            teacher: Its answers for the samples.
            samples: What is learned from; their labels count if the options say so.
        """
        self._student = student
        self._losses = options.losses
        self._temperature = options.temperature
        self._teacher = teacher
        self._labels = None if samples.labels is None else torch.from_numpy(samples.labels)
        self._intermediates = tuple(
            value.name for value in teacher.watched if value.meaning is Meaning.INTERMEDIATE and self._weight(value)
        )

    def __call__(self, feeds: dict[str, Tensor], indices: NDArray[np.int64]) -> Tensor:
        """Return the loss of one batch."""
        made = self._student(feeds, self._intermediates)
        wanted = self._teacher.batch(indices)
        mask = self._teacher.mask(indices)
        total = torch.zeros(())
        for value in self._teacher.watched:
            if self._weight(value):
                own = mask if value.by_token else None
                total = total + self._loss(value, made[value.name], wanted[value.name], own, indices)
        return total

    def _weight(self, value: WatchedValue) -> float:
        losses = self._losses
        match value.meaning:
            case Meaning.CLASSES:
                return losses.divergence + losses.labels
            case Meaning.EMBEDDING:
                return losses.cosine + losses.answers
            case Meaning.ANSWER:
                return losses.answers
            case Meaning.INTERMEDIATE:
                return losses.intermediate

    def _loss(
        self, value: WatchedValue, student: Tensor, teacher: Tensor, mask: Tensor | None, indices: NDArray[np.int64]
    ) -> Tensor:
        losses, scale = self._losses, self._teacher.scales[value.name]
        match value.meaning:
            case Meaning.CLASSES:
                return self._class_loss(value, student, teacher, indices)
            case Meaning.EMBEDDING:
                near = cosine_distance(student, teacher, mask=mask) * losses.cosine
                return near + squared_error(student / scale, teacher / scale, mask=mask) * losses.answers
            case Meaning.ANSWER:
                return squared_error(student / scale, teacher / scale, mask=mask) * losses.answers
            case Meaning.INTERMEDIATE:
                # The teacher's are in these units already.
                count = len(self._intermediates)
                return squared_error(student / scale, teacher, mask=mask) * losses.intermediate / count

    def _class_loss(self, value: WatchedValue, student: Tensor, teacher: Tensor, indices: NDArray[np.int64]) -> Tensor:
        distributions = value.name in self._teacher.distributions
        own, given = (logits(scores, are_probabilities=distributions) for scores in (student, teacher))
        total = class_divergence(own, given, temperature=self._temperature) * self._losses.divergence
        if self._losses.labels and self._labels is not None:
            total = total + functional.cross_entropy(own, self._labels[indices]) * self._losses.labels
        return total


class HeldOutQuality:
    """How near the student is to the teacher on samples it has not learned from; 1 is as good as the teacher.

    - classes: how much of the class probabilities the two share, ``sum(min(p, q))``: like the part of samples with the
      same top class, but it also moves when no top class changes;
    - embeddings: mean cosine;
    - anything else: cosine of all answers as one vector, their mean taken off, as tiers are judged.

    Of several outputs the worst counts. Labels count as much as the losses say.
    """

    def __init__(self, student: Student, options: DistillOptions, *, teacher: TeacherAnswers, samples: Dataset) -> None:
        """Compute nothing yet; arguments as of `Objective`."""
        self._student = student
        self._losses = options.losses
        self._teacher = teacher
        self._samples = samples

    @property
    def name(self) -> str:
        """What the quality is."""
        return {Meaning.CLASSES: "probability_overlap"}.get(self._teacher.watched[0].meaning, "cosine")

    def __call__(self) -> float:
        """Run the student over all samples and return the quality; call it without gradients."""
        values = self._teacher.watched
        sums = np.zeros(len(values))
        energies: dict[str, SignalEnergies] = {}
        for indices, feeds in self._samples.batches(_JUDGED_ROWS):
            made = self._student(tensors(feeds), ())
            wanted, mask = self._teacher.batch(indices), self._teacher.mask(indices)
            for place, value in enumerate(values):
                pair = made[value.name].float(), wanted[value.name]
                if value.meaning is Meaning.ANSWER:
                    _add(energies, value.name, *pair, mask if value.by_token else None)
                else:
                    sums[place] += float(self._near(value, *pair, indices).sum())
        means = sums / len(self._samples)
        near = [
            energies[value.name].centred_cosine if value.name in energies else float(means[place])
            for place, value in enumerate(values)
        ]
        return min(near)

    def _near(self, value: WatchedValue, student: Tensor, teacher: Tensor, indices: NDArray[np.int64]) -> Tensor:
        """Return the quality of each sample, ``(n,)``."""
        if value.meaning is Meaning.EMBEDDING:
            return functional.cosine_similarity(student, teacher, dim=-1)
        distributions = value.name in self._teacher.distributions
        own, given = (scores if distributions else scores.softmax(-1) for scores in (student, teacher))
        shared = torch.minimum(own, given).sum(-1)
        labels, weight = self._samples.labels, self._losses.labels
        if not weight or labels is None:
            return shared
        right = own.gather(-1, torch.from_numpy(labels[indices]).unsqueeze(-1)).squeeze(-1)
        return (shared * self._losses.divergence + right * weight) / (self._losses.divergence + weight)


def _add(energies: dict[str, SignalEnergies], name: str, student: Tensor, teacher: Tensor, mask: Tensor | None) -> None:
    """Take in the answers of a batch, without those of padding."""
    width = student.shape[-1] if student.dim() > 1 else 1
    found = energies.setdefault(name, SignalEnergies(width=width))
    for place in range(len(student)):
        length = None if mask is None else int(mask[place].sum())
        found.add(teacher[place][:length].numpy(), student[place][:length].numpy())
