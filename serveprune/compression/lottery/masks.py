"""Which weights are left: the arithmetic of iterative magnitude pruning, and nothing else."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Masks = dict[str, Tensor]
"""Weight -> bool tensor of its shape, true where the weight is left."""


def full_masks(weights: Mapping[str, Tensor]) -> Masks:
    """Return masks under which every weight is left."""
    return {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}


def removed(masks: Mapping[str, Tensor]) -> int:
    """Return how many weights are not left."""
    return sum(int((~mask).sum()) for mask in masks.values())


def sparser(
    weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], *, sparsity: float, scope: Literal["global", "layer"]
) -> Masks:
    """Remove the smallest weights until a part of all of them is gone; what was removed stays removed.

    Args:
        weights: As they were trained.
        masks: What was left until now, of the same names.
        sparsity: Part of the weights that is removed afterwards, exact but for rounding to whole weights.
        scope: Whether that holds for all layers together or for each; weights are compared by their absolute value
            as it is. Of equal ones the first go.
    """
    if scope == "layer":
        return {name: _sparser({name: weights[name]}, {name: mask}, sparsity)[name] for name, mask in masks.items()}
    return _sparser(weights, masks, sparsity)


def _sparser(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], sparsity: float) -> Masks:
    # Below every absolute value, so that what is removed already goes first.
    magnitudes = [
        torch.where(mask, weights[name].detach().float().abs().cpu(), -1.0).reshape(-1) for name, mask in masks.items()
    ]
    joined = torch.cat(magnitudes)
    count = max(round(sparsity * joined.numel()), int((joined < 0).sum()))
    left = torch.ones(joined.numel(), dtype=torch.bool)
    left[torch.argsort(joined, stable=True)[:count]] = False
    parts = torch.split(left, [each.numel() for each in magnitudes])
    return {name: part.reshape(mask.shape).clone() for (name, mask), part in zip(masks.items(), parts, strict=True)}
