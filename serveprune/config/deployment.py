from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from serveprune.config.base import ConfigModel
from serveprune.config.model import DENSE
from serveprune.config.numbers import PositiveNumber, PositiveShare, PositiveWholeNumber, WholeNumber


class DeploymentConfig(ConfigModel):
    """The policy by which traffic for one model is spread over its tiers."""

    policy: Literal["fixed", "adaptive"] = Field(
        default="fixed",
        description="What requests get that ask for nothing. `fixed`: the default tier. `adaptive`: the best tier that "
        "is predicted to answer in time, which is a smaller one under load.",
    )
    default_tier: str = Field(
        default=DENSE,
        description="With `fixed` only: serves requests that name no tier; one of the model's tiers.",
    )
    target_latency_ms: PositiveNumber | None = Field(
        default=None,
        validate_default=True,
        description="With `adaptive` only, and needed there: the time from a request to its answer that is kept.",
    )
    min_quality: PositiveShare | None = Field(
        default=None,
        description="With `adaptive` only: tiers whose quality is lower are not chosen; dense has 1. Default: all are.",
    )
    share: PositiveNumber = Field(
        default=1.0,
        description="Weight of the model when several have requests waiting: one of share 2 is computed twice as long "
        "as one of share 1.",
    )
    priority: WholeNumber = Field(
        default=2,
        ge=1,
        le=3,
        description="Of requests that name none, from 1, the first, to 3. Low priority means waiting, not starving: a "
        "level is worth one second of waiting.",
    )
    max_queued_requests: PositiveWholeNumber | None = Field(
        default=None,
        description="Requests to this model that may wait or run. Default: as many as server.max_queued_requests.",
    )

    @field_validator("default_tier")
    @classmethod
    def _default_tier_is_fixed(cls, tier: str, info: ValidationInfo) -> str:
        if info.data.get("policy") == "adaptive":
            raise ValueError(f"expected no default_tier with policy adaptive, which chooses the tier, got {tier!r}")
        return tier

    @field_validator("target_latency_ms")
    @classmethod
    def _target_is_adaptive(cls, target_ms: float | None, info: ValidationInfo) -> float | None:
        if target_ms is None and info.data.get("policy") == "adaptive":
            raise ValueError("expected the milliseconds to keep, which policy adaptive needs, got none")
        _expect_adaptive(target_ms, info)
        return target_ms

    @field_validator("min_quality")
    @classmethod
    def _min_quality_is_adaptive(cls, quality: float | None, info: ValidationInfo) -> float | None:
        _expect_adaptive(quality, info)
        return quality


def _expect_adaptive(value: float | None, info: ValidationInfo) -> None:
    policy = info.data.get("policy", "adaptive")
    if value is not None and policy != "adaptive":
        raise ValueError(f"expected this with policy adaptive only, got it with policy {policy}")
