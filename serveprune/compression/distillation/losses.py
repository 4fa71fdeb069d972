"""How far a student is from its teacher: scalars with gradients.

Tensors have samples first. ``mask`` is ``(n, length)`` bool: which tokens of each sample are real; None where a value
has no axis of tokens, so that everything counts.
"""

import torch
from torch import Tensor
from torch.nn import functional

_LEAST_PROBABILITY = 1e-12


def class_divergence(student: Tensor, teacher: Tensor, *, temperature: float, mask: Tensor | None = None) -> Tensor:
    """Return the Kullback-Leibler divergence of the teacher's classes from the student's, both softened.

    Hinton, Vinyals, Dean 2015, with the factor temperature squared that keeps gradients of one size.

    Args:
        student: ``(..., classes)`` logits.
        teacher: The same shape.
        temperature: Divides both.
        mask: See above.
    """
    divergence = functional.kl_div(
        functional.log_softmax(student / temperature, dim=-1),
        functional.log_softmax(teacher / temperature, dim=-1),
        reduction="none",
        log_target=True,
    ).sum(-1)
    return masked_mean(divergence, mask) * temperature**2


def cosine_distance(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return 1 - cosine of the last axis, in the mean."""
    return masked_mean(1.0 - functional.cosine_similarity(student, teacher, dim=-1), mask)


def squared_error(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return the mean square of the difference."""
    return masked_mean((student - teacher).square(), mask)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of what belongs to real tokens, ``values`` being ``(n, length, ...)`` where there is a mask."""
    if mask is None:
        return values.mean()
    weights = mask.to(values.dtype).reshape(*mask.shape, *(1,) * (values.dim() - mask.dim()))
    return (values * weights).sum() / (weights.sum() * (values.numel() / mask.numel()))


def logits(scores: Tensor, *, are_probabilities: bool) -> Tensor:
    """Return class scores as logits; those of probabilities are their logarithms, up to a constant."""
    return scores.clamp_min(_LEAST_PROBABILITY).log() if are_probabilities else scores


def are_probabilities(scores: Tensor) -> bool:
    """Tell whether all rows are distributions over classes, so that a softmax has been taken already."""
    sums = scores.sum(-1)
    return bool((scores >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
