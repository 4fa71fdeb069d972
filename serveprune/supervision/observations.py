import threading
from collections.abc import Mapping

from serveprune.config.deployment import DeploymentConfig
from serveprune.rollouts.canary import side_bounds
from serveprune.rollouts.latency_counts import LatencyCounts
from serveprune.rollouts.rollouts import Observation
from serveprune.rollouts.window import Counts


class Observations:
    """What the canaries of several processes were up to, added up. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bounds: dict[str, tuple[float, ...]] = {}
        self._tiers: dict[str, str] = {}
        self._counts: dict[str, tuple[Counts, Counts]] = {}
        self._artifacts: dict[str, dict[str, str | None]] = {}

    def deploy(self, deployments: Mapping[str, DeploymentConfig]) -> None:
        """Have the canaries of these deployments; one that counts as before goes on counting."""
        with self._lock:
            before = self._bounds
            tiers = {model: each.canary.tier for model, each in deployments.items() if each.canary is not None}
            for artifacts in self._artifacts.values():
                for model in [model for model in artifacts if tiers.get(model) != self._tiers.get(model)]:
                    del artifacts[model]
            self._tiers = tiers
            self._bounds = {
                model: side_bounds(deployment.canary)
                for model, deployment in deployments.items()
                if deployment.canary is not None
            }
            self._counts = {
                model: self._counts[model] if before.get(model) == bounds else _none(bounds)
                for model, bounds in self._bounds.items()
            }

    def add(self, process: str, observed: Mapping[str, Observation]) -> None:
        """Take what a process saw."""
        with self._lock:
            # What was on its way when the config changed may be of another tier, or count in other steps.
            of_now = {model: each for model, each in observed.items() if each.tier == self._tiers.get(model)}
            self._artifacts[process] = {model: each.artifact for model, each in of_now.items()}
            for model, each in of_now.items():
                if each.canary.latencies.bounds == self._bounds.get(model):
                    canary, stable = self._counts[model]
                    self._counts[model] = canary + each.canary, stable + each.stable

    def forget(self, process: str) -> None:
        """Wait no more for a process that has ended."""
        with self._lock:
            self._artifacts.pop(process, None)

    def take(self) -> dict[str, Observation]:
        """Return what all of them saw since the last call; a canary is ready when it is in every process that said."""
        with self._lock:
            taken = {
                model: Observation(self._tiers[model], self._artifact(model), *self._counts[model])
                for model in self._bounds
            }
            self._counts = {model: _none(bounds) for model, bounds in self._bounds.items()}
        return taken

    def _artifact(self, model: str) -> str | None:
        found = {artifacts.get(model) for artifacts in self._artifacts.values()}
        return found.pop() if len(found) == 1 else None


def _none(bounds: tuple[float, ...]) -> tuple[Counts, Counts]:
    counts = Counts(0, LatencyCounts.of((), bounds))
    return counts, counts
