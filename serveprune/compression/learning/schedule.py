"""The learning rate in the course of a training."""

import math
from typing import Literal

Schedule = Literal["cosine", "linear", "constant"]


def rate_factor(progress: float, *, schedule: Schedule, warmup_ratio: float) -> float:
    """Return the part of the highest learning rate that applies.

    Args:
        progress: Part of the budget that is used up, from 0 to 1.
        schedule: How the rate goes down after the warm-up: along half a cosine or a line to zero, or not at all.
        warmup_ratio: Part of the budget in which it rises from zero, along a line.
    """
    if progress < warmup_ratio:
        return progress / warmup_ratio
    left = min(1.0, max(0.0, (1.0 - progress) / (1.0 - warmup_ratio)))
    match schedule:
        case "cosine":
            return 0.5 - 0.5 * math.cos(math.pi * left)
        case "linear":
            return left
        case "constant":
            return 1.0
