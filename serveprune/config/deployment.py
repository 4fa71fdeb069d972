from collections.abc import Mapping
from typing import Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from serveprune.config.base import ConfigModel
from serveprune.config.canary import CanaryConfig
from serveprune.config.model import DENSE
from serveprune.config.numbers import (
    PositiveNumber,
    PositiveShare,
    PositiveWholeNumber,
    WholeNumber,
    WholeNumberFromZero,
)
from serveprune.config.traffic import ShadowConfig, StickyConfig


def _tier_that_stands_for_others(data: Mapping[str, Any]) -> str:
    """Return the default tier of a deployment that does not name one."""
    split: Mapping[str, int] | None = data.get("split")
    if split:
        return max(split, key=split.__getitem__)
    return data.get("stable") or DENSE


class DeploymentConfig(ConfigModel):
    """The policy by which traffic for one model is spread over its tiers."""

    policy: Literal["fixed", "adaptive"] = Field(
        default="fixed",
        description="What requests get that ask for nothing. `fixed`: the default tier. `adaptive`: the best tier that "
        "is predicted to answer in time, which is a smaller one under load.",
    )
    canary: CanaryConfig | None = Field(
        default=None, description="A tier that takes over step by step. Default: none. Not with `split`."
    )
    stable: str | None = Field(
        default=None,
        validate_default=True,
        description="With `fixed` and a canary only: serves the requests that the canary does not get; one of the "
        "model's tiers. Default: `dense`. With `adaptive` that is the tier it chooses.",
    )
    split: dict[str, WholeNumberFromZero] | None = Field(
        default=None,
        description="With `fixed` only: tier -> its weight among requests that name no tier, a whole number that "
        "counts relative to the sum. Default: none. Not with `canary`.",
    )
    default_tier: str = Field(
        default_factory=_tier_that_stands_for_others,
        description="With `fixed` only, without `canary` and `split`: serves requests that name no tier; one of the "
        "model's tiers.",
        json_schema_extra={"default": DENSE},
    )
    shadow: ShadowConfig | None = Field(
        default=None,
        validate_default=True,
        description="A tier that answers are compared with, or that is tried out. Default: none.",
    )
    sticky: StickyConfig | None = Field(
        default=None,
        description="With `canary` or `split` only: requests of one user, say, stay with one tier. Default: each "
        "request for itself.",
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

    @field_validator("stable")
    @classmethod
    def _stable_is_beside_a_canary(cls, tier: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("policy") == "adaptive":
            if tier is not None:
                raise ValueError(f"expected no stable with policy adaptive, which chooses the tier, got {tier!r}")
            return tier
        canary: CanaryConfig | None = info.data.get("canary")
        if canary is not None and canary.tier == (tier or DENSE):
            raise ValueError(f"expected another tier than that of the canary, got {tier or DENSE!r}")
        if tier is not None and "canary" in info.data and canary is None:
            raise ValueError(f"expected stable beside a canary only, got {tier!r} without one; write default_tier")
        return tier

    @field_validator("split")
    @classmethod
    def _split_is_alone_and_gives_something(
        cls, split: dict[str, int] | None, info: ValidationInfo
    ) -> dict[str, int] | None:
        if split is None:
            return split
        if info.data.get("policy") == "adaptive":
            raise ValueError("expected no split with policy adaptive, which chooses the tier, got one")
        if info.data.get("canary") is not None:
            raise ValueError("expected split or canary, got both")
        if not any(split.values()):
            raise ValueError("expected at least one tier with a weight above 0, got none")
        return split

    @field_validator("default_tier")
    @classmethod
    def _default_tier_is_the_word(cls, tier: str, info: ValidationInfo) -> str:
        if info.data.get("policy") == "adaptive":
            raise ValueError(f"expected no default_tier with policy adaptive, which chooses the tier, got {tier!r}")
        if info.data.get("canary") is not None:
            raise ValueError(f"expected stable in place of default_tier beside a canary, got default_tier {tier!r}")
        if info.data.get("split") is not None:
            raise ValueError(f"expected no default_tier with a split, which names every tier, got {tier!r}")
        return tier

    @field_validator("shadow")
    @classmethod
    def _shadow_has_something_to_compare(cls, shadow: ShadowConfig | None, info: ValidationInfo) -> ShadowConfig | None:
        canary: CanaryConfig | None = info.data.get("canary")
        guards = canary.guards if canary is not None else None
        guard = guards.of_agreement if guards is not None else None
        if shadow is None:
            if guard is not None:
                raise ValueError(
                    f"expected a shadow, such as {{tier: dense, sample_ratio: 0.02}}, because canary.guards.{guard} "
                    "judges live answers by it, got none"
                )
            return shadow
        if canary is not None and guard is not None and shadow.tier == canary.tier:
            raise ValueError(
                f"expected another tier than that of the canary, for canary.guards.{guard} compares their answers, "
                f"got {shadow.tier!r}"
            )
        if guards is not None and guards.max_agreement_below_stable is not None:
            stable = info.data.get("stable") or DENSE
            if info.data.get("policy") == "fixed" and shadow.tier == stable:
                raise ValueError(
                    "expected another tier than the stable one, for canary.guards.max_agreement_below_stable compares "
                    f"the answers of both sides with those of a third, got {shadow.tier!r}"
                )
        chooses = canary is not None or info.data.get("split") is not None or info.data.get("policy") != "fixed"
        known = {"canary", "split"} <= info.data.keys()
        if known and not chooses and shadow.tier == info.data.get("default_tier"):
            raise ValueError(f"expected another tier than the default one, which serves already, got {shadow.tier!r}")
        return shadow

    @field_validator("sticky")
    @classmethod
    def _sticky_has_a_choice(cls, sticky: StickyConfig | None, info: ValidationInfo) -> StickyConfig | None:
        known = {"canary", "split"} <= info.data.keys()
        if sticky is not None and known and info.data["canary"] is None and info.data["split"] is None:
            raise ValueError("expected this with canary or split only, got it without")
        return sticky

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

    @model_serializer(mode="wrap")
    def _written_as_in_a_file(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What stands for others is no word of the file's, and would be refused when this is read again.
        written: dict[str, Any] = handler(self)
        if not self.names_default_tier:
            written.pop("default_tier", None)
        return written

    @property
    def names_default_tier(self) -> bool:
        """Whether `default_tier` is a choice of its own, not what follows from `stable`, `split` or `policy`."""
        return self.policy == "fixed" and self.canary is None and self.split is None

    @property
    def named_tiers(self) -> dict[str, str]:
        """Key -> the tier that it names, of all keys that name one."""
        named = {f"split.{tier}": tier for tier in self.split or {}}
        if self.policy == "fixed" and self.split is None:
            named["default_tier" if self.canary is None else "stable"] = self.default_tier
        if self.canary is not None:
            named["canary.tier"] = self.canary.tier
        if self.shadow is not None:
            named["shadow.tier"] = self.shadow.tier
        return named

    @property
    def stable_tier(self) -> str | None:
        """The tier that serves what a canary does not get; ``None`` if the adaptive policy chooses it."""
        return self.default_tier if self.policy == "fixed" else None


def _expect_adaptive(value: float | None, info: ValidationInfo) -> None:
    policy = info.data.get("policy", "adaptive")
    if value is not None and policy != "adaptive":
        raise ValueError(f"expected this with policy adaptive only, got it with policy {policy}")
