from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from serveprune.config.base import ConfigModel
from serveprune.config.distillation import DistillOptions
from serveprune.config.lottery import LotteryOptions
from serveprune.config.numbers import Number, NumberFromZero, PositiveNumber, PositiveWholeNumber
from serveprune.config.passes import PassOptions
from serveprune.config.pruning import PruneOptions
from serveprune.config.sparsity import WeightPruneOptions


class QuantizeOptions(PassOptions):
    """Integer quantization of weights and activations."""

    revision: ClassVar[int] = 3

    dtype: Literal["int8"] = Field(
        default="int8", description="Integer type of weights (activations are unsigned 8 bit)."
    )
    scheme: Literal["auto", "dynamic", "static", "nncf"] = Field(
        default="auto",
        description="`dynamic` computes activation scales per batch at run time; `static` takes them from the "
        "calibration set. `auto`: static for convolutional graphs, dynamic for transformers and recurrent nets. "
        "`nncf`: static by NNCF, which smooths outliers and corrects biases: keeps transformers close to dense, and is "
        "meant for backend openvino (needs the extra nncf).",
    )
    ignore: tuple[str, ...] = Field(default=(), description="Shell-style patterns of node names that stay in float.")
    keep_float: PositiveWholeNumber | None = Field(
        default=None,
        description="So many layers stay in float: those that lose most of the answers' energy on calibration samples "
        "when they alone are quantized, as `serveprune sensitivity` shows. Not with scheme nncf.",
    )

    @field_validator("keep_float")
    @classmethod
    def _nncf_keeps_what_it_chooses(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("scheme") == "nncf":
            raise ValueError("expected none with scheme nncf, which chooses its layers itself; name some in ignore")
        return value


def _what_goes(value: Any) -> str:
    structure = value.get("structure") if isinstance(value, Mapping) else getattr(value, "structure", None)
    return "weights" if structure == "weights" else "units"


Prune = Annotated[
    Annotated[PruneOptions, Tag("units")] | Annotated[WeightPruneOptions, Tag("weights")],
    Discriminator(_what_goes),
]


class PassConfig(ConfigModel):
    """One step of a profile: a mapping with exactly one key, the pass, to its options."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    distill: DistillOptions | None = Field(
        default=None, description="Train what is left until it answers like dense; empty for the defaults."
    )
    lottery: LotteryOptions | None = Field(
        default=None, description="Find a sparse network that learns as well as the dense one, from labelled samples."
    )
    prune: Prune | None = Field(default=None, description="Remove channels, neurons, heads or single weights.")
    quantize: QuantizeOptions | None = Field(default=None, description="Quantize to integers; empty for the defaults.")

    @model_validator(mode="before")
    @classmethod
    def _bare_pass_has_default_options(cls, value: Any) -> Any:
        # `- quantize:` reads as null in YAML.
        if isinstance(value, dict) and len(value) == 1 and None in value.values():
            return {key: {} for key in value}
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if len(self._given) != 1:
            known = ", ".join(type(self).model_fields)
            given = ", ".join(self._given) or "none"
            raise ValueError(f"expected exactly one pass per list entry, one of {known}, got {given}")
        return self

    @property
    def _given(self) -> list[str]:
        return [name for name in type(self).model_fields if getattr(self, name) is not None]

    @property
    def name(self) -> str:
        """The pass's name, its key in the pass table."""
        return self._given[0]

    @property
    def options(self) -> PassOptions:
        """The options of the pass that is set."""
        options: PassOptions = getattr(self, self.name)
        return options


class GateConfig(ConfigModel):
    """The conditions under which a built artifact may serve. Unset conditions are not judged.

    Whatever is set here, an artifact that is neither faster nor smaller than dense is refused.
    """

    min_quality: Number | None = Field(default=None, description="Lower bound of the tier's quality metric.")
    max_latency_ratio: PositiveNumber | None = Field(
        default=None, description="Upper bound of tier latency / dense latency, both measured on this machine."
    )
    max_batch_deviation: NumberFromZero | None = Field(
        default=None,
        description="Upper bound of how far a row's answer may move when its batch neighbours change.",
    )


class ProfileConfig(ConfigModel):
    """A named, ordered list of compression passes with its quality gate."""

    passes: tuple[PassConfig, ...] = Field(
        min_length=1, description="Applied in this order; each entry is a mapping from one pass to its options."
    )
    gate: GateConfig = Field(default=GateConfig(), description="What a built artifact must show before it serves.")
