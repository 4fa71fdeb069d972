import threading
from collections.abc import Mapping

from serveprune.config.deployment import DeploymentConfig
from serveprune.models.registry import Registry
from serveprune.rollouts.canary import side_bounds
from serveprune.rollouts.rollouts import Observation
from serveprune.rollouts.side import Side
from serveprune.routing.router import Router
from serveprune.routing.traffic import CanaryOrder


class RolloutSides:
    """The canaries of one serving process, as their rollouts see them: what they do, and what they are to get.

    Thread-safe.
    """

    def __init__(self, registry: Registry, router: Router) -> None:
        self._registry = registry
        self._router = router
        self._lock = threading.Lock()
        self._sides: dict[str, tuple[str, tuple[float, ...], Side, Side]] = {}
        self._parts: dict[str, tuple[int, str | None]] = {}

    def deploy(self, deployments: Mapping[str, DeploymentConfig]) -> None:
        """Have the canaries of these deployments; one that counts as before goes on counting."""
        sides = {}
        for model, deployment in deployments.items():
            if deployment.canary is not None:
                tier, bounds = deployment.canary.tier, side_bounds(deployment.canary)
                present = self._sides.get(model)
                is_same = present is not None and present[:2] == (tier, bounds)
                sides[model] = present if present and is_same else (tier, bounds, Side(bounds), Side(bounds))
        with self._lock:
            self._sides = sides
            self._parts = {model: part for model, part in self._parts.items() if model in sides}

    def observe(self) -> dict[str, Observation]:
        """Return what each model's canary was up to since the last call."""
        with self._lock:
            # Another model may have taken the place of the one that was told.
            for model in self._sides:
                self._obey(model)
            return {
                model: Observation(tier, self._artifact(model, tier), canary.take(), stable.take())
                for model, (tier, _, canary, stable) in self._sides.items()
            }

    def obey(self, model: str, percent: int, artifact: str | None) -> None:
        """Give the canary of a model its part of the requests, as long as it serves this artifact."""
        with self._lock:
            self._parts[model] = (percent, artifact)
            self._obey(model)

    def _obey(self, model: str) -> None:
        sides, part, registered = self._sides.get(model), self._parts.get(model), self._registry.find_current(model)
        if sides is not None and part is not None and registered is not None:
            self._router.obey(registered, CanaryOrder(*part, *sides[2:]))
            for other in self._registry.versions(model):
                if other is not registered:
                    # Its canary is of no rollout, and what it does says nothing of the one that is.
                    unread = Side(sides[1])
                    self._router.obey(other, CanaryOrder(0, None, unread, unread))

    def _artifact(self, model: str, tier: str) -> str | None:
        registered = self._registry.find_current(model)
        variant = registered.variants.get(tier) if registered is not None else None
        if variant is None or variant.instance is None or variant.artifact is None:
            return None
        return variant.artifact.key
