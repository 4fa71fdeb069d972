import threading
from collections.abc import Callable, Sequence
from typing import Any

from serveprune.errors import ResourceExhausted
from serveprune.models.registry import Model
from serveprune.observability import metrics as series
from serveprune.observability.metrics import Metrics
from serveprune.routing.adaptive_policy import AdaptivePolicy, Decision, Verdict
from serveprune.routing.candidate import Candidate
from serveprune.routing.objective_choice import milliseconds


class AdaptiveDeployment:
    """Runs the adaptive policy for one model: its state, its series, its words. Thread-safe."""

    def __init__(
        self,
        model: Model,
        metrics: Metrics,
        *,
        target_seconds: float,
        min_quality: float | None,
        clock: Callable[[], float],
    ) -> None:
        """Start with the best tier as the ceiling.

        Args:
            model: Whose requests are routed.
            metrics: Where the ceiling and its changes are shown.
            target_seconds: From arrival to answer.
            min_quality: Tiers of lower quality are not to be among the candidates.
            clock: Monotonic seconds.
        """
        self.target_seconds = target_seconds
        self.min_quality = min_quality
        self._model = model
        self._clock = clock
        self._policy = AdaptivePolicy(target_seconds)
        self._lock = threading.Lock()
        self._state = self._policy.start(now=clock())
        labels = (model.name, model.version)
        self._up = metrics.counter(series.ADAPTIVE_STEPS, *labels, "up")
        self._down = metrics.counter(series.ADAPTIVE_STEPS, *labels, "down")
        self._ceiling = metrics.gauge(series.ADAPTIVE_CEILING, *labels)

    def decide(self, candidates: Sequence[Candidate], *, elapsed_seconds: float) -> Decision:
        """Choose the tier for one request; see `AdaptivePolicy.decide`.

        Raises:
            ResourceExhausted: What is queued already takes too long for every tier.
        """
        with self._lock:
            before = self._state
            self._state, decision = self._policy.decide(
                before, candidates, now=self._clock(), elapsed_seconds=elapsed_seconds
            )
            after = self._state
            if after.ceiling != before.ceiling:
                self._ceiling.set(after.ceiling)
        if after.steps_up > before.steps_up:
            self._up.inc()
        if after.steps_down > before.steps_down:
            self._down.inc()
        if decision.verdict is Verdict.REJECTED:
            first = decision.candidate
            raise ResourceExhausted(
                f"model {self._model.name}: no tier would answer within {milliseconds(self.target_seconds)} now; the "
                f"first, {first.tier}, in {milliseconds(elapsed_seconds + first.forecast.finish_seconds)}; retry in "
                f"{milliseconds(decision.retry_after_seconds)}",
                retry_after_seconds=decision.retry_after_seconds,
            )
        return decision

    def explain(self, decision: Decision, candidates: Sequence[Candidate], *, elapsed_seconds: float) -> str:
        """Return the reasons for a decision in words, with its figures."""
        chosen, target = decision.candidate, milliseconds(self.target_seconds)
        if decision.verdict is Verdict.IMPOSSIBLE:
            alone = milliseconds(chosen.forecast.alone_seconds)
            return f"no tier answers within {target} even on an idle server; {chosen.tier} is the fastest with {alone}"
        finish = milliseconds(elapsed_seconds + chosen.forecast.finish_seconds)
        if decision.verdict is Verdict.LATE:
            return f"{chosen.tier} is the fastest, predicted to answer in {finish} of {target}"
        said = f"{chosen.tier} is predicted to answer in {finish} of {target}"
        if decision.verdict is Verdict.BEST:
            return said
        best = candidates[0]
        best_seconds = elapsed_seconds + best.forecast.finish_seconds
        if best_seconds > self.target_seconds:
            return f"{said}; {best.tier} in {milliseconds(best_seconds)}"
        return f"{said}; {best.tier} ({milliseconds(best_seconds)}) waits until the load has fallen"

    def describe(self) -> dict[str, Any]:
        """Return how the deployment stands, ready for JSON."""
        with self._lock:
            state, now = self._state, self._clock()
        return {
            "target_latency_ms": self.target_seconds * 1e3,
            "min_quality": self.min_quality,
            "ceiling": list(self._model.variants)[state.ceiling],
            "ceiling_for_seconds": now - state.since,
            "steps_up": state.steps_up,
            "steps_down": state.steps_down,
        }
