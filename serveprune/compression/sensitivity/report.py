"""What `serveprune sensitivity` tells: JSON between the child that measures and whoever shows it. No torch, no onnx."""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field

POINTS = 100
"""A point is a hundredth of the quality metric."""

_LEAST_LOSS = 1e-4
"""Of a metric that is no count, what is less lost is nothing."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Change(_Part):
    """One group narrowed, or one layer quantized, and nothing else."""

    layer: str = Field(description="Name for people.")
    name: str = Field(description="The group's first weight, or the layer's node: what patterns to ignore match.")
    change: Literal["prune", "int8"]
    kind: str = Field(description="What is removed (channels, neurons, heads), or the operator that is quantized.")
    strength: float = Field(description="Share of the units that is removed; 1 for int8.")
    before: int | None = Field(description="Units; null for int8.")
    after: int | None
    error: float = Field(description="Share of the answers' energy that is lost on calibration samples.")
    quality: dict[str, float] = Field(description="Every metric, on held-out samples.")
    quality_lost: float = Field(description="1 minus the model's own metric; dense has 1.")
    saved_ms: float = Field(description="Median over the rounds, of one batch; below 0 it costs time.")
    saved_ms_low: float = Field(description="10th percentile.")
    saved_ms_high: float = Field(description="90th percentile.")
    rounds: int
    saved_bytes: int

    @property
    def saves_time(self) -> bool:
        """Whether what is saved is more than noise: about two standard errors of the median."""
        return self.saved_ms > (self.saved_ms_high - self.saved_ms_low) / math.sqrt(self.rounds)

    def ms_per_point(self, least_loss: float) -> float | None:
        """Return the milliseconds gained per point of quality lost; ``None`` if none are gained.

        Args:
            least_loss: Smaller losses than the samples can show count as this one.
        """
        return self.saved_ms / (POINTS * max(self.quality_lost, least_loss)) if self.saves_time else None


class SensitivityReport(_Part):
    """What single changes to a model cost in quality and gain in time, the bargains first."""

    model: str
    metric: str
    evaluation_set: str
    evaluation_samples: int = Field(description="Samples that quality was measured on.")
    held_out_samples: int = Field(description="Samples there would have been.")
    calibration_samples: int
    error_samples: int = Field(description="Calibration samples that errors were measured on.")
    batch_size: int
    length: int | None = Field(description="Tokens of the longest text of the timed batch; null for other models.")
    threads: int = Field(description="Threads of one batch in serving, with which time is measured.")
    scheme: str | None = Field(description="Of the quantization; null if nothing was quantized.")
    dense_ms: float
    dense_bytes: int
    changes: tuple[Change, ...]
    left_out: tuple[str, ...] = Field(description="What was not looked at, and why.")
    warnings: tuple[str, ...]
    measured: str = Field(description="When, UTC.")
    cached: bool = Field(default=False, description="Whether it was measured by an earlier call.")

    @computed_field(description="Smallest loss that the samples can show.")  # type: ignore[prop-decorator]
    @property
    def least_loss(self) -> float:
        """Smallest loss that the samples can show."""
        return 1 / self.evaluation_samples if self.metric == "top1_agreement" else _LEAST_LOSS

    def ms_per_point(self, change: Change) -> float | None:
        """Return what `Change.ms_per_point` does, for these samples."""
        return change.ms_per_point(self.least_loss)

    def sorted(self) -> "SensitivityReport":
        """Return the same with the bargains first; what gains no time comes last, what loses least first."""

        def rank(change: Change) -> tuple[float, float]:
            return -(self.ms_per_point(change) or 0.0), change.quality_lost

        return self.model_copy(update={"changes": tuple(sorted(self.changes, key=rank))})

    def most_sensitive(self, kind: Literal["prune", "int8"], *, count: int) -> list[Change]:
        """Return the changes of one kind with the largest error, one per layer.

        Errors tell layers apart where a metric that counts samples sees nothing.
        """
        worst: dict[str, Change] = {}
        for change in sorted(self.changes, key=lambda each: -each.error):
            if change.change == kind:
                worst.setdefault(change.layer, change)
        return list(worst.values())[:count]

    def answer(self) -> dict[str, Any]:
        """Return it ready for JSON, with the milliseconds per point of each change."""
        told = self.model_dump(mode="json")
        for shown, change in zip(told["changes"], self.changes, strict=True):
            shown["ms_per_point"] = self.ms_per_point(change)
        return told
