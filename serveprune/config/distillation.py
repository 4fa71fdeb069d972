from typing import ClassVar, Literal

from pydantic import Field

from serveprune.config.base import ConfigModel
from serveprune.config.learning import LearningBudget, TrainingOptions
from serveprune.config.numbers import Fraction, Number, PositiveNumber
from serveprune.config.passes import PassOptions


class DistillLosses(ConfigModel):
    """How much each loss counts; 0 leaves it out. All are relative to what dense gives, so that 1 is much."""

    divergence: Number = Field(
        default=1.0, ge=0, description="Classifiers: Kullback-Leibler divergence of the class probabilities."
    )
    cosine: Number = Field(default=1.0, ge=0, description="Embeddings: 1 - cosine.")
    answers: Number = Field(
        default=1.0, ge=0, description="Embeddings and other answers: squared error over the mean square of dense's."
    )
    intermediate: Number = Field(
        default=1.0, ge=0, description="Intermediate values: squared error over the mean square of dense's."
    )
    labels: Number = Field(
        default=0.0,
        ge=0,
        description="Classifiers: cross-entropy with the calibration set's labels, which it must have.",
    )


class DistillOptions(PassOptions, TrainingOptions):
    """Learning from dense: the weights that are there are trained until the answers are those of the dense graph."""

    revision: ClassVar[int] = 1

    budget: LearningBudget = Field(default=LearningBudget(epochs=20), description="How long to learn.")
    learning_rate: PositiveNumber = Field(default=3e-4, description="At the top of the schedule.")
    losses: DistillLosses = Field(default=DistillLosses(), description="How much each loss counts.")
    temperature: PositiveNumber = Field(
        default=2.0,
        description="Class scores are divided by it, so that unlikely classes count; 1: as they are.",
    )
    intermediate: Literal["auto", "none"] | tuple[str, ...] = Field(
        default="auto",
        description="Values inside the graph that should be like dense's. `auto`: after each residual block; or a list "
        "of names. Where pruning took channels, the rest is compared.",
    )
    held_out: Fraction = Field(
        default=0.1,
        description="Part of the calibration samples that judges the weights and is not learned from; at most 512. "
        "`prune` leaves a tenth to it: beyond that it was learned from before.",
    )
    batch_norm: Literal["train", "frozen"] = Field(
        default="frozen",
        description="`frozen`: BatchNormalization keeps its statistics; `train`: it takes those of each batch and "
        "updates its own, for sets of many thousand samples.",
    )
    ignore: tuple[str, ...] = Field(
        default=(), description="Shell-style patterns of weight names; those weights stay as they are."
    )
    quantization_aware: bool = Field(
        default=False, description="Learn with the rounding of a static `quantize` pass that follows."
    )
