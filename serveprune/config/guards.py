from typing import Self

from pydantic import Field, model_validator

from serveprune.config.base import ConfigModel
from serveprune.config.duration import Duration
from serveprune.config.numbers import Confidence, PositiveNumber, PositiveShare, ShareFromZero, WholeNumber


class GuardsConfig(ConfigModel):
    """What the canary's live requests must show. A bound that is broken ends the rollout: the stable side serves again.

    Bounds that are not set are not judged; at least one is. `docs/guards.md` says how each is judged.
    """

    max_error_ratio: ShareFromZero | None = Field(
        default=None, description="Failed requests / requests of the canary, at most."
    )
    max_error_ratio_above_stable: ShareFromZero | None = Field(
        default=None,
        description="The canary's error ratio less that of the stable side, at most: 0.005 allows half a percent of "
        "the requests more to fail.",
    )
    max_p99_ms: PositiveNumber | None = Field(
        default=None,
        description="Milliseconds from a request to its answer in which the canary answers 99 of 100.",
    )
    max_p99_times_stable: PositiveNumber | None = Field(
        default=None,
        description="The canary's 99th percentile of latency over that of the stable side, at most: 1.2 allows a "
        "fifth more.",
    )
    min_agreement: PositiveShare | None = Field(
        default=None,
        description="Mean agreement of the canary's live answers with those of the other tier, at least; needs "
        "`shadow`. Measured like a tier's quality: how often the highest score is at the same class, cosine.",
    )
    max_agreement_below_stable: PositiveShare | None = Field(
        default=None,
        description="The mean agreement of the stable side's live answers with those of the other tier, less that of "
        "the canary's, at most; needs `shadow` of a third tier, such as dense.",
    )
    min_samples: WholeNumber = Field(
        default=200,
        ge=1,
        description="With fewer samples in the window a guard says nothing: it neither ends a pause nor the rollout.",
    )
    window: Duration = Field(
        default=600.0,
        description="How far back requests are judged.",
        json_schema_extra={"default": "10m"},
    )
    confidence: Confidence = Field(
        default=0.95, description="With which it must be known that a bound is broken before that counts."
    )

    @model_validator(mode="after")
    def _at_least_one(self) -> Self:
        if not self.bounds:
            known = [name for name in type(self).model_fields if name.startswith(("max_", "min_a"))]
            raise ValueError(f"expected at least one bound of {', '.join(known)}, got none")
        return self

    @property
    def of_agreement(self) -> str | None:
        """Name of a bound that is set and needs live answers to be compared, if there is one."""
        return next((name for name in self.bounds if "agreement" in name), None)

    @property
    def bounds(self) -> dict[str, float]:
        """Name -> value of the bounds that are set."""
        values: dict[str, float | None] = {
            "max_error_ratio": self.max_error_ratio,
            "max_error_ratio_above_stable": self.max_error_ratio_above_stable,
            "max_p99_ms": self.max_p99_ms,
            "max_p99_times_stable": self.max_p99_times_stable,
            "min_agreement": self.min_agreement,
            "max_agreement_below_stable": self.max_agreement_below_stable,
        }
        return {name: value for name, value in values.items() if value is not None}
