"""Which tier requests get that name none, where a deployment spreads them over several."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from serveprune.config.deployment import DeploymentConfig
from serveprune.config.model import DENSE
from serveprune.config.traffic import StickyConfig
from serveprune.models.registry import Model
from serveprune.models.variant import Variant
from serveprune.oip.messages import InferenceRequest
from serveprune.rollouts.rollout import FULL_PERCENT
from serveprune.rollouts.side import Side
from serveprune.rollouts.split import StickySplit, WeightedSplit
from serveprune.routing.route import Route, RouteReason

_STABLE = ""
"""Stands for whatever serves what the canary does not get. No tier has this name."""


@dataclass(frozen=True, slots=True)
class CanaryOrder:
    """What a rollout has the traffic of its model do.

    Attributes:
        percent: Of the requests that name no tier, for the canary.
        artifact: Key of the artifact that the rollout is of: another one under the tier's name gets nothing.
        canary: Told how requests to the canary end.
        stable: Told how the others end.
    """

    percent: int
    artifact: str | None
    canary: Side
    stable: Side


class Traffic:
    """Spreads the requests of one model. Thread-safe."""

    def __init__(self, model: Model, deployment: DeploymentConfig) -> None:
        """Begin; a canary gets nothing before it is ordered.

        Args:
            model: Whose requests are spread.
            deployment: Has a split or a canary.
        """
        self._model = model
        self.sticky = deployment.sticky
        self._canary_tier = deployment.canary.tier if deployment.canary is not None else None
        self._lock = threading.Lock()
        self._order: CanaryOrder | None = None
        self._spread(deployment.split or {_STABLE: FULL_PERCENT})

    def obey(self, order: CanaryOrder) -> None:
        """Give the canary what its rollout says, from now on."""
        with self._lock:
            if self._order is None or self._order.percent != order.percent:
                assert self._canary_tier is not None
                self._spread({self._canary_tier: order.percent, _STABLE: FULL_PERCENT - order.percent})
            self._order = order

    @property
    def withheld(self) -> str | None:
        """The tier that nothing but its rollout, or its name, leads to: the canary, unless it was promoted.

        Dense is what others are compared with, so there is nothing to guard it from.
        """
        tier, order = self._canary_tier, self._order
        if tier is None or tier == DENSE:
            return None
        is_promoted = order is not None and order.percent == FULL_PERCENT and self._is_of(order, tier)
        return None if is_promoted else tier

    def _is_of(self, order: CanaryOrder, tier: str) -> bool:
        """Tell whether a tier serves the artifact that a rollout is of."""
        variant = self._model.variants.get(tier)
        return variant is not None and variant.artifact is not None and variant.artifact.key == order.artifact

    def _spread(self, weights: Mapping[str, int]) -> None:
        self._by_turns = WeightedSplit(weights)
        self._by_key = StickySplit(weights, salt=self._model.name)

    def choose(self, key: str | None) -> tuple[Route | None, Side | None]:
        """Return where a request goes; without a route, to whatever serves else.

        Args:
            key: Requests of the same one get the same tier; ``None`` for each one for itself.

        Returns:
            The route, if there is one, and who is to be told how the request ends.
        """
        with self._lock:
            order = self._order
            tier = self._by_turns.choose() if key is None else self._by_key.choose(key)
        if self._canary_tier is None:
            # A model that is about to be replaced may lack what the split of its successor names.
            variant = self._model.variants.get(tier)
            return (self._route(variant, RouteReason.SPLIT) if variant is not None else None), None
        if order is None:
            return None, None
        if tier == _STABLE:
            return None, order.stable
        variant = self._model.variants.get(tier)
        if variant is None or variant.artifact is None or variant.artifact.key != order.artifact:
            return None, order.stable
        route = self._route(variant, RouteReason.CANARY, f"{order.percent} % of the requests go to the canary")
        if route is None:
            return None, order.stable
        route.side = order.canary
        return route, order.canary

    @staticmethod
    def _route(variant: Variant, reason: RouteReason, said: str = "") -> Route | None:
        """Return the route to a variant that serves; nobody else stands in for it here."""
        if variant.instance is None:
            return None
        explanation = f"{reason}: {said}" if said else str(reason)
        return Route(variant.instance, variant.tier, variant.tier, reason, explanation)


def sticky_key(sticky: StickyConfig, request: InferenceRequest) -> str | None:
    """Return what a request is spread by, if it has that."""
    match sticky.by:
        case "request_id":
            return request.id or None  # over gRPC an empty one is none
        case "parameter":
            value = request.parameters.get(sticky.name or "")
            return None if value is None else str(value)
        case "header":
            return _header(sticky.name or "", request)


def _header(name: str, request: InferenceRequest) -> str | None:
    wanted = name.lower()
    names: tuple[str | bytes, ...] = (wanted, wanted.encode("latin-1", "replace"))
    value = next((value for found, value in request.headers if found in names), None)
    return value.decode("latin-1") if isinstance(value, bytes) else value
