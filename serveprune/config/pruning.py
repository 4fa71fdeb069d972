from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, get_args

from pydantic import ConfigDict, Field, model_validator

from serveprune.config.base import ConfigModel
from serveprune.config.numbers import Fraction, NumberAboveOne, PositiveNumber, PositiveWholeNumber, WholeNumber
from serveprune.config.passes import PassOptions

_OF_WEIGHTS = ("pattern", "scope", "schedule", "embeddings")

TargetKind = Literal["speedup", "latency_ms", "flops_ratio", "parameters_ratio", "bytes_ratio", "ratio"]


class PruneTarget(ConfigModel):
    """How much pruning has to bring: a mapping with exactly one key.

    ``speedup`` is before / after, so more is faster. Every ratio is after / before: 0.5 leaves half.
    """

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    speedup: NumberAboveOne | None = Field(
        default=None,
        description="Dense latency / pruned latency, both measured here with the threads of serving.",
    )
    latency_ms: PositiveNumber | None = Field(
        default=None, description="Milliseconds of one batch, measured here with the threads of serving."
    )
    flops_ratio: Fraction | None = Field(
        default=None,
        description="Multiplications left / before, counted. Half of them rarely means half the latency.",
    )
    parameters_ratio: Fraction | None = Field(default=None, description="Parameters left / before, counted.")
    bytes_ratio: Fraction | None = Field(default=None, description="Bytes of all weights left / before, counted.")
    ratio: Fraction | None = Field(
        default=None,
        description="Part of every layer's channels, neurons or heads that stays; nothing is searched.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            known = ", ".join(type(self).model_fields)
            raise ValueError(f"expected exactly one target of {known}, got {', '.join(given) or 'none'}")
        return self

    @property
    def kind(self) -> TargetKind:
        """Which target is set."""
        kinds: tuple[TargetKind, ...] = get_args(TargetKind)
        return next(kind for kind in kinds if getattr(self, kind) is not None)

    @property
    def value(self) -> float:
        """The number that is asked for."""
        value: float = getattr(self, self.kind)
        return value


class WorkloadOptions(ConfigModel):
    """The batch whose latency a latency target speaks of."""

    batch_size: WholeNumber = Field(default=8, ge=1, description="Rows.")
    length: PositiveWholeNumber | None = Field(
        default=None,
        description="Tokens of every text. Default: those of a typical calibration sample.",
    )


class PruneOptions(PassOptions):
    """Structured pruning: whole channels, neurons or heads go, and what stays makes up for them."""

    revision: ClassVar[int] = 2

    structure: Literal["auto", "channels", "neurons", "heads", "head_dims", "blocks"] = Field(
        default="auto", description="What may go. `auto`: channels, neurons, heads, and residual blocks as a whole."
    )
    importance: Literal["reconstruction", "taylor", "fisher", "magnitude", "magnitude_l1", "random"] = Field(
        default="reconstruction",
        description="What goes first. `reconstruction`: what the rest can make up for best, judged on calibration "
        "samples; `taylor` and `fisher`: what a loss feels least, by the mean size or square of its gradients; "
        "`magnitude`: the smallest weights (L2; `magnitude_l1`: L1); `random`: a control.",
    )
    loss: Literal["answers", "labels"] = Field(
        default="answers",
        description="Of `taylor` and `fisher`. `answers`: distance from the dense answers, for which no labels are "
        "needed; `labels`: cross-entropy with the calibration set's labels.",
    )
    target: PruneTarget = Field(description="How much pruning has to bring.")
    repair: tuple[Literal["least_squares", "variance", "batch_norm"], ...] = Field(
        default=("least_squares", "batch_norm"),
        description="What makes up for the loss. `least_squares`: weights and biases of the layers that lost inputs, "
        "one after the other, fitted to what the dense graph gave; `variance`: their outputs scaled to vary as "
        "before; `batch_norm`: its statistics moved by as much as the inputs of each moved.",
    )
    samples: PositiveWholeNumber = Field(
        default=2048,
        description="Most calibration samples to learn from, drawn evenly from a larger set: a build takes as long as "
        "they do, and thousands hardly tell more than these.",
    )
    synthetic_samples: PositiveWholeNumber | None = Field(
        default=None,
        description="Without a calibration set, learn from so many made-up inputs; the report says so. Expect less.",
    )
    ignore: tuple[str, ...] = Field(
        default=(), description="Shell-style patterns of weight or node names; groups they touch stay whole."
    )
    round_to: WholeNumber = Field(
        default=16,
        ge=4,
        description="Widths of channels and neurons stay multiples of this, for the runtime's kernels.",
    )
    workload: WorkloadOptions = Field(default=WorkloadOptions(), description="What latency is measured on.")

    @model_validator(mode="before")
    @classmethod
    def _no_options_of_weights(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        foreign = [key for key in _OF_WEIGHTS if key in value]
        target = value.get("target")
        if isinstance(target, Mapping) and "sparsity" in target:
            foreign.append("target: sparsity")
        if foreign:
            raise ValueError(
                f"expected structure: weights with {', '.join(foreign)}, got structure: "
                f"{value.get('structure', 'auto')}, which removes whole units and leaves no zeros"
            )
        return value

    @model_validator(mode="after")
    def _loss_of_gradients(self) -> Self:
        if self.loss != "answers" and not self.learns_by_gradients:
            raise ValueError(
                f"expected importance: taylor or fisher with loss: {self.loss}, got importance: {self.importance}, "
                "which takes no gradients"
            )
        return self

    @property
    def learns_by_gradients(self) -> bool:
        """Whether what goes is judged by gradients of a loss."""
        return self.importance in ("taylor", "fisher")

    @property
    def needs_calibration(self) -> bool:
        """Whether the model has to have a calibration set."""
        return self.synthetic_samples is None
