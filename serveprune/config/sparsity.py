from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from serveprune.config.base import ConfigModel
from serveprune.config.numbers import Fraction, PositiveWholeNumber, WholeNumber
from serveprune.config.passes import PassOptions

_OF_UNITS = ("repair", "round_to", "workload")
_OF_GRADIENTS = ("taylor", "fisher")
_LEARNING = ("wanda", "reconstruction", *_OF_GRADIENTS)


class SparsityTarget(ConfigModel):
    """How many single weights have to go."""

    sparsity: Fraction = Field(description="Zeros / weights, over all weights that may become zero together.")


class SparsitySchedule(ConfigModel):
    """In how many rounds the zeros come; each round takes scores anew on the network that is sparse already."""

    rounds: WholeNumber = Field(default=1, ge=1, le=100, description="How many.")
    curve: Literal["cubic", "linear"] = Field(
        default="cubic", description="How sparsity grows: `cubic` takes most in the first rounds, `linear` evenly."
    )


class WeightPruneOptions(PassOptions):
    """Unstructured pruning: single weights become zero, and the graph is stored compressed.

    Smaller on disk, not faster: ONNX Runtime on CPU multiplies by a zero as by any number.
    """

    revision: ClassVar[int] = 1

    structure: Literal["weights"] = Field(description="`weights`: single weights become zero.")
    importance: Literal["reconstruction", "wanda", "taylor", "fisher", "magnitude", "random"] = Field(
        default="reconstruction",
        description="What becomes zero. `reconstruction`: what the other weights of the same output make up for best, "
        "and they do (SparseGPT); `wanda`: the least |weight| times norm of its input; `taylor` and `fisher`: what a "
        "loss feels least, by gradients; `magnitude`: the least |weight|; `random`: a control. All but the last two "
        "learn from calibration samples.",
    )
    loss: Literal["answers", "labels"] = Field(
        default="answers",
        description="Of `taylor` and `fisher`. `answers`: distance from the dense answers, for which no labels are "
        "needed; `labels`: cross-entropy with the calibration set's labels.",
    )
    target: SparsityTarget | None = Field(default=None, description="How many zeros; this or `pattern`.")
    pattern: str | None = Field(
        default=None,
        pattern=r"^[0-9]{1,3}:[0-9]{1,3}$",
        description="`N:M` such as `2:4`: of every M neighbours along a layer's inputs at most N are left.",
    )
    scope: Literal["layer", "global"] = Field(
        default="layer",
        description="`layer`: every layer gets the same share of zeros; `global`: layers that bear it get more.",
    )
    schedule: SparsitySchedule = Field(default=SparsitySchedule(), description="All at once, or in rounds.")
    embeddings: bool = Field(
        default=True,
        description="Whether tables that rows are looked up in take part; by magnitude, whatever `importance` says.",
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
        default=(), description="Shell-style patterns of weight or node names that stay as they are."
    )

    @model_validator(mode="before")
    @classmethod
    def _no_options_of_units(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        foreign = [key for key in _OF_UNITS if key in value]
        if foreign:
            raise ValueError(
                f"expected options of structure: weights ({', '.join(cls.model_fields)}), got {', '.join(foreign)}, "
                "which belongs to the pruning of channels, neurons, heads and blocks"
            )
        target = value.get("target")
        if isinstance(target, Mapping) and target and "sparsity" not in target:
            raise ValueError(
                f"expected target: {{sparsity: ...}} with structure: weights, got {', '.join(map(str, target))}; "
                "zeros save bytes of the stored file and no time, so the other targets need another structure"
            )
        if value.get("importance") == "magnitude_l1":
            raise ValueError("expected importance: magnitude, got magnitude_l1; of single weights both norms are equal")
        return value

    @field_validator("pattern")
    @classmethod
    def _some_but_not_all(cls, value: str | None) -> str | None:
        if value is not None:
            kept, group = map(int, value.split(":"))
            if not 0 < kept < group:
                raise ValueError(f"expected N:M with N from 1 to M - 1, such as 2:4, got {value!r}")
        return value

    @model_validator(mode="after")
    def _target_or_pattern(self) -> Self:
        if (self.target is None) == (self.pattern is None):
            given = "neither" if self.target is None else "both"
            raise ValueError(
                f"expected target: {{sparsity: ...}} or pattern: N:M, which is a sparsity of its own; got {given}"
            )
        if self.pattern is not None and self.scope == "global":
            raise ValueError("expected scope: layer with a pattern, got global; a pattern is the same in every layer")
        return self

    @model_validator(mode="after")
    def _loss_of_gradients(self) -> Self:
        if self.loss != "answers" and not self.learns_by_gradients:
            raise ValueError(
                f"expected importance: taylor or fisher with loss: {self.loss}, got importance: {self.importance}, "
                "which takes no gradients"
            )
        return self

    @property
    def kept_of_group(self) -> tuple[int, int] | None:
        """``(N, M)`` of the pattern."""
        if self.pattern is None:
            return None
        kept, group = map(int, self.pattern.split(":"))
        return kept, group

    @property
    def sparsity(self) -> float:
        """Zeros / weights that are asked for, by target or by pattern."""
        if self.kept_of_group is not None:
            kept, group = self.kept_of_group
            return 1 - kept / group
        assert self.target is not None
        return self.target.sparsity

    @property
    def learns(self) -> bool:
        """Whether what goes is judged on samples."""
        return self.importance in _LEARNING

    @property
    def learns_by_gradients(self) -> bool:
        """Whether what goes is judged by gradients of a loss."""
        return self.importance in _OF_GRADIENTS

    @property
    def needs_calibration(self) -> bool:
        """Whether the model has to have a calibration set."""
        return self.learns and self.synthetic_samples is None
