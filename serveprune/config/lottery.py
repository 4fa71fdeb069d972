from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from serveprune.config.base import ConfigModel
from serveprune.config.learning import TrainingOptions
from serveprune.config.locations import ExistingFile
from serveprune.config.numbers import Fraction, Number, NumberFromZero, PositiveNumber, WholeNumber, WholeNumberFromZero
from serveprune.config.passes import PassOptions


class RewindOptions(ConfigModel):
    """What every round goes back to: a mapping with exactly one key."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    step: WholeNumberFromZero | None = Field(
        default=None,
        description="The weights after so many steps of the first training; 0 is its beginning, before any step.",
    )
    checkpoint: ExistingFile | None = Field(
        default=None,
        description="The weights in this safetensors file, with the names they have in the graph. The first training "
        "begins with them too.",
    )
    learning_rate: WholeNumberFromZero | None = Field(
        default=None,
        description="Weights stay as they are; only the learning rate goes back, to that of this step of the schedule.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            known = ", ".join(type(self).model_fields)
            raise ValueError(f"expected exactly one of {known}, got {', '.join(given) or 'none'}")
        return self

    @property
    def first_step(self) -> int:
        """Step of the schedule at which the training of a ticket begins."""
        return self.step or self.learning_rate or 0


class LotteryTrainingOptions(TrainingOptions):
    """How every network of the lottery is trained; by default as image classifiers are trained from nothing."""

    optimizer: Literal["adamw", "sgd"] = Field(
        default="sgd", description="`adamw`: step sizes of each weight's own; `sgd`: gradients with momentum."
    )
    learning_rate: PositiveNumber = Field(default=0.1, description="At the top of the schedule.")
    weight_decay: Number = Field(
        default=5e-4, ge=0, description="Pull towards zero on matrices and filters; biases and scales have none."
    )
    batch_size: WholeNumber = Field(default=64, ge=1, description="Samples of one step.")
    gradient_norm: PositiveNumber | None = Field(
        default=None, description="A longer gradient is shortened to this. Null: never."
    )


class LotteryOptions(PassOptions):
    """Iterative magnitude pruning with rewinding: a sparse network that learns as well as the dense one."""

    revision: ClassVar[int] = 1

    rounds: WholeNumber = Field(default=5, ge=1, description="Times that weights are removed and the rest learns anew.")
    rate: Fraction | None = Field(
        default=None,
        description="Part of the weights left that each round removes. Default: 0.2, or what `sparsity` asks.",
    )
    sparsity: Fraction | None = Field(
        default=None, description="Part of the weights that is zero after the last round, instead of `rate`."
    )
    rewind: RewindOptions = Field(default=RewindOptions(step=0), description="What every round goes back to.")
    start: Literal["random", "given", "trained"] = Field(
        default="random",
        description="What the first training begins with. `random`: weights drawn anew, each layer as torch draws it; "
        "`given`: those of the graph; `trained`: there is no first training, the graph is the dense network.",
    )
    scope: Literal["global", "layer"] = Field(
        default="global", description="Whether the smallest weights of all layers go, or the same part of each layer's."
    )
    leave_out: tuple[Literal["first", "last"], ...] = Field(
        default=("last",), description="Layers that keep all weights: the first, the last, both or none."
    )
    ignore: tuple[str, ...] = Field(
        default=(), description="Shell-style patterns of weight or node names that keep all weights."
    )
    training: LotteryTrainingOptions = Field(
        default=LotteryTrainingOptions(),
        description="Of every network: the dense one, each ticket, and each random re-initialisation.",
    )
    held_out: Fraction = Field(
        default=0.2,
        description="Part of the calibration set that is not learned from: a quarter of it chooses the best "
        "weights of each training, the rest judges them for the table.",
    )
    reinitialize: bool = Field(
        default=True, description="Also train each mask with weights drawn anew, the control. Takes half of the time."
    )
    accuracy_loss: NumberFromZero | None = Field(
        default=None,
        description="Leave the sparsest ticket that loses at most so much accuracy against dense (0.01 is a point). "
        "Default: leave that of the last round.",
    )

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.rate is not None and self.sparsity is not None:
            raise ValueError("expected rate or sparsity, got both")
        if self.training.budget.seconds is not None:
            raise ValueError(
                "training.budget: expected steps or epochs, so that every network learns equally long, got seconds"
            )
        if self.rewind.checkpoint is not None and self.start == "given":
            raise ValueError(
                "start: with rewind.checkpoint the first training begins with the checkpoint; expected `trained` if "
                "the graph is what came of it, else no start, got given"
            )
        if self.start == "trained" and self.rewind.step:
            raise ValueError(
                f"rewind.step: expected 0 with start: trained, for which nothing is trained before the first round, "
                f"got {self.rewind.step}"
            )
        return self

    def files(self) -> Mapping[str, Path]:
        """See `PassOptions.files`."""
        return {} if self.rewind.checkpoint is None else {"rewind.checkpoint": self.rewind.checkpoint}

    @property
    def sparsities(self) -> tuple[float, ...]:
        """Part of the weights that is zero after each round; every round removes the same part of what is left."""
        kept = 1 - (self.rate or 0.2) if self.sparsity is None else (1 - self.sparsity) ** (1 / self.rounds)
        return tuple(1 - kept**count for count in range(1, self.rounds + 1))
