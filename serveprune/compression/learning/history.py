"""What happened in a training, for people and for the manifest."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

_DIGITS = 6
"""Significant ones of what is written down; more would only tell of rounding."""


class Ending(StrEnum):
    """Why a training ended."""

    BUDGET = "budget"
    PATIENCE = "patience"
    DIVERGED = "diverged"


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One look at the held-out part.

    Attributes:
        step: Batches learned from until then.
        loss: Mean over the batches since the row before; None before the first.
        quality: Of the held-out part; higher is better.
        learning_rate: Of the last batch.
        seconds: Since the beginning, the time before a kill included.
    """

    step: int
    loss: float | None
    quality: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True, slots=True)
class History:
    """A training from beginning to end.

    Attributes:
        rows: The first one is the quality before the first step.
        best_step: After which step the weights that were kept are.
        ending: Why it ended.
        epochs: Times that all samples were learned from.
    """

    rows: tuple[HistoryRow, ...]
    best_step: int
    ending: Ending
    epochs: float

    @property
    def steps(self) -> int:
        """Batches learned from."""
        return self.rows[-1].step

    @property
    def seconds(self) -> float:
        """Wall time."""
        return self.rows[-1].seconds

    @property
    def quality_before(self) -> float:
        """Of the held-out part before the first step."""
        return self.rows[0].quality

    @property
    def quality(self) -> float:
        """Of the weights that were kept."""
        return next(row.quality for row in self.rows if row.step == self.best_step)

    @property
    def improved(self) -> bool:
        """Whether the weights that were kept are not those of the beginning."""
        return self.best_step != self.rows[0].step

    def findings(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        return {
            "ended_by": str(self.ending),
            "steps": self.steps,
            "epochs": _rounded(self.epochs),
            "seconds": _rounded(self.seconds),
            "best_step": self.best_step,
            "quality_before": _rounded(self.quality_before),
            "quality": _rounded(self.quality),
            "history": [{name: _rounded(value) for name, value in asdict(row).items()} for row in self.rows],
        }


def _rounded(value: float | None) -> float | None:
    if value is None or isinstance(value, int):
        return value
    rounded = float(f"{value:.{_DIGITS}g}")
    # JSON knows no infinity.
    return rounded if abs(rounded) < float("inf") else None
