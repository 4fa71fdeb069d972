"""Whether a loss is running away."""

import math
from dataclasses import dataclass

_MEMORY = 0.9
_FIRST_LOSSES = 5
_EXPLODED_RATIO = 10.0
_LEAST_LOSS = 0.1
"""A training that begins with nearly no loss, as that of an unchanged copy, may rise above ten times that."""


@dataclass(slots=True)
class LossWatch:
    """Follows a loss, batch by batch.

    Attributes:
        smoothed: Moving average; None before the first loss.
        first: Mean of the first few losses.
        count: Losses seen.
    """

    smoothed: float | None = None
    first: float = 0.0
    count: int = 0

    def diverges(self, loss: float) -> bool:
        """Take in a loss, and tell whether it is no number, or the average ten times that of the beginning."""
        if not math.isfinite(loss):
            return True
        self.smoothed = loss if self.smoothed is None else _MEMORY * self.smoothed + (1 - _MEMORY) * loss
        self.count += 1
        if self.count <= _FIRST_LOSSES:
            self.first += (loss - self.first) / self.count
            return False
        return self.smoothed > _EXPLODED_RATIO * max(self.first, _LEAST_LOSS)
