"""Of which scalar gradients are taken to see what a model's answers feel."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from serveprune.compression.distillation.losses import are_probabilities, logits
from serveprune.errors import InvalidArgument
from serveprune.evaluation.task import Task
from serveprune.oip.tensor import Array


class AnswerLoss:
    """Scalars of one sample's answers; several threads may ask at once.

    With labels it is the cross-entropy. Without, the distance from the dense model's own answers would be the thing to
    take, but that is least just there, and its gradient is zero. What it grows by with a small change is half the
    change's square in ``J' H J``, where ``J`` is the Jacobian of the answers and ``H`` the curvature of the distance:
    the Gauss-Newton matrix (Schraudolph, 2002), which for a divergence between distributions is the Fisher matrix
    (Martens, 1412.1193). With ``H = L L'`` and a normal ``z`` drawn anew each time, gradients of ``answers . L z`` have
    just this second moment, and their mean absolute value is its root, times a constant.

    Distances: Kullback-Leibler divergence of class probabilities, ``1 - cosine`` of embeddings, squared error of
    anything else.
    """

    def __init__(
        self,
        task: Task,
        outputs: Sequence[str],
        *,
        labels: Array | None,
        scales: Mapping[str, float],
        seed: int,
    ) -> None:
        """Draw nothing yet.

        Args:
            task: What the answers mean.
            outputs: Names of those that count; labels belong to the first.
            labels: ``(N,)`` classes; None for the dense model's own answers.
            scales: Size of the numbers of each output, in units of which errors of several count.
            seed: Of what is drawn.
        """
        self._task = task
        self._outputs = outputs
        self._labels = labels
        self._scales = scales
        self._seed = seed

    def scalars(self, answers: Mapping[str, Tensor], index: int, *, draws: int) -> Iterator[Tensor]:
        """Yield scalars of one sample, with gradients; only one where there are labels.

        Args:
            answers: By name, each ``(1, ...)``.
            index: Which sample it is; what is drawn depends on it and on the seed alone.
            draws: How many to yield where there are no labels.

        Raises:
            InvalidArgument: The label is no class of this model.
        """
        if self._labels is not None:
            yield self._cross_entropy(answers[self._outputs[0]], int(self._labels[index]))
            return
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence([self._seed, index]).generate_state(1)[0]))
        for _ in range(draws):
            yield torch.stack([self._projected(answers[name], name, generator) for name in self._outputs]).sum()

    def _cross_entropy(self, scores: Tensor, label: int) -> Tensor:
        if not 0 <= label < scores.shape[-1]:
            raise InvalidArgument(
                f"expected labels from 0 to {scores.shape[-1] - 1}, the classes of this model; got {label}"
            )
        return functional.cross_entropy(_logits(scores), torch.tensor([label]))

    def _projected(self, answer: Tensor, name: str, generator: torch.Generator) -> Tensor:
        if self._task is Task.CLASSIFICATION:
            answer = _logits(answer)
        fixed = answer.detach()
        drawn = torch.randn(answer.shape, generator=generator, dtype=torch.float32).to(answer.dtype)
        if self._task is Task.CLASSIFICATION:
            # H = diag(p) - p p'.
            shares = fixed.softmax(dim=-1)
            roots = shares.sqrt()
            direction = roots * drawn - shares * (roots * drawn).sum(dim=-1, keepdim=True)
        elif self._task is Task.EMBEDDING:
            # H = (I - u u') / |y|^2, of the unit vector u along y.
            length = torch.linalg.vector_norm(fixed, dim=-1, keepdim=True).clamp_min(torch.finfo(fixed.dtype).tiny)
            unit = fixed / length
            direction = (drawn - unit * (unit * drawn).sum(dim=-1, keepdim=True)) / length
        else:
            direction = drawn / self._scales.get(name, 1.0)
        return (answer * direction).sum()


def _logits(scores: Tensor) -> Tensor:
    return logits(scores, are_probabilities=are_probabilities(scores.detach()))
