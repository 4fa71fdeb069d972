import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from serveprune.config.deployment import DeploymentConfig
from serveprune.errors import FailedPrecondition, InvalidArgument, Unavailable
from serveprune.models.instance import Instance
from serveprune.models.registry import Model
from serveprune.models.variant import Variant, VariantState
from serveprune.observability.metrics import Metrics
from serveprune.oip.messages import InferenceRequest
from serveprune.routing.adaptive_deployment import AdaptiveDeployment
from serveprune.routing.adaptive_policy import Verdict
from serveprune.routing.candidate import Candidate
from serveprune.routing.objective import Objective
from serveprune.routing.objective_choice import choose, milliseconds, refusal
from serveprune.routing.route import Route, RouteReason
from serveprune.routing.tier_selection import TierChoice
from serveprune.routing.traffic import CanaryOrder, Traffic, sticky_key
from serveprune.scheduling.forecast import Forecaster

_RETRY_WHILE_BUILDING_SECONDS = 5.0


class Router:
    """Decides which tier serves a request: the one asked for, one that meets its demands, or the deployment's.

    Thread-safe. Forecasts are made only where they decide.
    """

    def __init__(
        self, forecaster: Forecaster, metrics: Metrics, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._forecaster = forecaster
        self._metrics = metrics
        self._clock = clock
        self._adaptive: dict[Model, AdaptiveDeployment] = {}
        self._traffic: dict[Model, Traffic] = {}
        self._deployments: dict[Model, DeploymentConfig] = {}

    def deploy(self, model: Model, deployment: DeploymentConfig) -> None:
        """Spread the traffic of a model as its deployment says, from now on.

        An adaptive deployment that changes in other ways than its target and least quality goes on where it was, and
        so does a split or a canary of which all stays as it is.
        """
        former, self._deployments[model] = self._deployments.get(model), deployment
        if deployment.split is None and deployment.canary is None:
            self._traffic.pop(model, None)
        elif former is None or _of_traffic(former) != _of_traffic(deployment):
            self._traffic[model] = Traffic(model, deployment)
        if deployment.target_latency_ms is None:
            self._adaptive.pop(model, None)
            return
        target_seconds, present = deployment.target_latency_ms / 1e3, self._adaptive.get(model)
        if present is None or (present.target_seconds, present.min_quality) != (target_seconds, deployment.min_quality):
            self._adaptive[model] = AdaptiveDeployment(
                model,
                self._metrics,
                target_seconds=target_seconds,
                min_quality=deployment.min_quality,
                clock=self._clock,
            )

    def keep_only(self, models: Iterable[Model]) -> None:
        """Keep nothing of any other model."""
        kept = set(models)
        self._deployments = {model: each for model, each in self._deployments.items() if model in kept}
        self._traffic = {model: traffic for model, traffic in self._traffic.items() if model in kept}
        self._adaptive = {model: adaptive for model, adaptive in self._adaptive.items() if model in kept}

    def route(
        self,
        model: Model,
        choice: TierChoice,
        *,
        objective: Objective | None,
        rows: int,
        length: int,
        elapsed_seconds: float,
        sticky_key: str | None = None,
    ) -> Route:
        """Decide where a request goes.

        Args:
            model: Of the request.
            choice: What it says about its tier.
            objective: What it demands instead.
            rows: Of the request.
            length: Of each row, as `Job.length` counts it.
            elapsed_seconds: Since it arrived.
            sticky_key: Where a deployment spreads requests, those of the same key get the same tier.

        Raises:
            InvalidArgument: It names a tier and sets an objective, or demands what no tier can give.
            ResourceExhausted: No tier would answer in time, because of what is queued.
            DeadlineExceeded: The latency it demands had passed before.
            NotFound: See `route`.
            Unavailable: See `route`; or the tier that may meet the demands is still being built.
            FailedPrecondition: See `route`.
        """
        adaptive = self._adaptive.get(model)
        if objective is not None:
            if choice.tier is not None:
                raise InvalidArgument(
                    f"the request asks for the tier {choice.tier!r} and sets max_latency_ms or min_quality; expected "
                    "one or the other"
                )
            ready = self._ready(model, rows=rows, length=length)
            return _for_objective(model, objective, ready, adaptive=adaptive, elapsed_seconds=elapsed_seconds)
        if choice.tier is not None:
            return route(model, choice, withheld=self._withheld(model))
        spread, side = None, None
        traffic = self._traffic.get(model)
        if traffic is not None:
            spread, side = traffic.choose(sticky_key)
        if spread is None:
            spread = self._stable(model, choice, adaptive, rows=rows, length=length, elapsed_seconds=elapsed_seconds)
            spread.side = side
        return spread

    def _stable(
        self,
        model: Model,
        choice: TierChoice,
        adaptive: AdaptiveDeployment | None,
        *,
        rows: int,
        length: int,
        elapsed_seconds: float,
    ) -> Route:
        """Route a request that names no tier, and that no canary and no split gets."""
        if adaptive is None:
            return route(model, choice, withheld=self._withheld(model))
        ready = self._ready(model, rows=rows, length=length, min_quality=adaptive.min_quality)
        return _adaptively(model, adaptive, ready, elapsed_seconds=elapsed_seconds)

    def adaptive_state(self, model: Model) -> dict[str, Any] | None:
        """Return how a model's adaptive deployment stands, ready for JSON; ``None`` where it has none."""
        adaptive = self._adaptive.get(model)
        return adaptive.describe() if adaptive is not None else None

    def sticky_key(self, model: Model, request: InferenceRequest) -> str | None:
        """Return what a request to a model is spread by, if its deployment spreads by anything."""
        traffic = self._traffic.get(model)
        return sticky_key(traffic.sticky, request) if traffic is not None and traffic.sticky is not None else None

    def obey(self, model: Model, order: CanaryOrder) -> None:
        """Give the canary of a model what its rollout says."""
        traffic = self._traffic.get(model)
        if traffic is not None:
            traffic.obey(order)

    def _withheld(self, model: Model) -> str | None:
        """Return the tier that a request gets by name or by its rollout only; see `Traffic.withheld`."""
        traffic = self._traffic.get(model)
        return traffic.withheld if traffic is not None else None

    def _ready(
        self, model: Model, *, rows: int, length: int, min_quality: float | None = None
    ) -> list[tuple[Instance, Candidate]]:
        """Return what is loaded and good enough, from best to smallest, each with its forecast."""
        ready, withheld = [], self._withheld(model)
        for rank, variant in enumerate(model.variants.values()):
            instance = variant.instance
            if variant.tier == withheld:
                continue
            if instance is not None and _reaches(variant.quality, min_quality):
                forecast = self._forecaster.forecast(instance, rows=rows, length=length)
                ready.append((instance, Candidate(variant.tier, rank, variant.quality, forecast)))
        return ready


def _of_traffic(deployment: DeploymentConfig) -> tuple[object, ...]:
    return deployment.split, deployment.canary, deployment.sticky


def _reaches(quality: float | None, min_quality: float | None) -> bool:
    return min_quality is None or (quality is not None and quality >= min_quality)


def _instance_of(chosen: Candidate, ready: Sequence[tuple[Instance, Candidate]]) -> Instance:
    return next(instance for instance, candidate in ready if candidate is chosen)


def _for_objective(
    model: Model,
    objective: Objective,
    ready: Sequence[tuple[Instance, Candidate]],
    *,
    adaptive: AdaptiveDeployment | None,
    elapsed_seconds: float,
) -> Route:
    min_quality = objective.min_quality
    if min_quality is None and adaptive is not None:
        min_quality = adaptive.min_quality
    candidates = [each for _, each in ready if _reaches(each.quality, min_quality)]
    if not candidates:
        # Dense has the highest quality that may be demanded, so it is not there yet, or not any more.
        raise _not_served(model, model.dense)
    chosen = choose(objective, candidates, elapsed_seconds=elapsed_seconds)
    if chosen is None:
        assert objective.max_latency_seconds is not None
        raise refusal(
            model.name,
            objective.max_latency_seconds,
            candidates,
            ready=[each for _, each in ready],
            building=[variant.tier for variant in model.variants.values() if not variant.state.is_settled],
            elapsed_seconds=elapsed_seconds,
        )
    return Route(
        _instance_of(chosen, ready),
        wanted=candidates[0].tier if objective.max_latency_seconds is not None else chosen.tier,
        tier=chosen.tier,
        reason=RouteReason.OBJECTIVE,
        explanation=f"{RouteReason.OBJECTIVE}: {_objective_in_words(objective, chosen, elapsed_seconds)}",
        deadline_seconds=objective.max_latency_seconds,
    )


def _objective_in_words(objective: Objective, chosen: Candidate, elapsed_seconds: float) -> str:
    said = f"{chosen.tier} is predicted to answer in {milliseconds(elapsed_seconds + chosen.forecast.finish_seconds)}"
    if objective.max_latency_seconds is not None:
        said += f" of {milliseconds(objective.max_latency_seconds)}"
    if chosen.quality is not None:
        said += f", with quality {chosen.quality:.4g}"
        if objective.min_quality is not None:
            said += f" of at least {objective.min_quality:g}"
    return said


def _adaptively(
    model: Model,
    adaptive: AdaptiveDeployment,
    ready: Sequence[tuple[Instance, Candidate]],
    *,
    elapsed_seconds: float,
) -> Route:
    candidates = [candidate for _, candidate in ready]
    if not candidates:
        raise _not_served(model, model.dense)
    decision = adaptive.decide(candidates, elapsed_seconds=elapsed_seconds)
    chosen = decision.candidate
    reason = RouteReason.ADAPTIVE_LOAD if decision.verdict is Verdict.LOAD else RouteReason.ADAPTIVE
    return Route(
        _instance_of(chosen, ready),
        wanted=candidates[0].tier,
        tier=chosen.tier,
        reason=reason,
        explanation=f"{reason}: {adaptive.explain(decision, candidates, elapsed_seconds=elapsed_seconds)}",
        target_seconds=adaptive.target_seconds,
    )


def route(model: Model, choice: TierChoice, *, withheld: str | None = None) -> Route:
    """Return the wanted tier if it is ready, else the nearest better one; never a forecast.

    Args:
        model: Of the request.
        choice: What it says about its tier.
        withheld: A tier that stands in for no other.

    Raises:
        NotFound: The model has no such tier.
        Unavailable: The tier is still being built and the request is strict, or nothing better is ready.
        FailedPrecondition: The tier was refused or failed, and the request is strict or nothing better is ready.
    """
    wanted = model.variant(choice.tier or model.default_tier)
    if wanted.instance is not None:
        reason = RouteReason.REQUESTED if choice.tier else RouteReason.DEFAULT
        return Route(wanted.instance, wanted.tier, wanted.tier, reason, str(reason))
    better = model.serving(wanted.tier, withheld=withheld)
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
