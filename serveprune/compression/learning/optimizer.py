"""The optimizer that options name."""

from collections.abc import Iterable

import torch

from serveprune.config.learning import TrainingOptions

_MATRIX_RANK = 2


def make_optimizer(parameters: Iterable[torch.nn.Parameter], options: TrainingOptions) -> torch.optim.Optimizer:
    """Return an optimizer of these parameters; biases and scales, which are vectors, are not pulled towards zero."""
    trained = list(parameters)
    groups = [
        {"params": [one for one in trained if one.dim() >= _MATRIX_RANK], "weight_decay": options.weight_decay},
        {"params": [one for one in trained if one.dim() < _MATRIX_RANK], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.learning_rate, fused=True)
    return torch.optim.SGD(groups, lr=options.learning_rate, momentum=options.momentum, fused=True)
