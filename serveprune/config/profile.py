from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from serveprune.config.base import ConfigModel


class PassOptions(ConfigModel):
    """Options of one compression pass.

    ``revision`` is part of every artifact key: raise it when the pass would write a different graph for the
    same options, and old artifacts are built anew.
    """

    revision: ClassVar[int]


class QuantizeOptions(PassOptions):
    """Integer quantization of weights and activations."""

    revision: ClassVar[int] = 1

    dtype: Literal["int8"] = Field("int8", description="Integer type of weights (activations are unsigned 8 bit).")
    scheme: Literal["auto", "dynamic", "static"] = Field(
        "auto",
        description="`dynamic` computes activation scales per batch at run time; `static` takes them from the "
        "calibration set. `auto`: static for convolutional graphs, dynamic for transformers and recurrent nets.",
    )
    ignore: tuple[str, ...] = Field((), description="Shell-style patterns of node names that stay in float.")


class PassConfig(ConfigModel):
    """One step of a profile: a mapping with exactly one key, the pass, to its options."""

    quantize: QuantizeOptions | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if len(self.model_fields_set) != 1 or self.options is None:
            known = ", ".join(type(self).model_fields)
            raise ValueError(f"expected exactly one pass per list entry, one of: {known}")
        return self

    @property
    def name(self) -> str:
        """The pass's name, its key in the pass table."""
        return next(iter(self.model_fields_set))

    @property
    def options(self) -> PassOptions:
        """The options of the pass that is set."""
        options: PassOptions = getattr(self, self.name)
        return options


class GateConfig(ConfigModel):
    """The conditions under which a built artifact may serve. Unset conditions are not judged.

    Whatever is set here, an artifact that is neither faster nor smaller than dense is refused.
    """

    min_quality: float | None = Field(None, description="Lower bound of the tier's quality metric.")
    max_latency_ratio: float | None = Field(
        None, gt=0, description="Upper bound of tier latency / dense latency, both measured on this machine."
    )
    max_batch_deviation: float | None = Field(
        None, ge=0, description="Upper bound of how far a row's answer may move when its batch neighbours change."
    )


class ProfileConfig(ConfigModel):
    """A named, ordered list of compression passes with its quality gate."""

    passes: tuple[PassConfig, ...] = Field(min_length=1)
    gate: GateConfig = GateConfig()
