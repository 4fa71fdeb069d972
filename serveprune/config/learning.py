from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from serveprune.config.base import ConfigModel
from serveprune.config.numbers import Number, PositiveNumber, PositiveWholeNumber, WholeNumber


class LearningBudget(ConfigModel):
    """How long to learn: a mapping with exactly one key."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    seconds: PositiveNumber | None = Field(
        default=None,
        description="Wall time, the looks at the held-out part included. The number of steps then depends on the "
        "machine; with `steps` or `epochs` the same seed gives the same weights.",
    )
    steps: PositiveWholeNumber | None = Field(default=None, description="Batches learned from.")
    epochs: PositiveNumber | None = Field(default=None, description="Times that all samples are learned from.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            known = ", ".join(type(self).model_fields)
            raise ValueError(f"expected exactly one budget of {known}, got {', '.join(given) or 'none'}")
        return self


class TrainingOptions(ConfigModel):
    """How weights are trained, whatever for."""

    budget: LearningBudget = Field(default=LearningBudget(epochs=10), description="How long to learn.")
    optimizer: Literal["adamw", "sgd"] = Field(
        default="adamw", description="`adamw`: step sizes of each weight's own; `sgd`: gradients with momentum."
    )
    learning_rate: PositiveNumber = Field(default=1e-3, description="At the top of the schedule.")
    momentum: Number = Field(default=0.9, ge=0, lt=1, description="Of `sgd`; `adamw` has its own.")
    weight_decay: Number = Field(
        default=0.01, ge=0, description="Pull towards zero on matrices and filters; biases and scales have none."
    )
    batch_size: WholeNumber = Field(default=32, ge=1, description="Samples of one step.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="How the learning rate goes down to zero, after the warm-up."
    )
    warmup_ratio: Number = Field(
        default=0.05, ge=0, lt=1, description="Part of the budget in which the learning rate rises from zero."
    )
    gradient_norm: PositiveNumber | None = Field(
        default=1.0, description="A longer gradient is shortened to this. Null: never."
    )
    validations: WholeNumber = Field(
        default=20, ge=1, description="Looks at the held-out part in the course of the budget; the best weights win."
    )
    patience: PositiveWholeNumber | None = Field(
        default=None, description="Stop after so many looks without a better one. Null: use up the budget."
    )
    seed: WholeNumber = Field(default=0, ge=0, description="Of every random choice.")
