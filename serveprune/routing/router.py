from dataclasses import dataclass
from enum import StrEnum

from serveprune.errors import FailedPrecondition, Unavailable
from serveprune.models.instance import Instance
from serveprune.models.registry import Model
from serveprune.models.variant import Variant, VariantState
from serveprune.routing.tier_selection import TierChoice

_RETRY_WHILE_BUILDING_SECONDS = 5.0


class RouteReason(StrEnum):
    """Why a request was served by the tier that served it."""

    REQUESTED = "requested"
    DEFAULT = "default"
    BUILDING = "building"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes.

    Attributes:
        wanted: The tier asked for, or the deployment's default.
        tier: The tier that serves.
        explanation: `reason` in words, for the answer.
    """

    instance: Instance
    wanted: str
    tier: str
    reason: RouteReason
    explanation: str


def route(model: Model, choice: TierChoice) -> Route:
    """Return the wanted tier if it is ready, else the nearest better one.

    Raises:
        NotFound: The model has no such tier.
        Unavailable: The tier is still being built and the request is strict, or nothing better is ready.
        FailedPrecondition: The tier was refused or failed, and the request is strict or nothing better is ready.
    """
    wanted = model.variant(choice.tier or model.default_tier)
    if wanted.instance is not None:
        reason = RouteReason.REQUESTED if choice.tier else RouteReason.DEFAULT
        return Route(wanted.instance, wanted.tier, wanted.tier, reason, str(reason))
    better = model.serving(wanted.tier)
    if choice.strict or better is None or better.instance is None:
        raise _not_served(model, wanted)
    reason = _fallback_reason(wanted)
    explanation = f"{reason}: {_state_in_words(wanted)}; {better.tier} is the nearest better tier"
    return Route(better.instance, wanted.tier, better.tier, reason, explanation)


def _fallback_reason(variant: Variant) -> RouteReason:
    match variant.state:
        case VariantState.REFUSED:
            return RouteReason.REFUSED
        case VariantState.FAILED:
            return RouteReason.FAILED
        case _:
            return RouteReason.BUILDING


def _state_in_words(variant: Variant) -> str:
    match variant.state:
        case VariantState.REFUSED:
            return f"{variant.tier} was refused by its gate"
        case VariantState.FAILED:
            return f"the build of {variant.tier} failed"
        case _:
            return f"{variant.tier} is still being built"


def _not_served(model: Model, variant: Variant) -> Unavailable | FailedPrecondition:
    said = f"model {model.name}: {_state_in_words(variant)}"
    if variant.state in (VariantState.REFUSED, VariantState.FAILED):
        return FailedPrecondition(": ".join((said, *variant.reasons[:1])))
    return Unavailable(f"{said}; retry later", retry_after_seconds=_RETRY_WHILE_BUILDING_SECONDS)
