from typing import ClassVar, Literal, Self, get_args

from pydantic import ConfigDict, Field, model_validator

from serveprune.config.base import ConfigModel
from serveprune.config.numbers import Fraction, NumberAboveOne, PositiveNumber, PositiveWholeNumber, WholeNumber
from serveprune.config.passes import PassOptions

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

    revision: ClassVar[int] = 1

    structure: Literal["auto", "channels", "neurons", "heads", "head_dims", "blocks"] = Field(
        default="auto", description="What may go. `auto`: channels, neurons, heads, and residual blocks as a whole."
    )
    importance: Literal["reconstruction", "magnitude", "magnitude_l1", "random"] = Field(
        default="reconstruction",
        description="What goes first. `reconstruction`: what the rest can make up for best, judged on calibration "
        "samples; `magnitude`: the smallest weights (L2; `magnitude_l1`: L1); `random`: a control.",
    )
    target: PruneTarget = Field(description="How much pruning has to bring.")
    repair: tuple[Literal["least_squares", "variance", "batch_norm"], ...] = Field(
        default=("least_squares", "batch_norm"),
        description="What makes up for the loss. `least_squares`: weights and biases of the layers that lost inputs, "
        "one after the other, fitted to what the dense graph gave; `variance`: their outputs scaled to vary as "
        "before; `batch_norm`: statistics taken anew.",
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
