"""Which tier a request asks for, from the three places where it may say so. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from serveprune.errors import InvalidArgument
from serveprune.oip.messages import InferenceRequest, Parameter

TIER_PARAMETER = "tier"
STRICT_PARAMETER = "strict_tier"
QUALIFIER = "@"
_IN_HEADER = "the header x-compression-tier"


@dataclass(slots=True)
class TierChoice:
    """What a request says about its tier.

    Attributes:
        model: Model name without a qualifier.
        tier: The tier asked for; ``None`` leaves it to the deployment.
        strict: Fail rather than serve another tier.
    """

    model: str
    tier: str | None
    strict: bool


def split_name(name: str) -> tuple[str, str | None]:
    """Split a tier-qualified model name: ``minilm@int8`` is ``("minilm", "int8")``.

    Raises:
        InvalidArgument: The tier is empty.
    """
    model, separator, tier = name.partition(QUALIFIER)
    if separator:
        _check_not_empty(tier, f"model name {name!r}")
    return model, tier if separator else None


def choose_tier(request: InferenceRequest) -> TierChoice:
    """Return the tier a request asks for by qualified name, header or parameter.

    Raises:
        InvalidArgument: Two of them disagree, or one is empty or has the wrong type.
    """
    if not request.parameters and QUALIFIER not in request.model:
        # Nearly all requests.
        if request.tier is not None:
            _check_not_empty(request.tier, _IN_HEADER)
        return TierChoice(request.model, request.tier, strict=False)
    model, qualified = split_name(request.model)
    asked = {
        "the model name": qualified,
        _IN_HEADER: request.tier,
        "the parameter tier": _tier_parameter(request.parameters),
    }
    named = {place: tier for place, tier in asked.items() if tier is not None}
    for place, tier in named.items():
        _check_not_empty(tier, place)
    if len(set(named.values())) > 1:
        said = ", ".join(f"{place} says {tier!r}" for place, tier in named.items())
        raise InvalidArgument(f"the request asks for more than one tier: {said}; ask for one")
    return TierChoice(model, next(iter(named.values()), None), _strict_parameter(request.parameters))


def _check_not_empty(tier: str, where: str) -> None:
    if not tier:
        raise InvalidArgument(f"{where}: expected the name of a tier, got an empty one; leave it out for the default")


def _tier_parameter(parameters: Mapping[str, Parameter]) -> str | None:
    tier = parameters.get(TIER_PARAMETER)
    if tier is not None and not isinstance(tier, str):
        raise InvalidArgument(f"parameter tier: expected the name of a tier, got {tier!r}")
    return tier


def _strict_parameter(parameters: Mapping[str, Parameter]) -> bool:
    strict = parameters.get(STRICT_PARAMETER, False)
    # The specification's generated REST client sends booleans as 1.0 and 0.0.
    if isinstance(strict, str) or strict not in (0, 1):
        raise InvalidArgument(f"parameter strict_tier: expected true or false, got {strict!r}")
    return bool(strict)
