"""All canaries of one server."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serveprune.config.deployment import DeploymentConfig
from serveprune.errors import NotFound
from serveprune.observability import metrics as series
from serveprune.observability.audit_log import AUDIT_FILE, AuditEvent, AuditLog
from serveprune.observability.metrics import Metrics
from serveprune.observability.tracing_protocol import Attributes, Tracing
from serveprune.rollouts.canary import Canary
from serveprune.rollouts.identity import rollout_identity
from serveprune.rollouts.rollout import Change, ChangeKind, Phase, Weights
from serveprune.rollouts.state_file import StateFile
from serveprune.rollouts.window import Counts

_log = logging.getLogger(__name__)

_REMEMBERED_CHANGES = 200
_FOLDER = "rollouts"


@dataclass(frozen=True, slots=True)
class Observation:
    """What a model's canary was up to since the last look.

    Attributes:
        tier: Of the canary.
        artifact: Key of what it would serve; ``None`` while it is not ready.
        canary: What it did.
        stable: What the other side did.
    """

    tier: str
    artifact: str | None
    canary: Counts
    stable: Counts


class Rollouts:
    """Begins, moves on and stores the rollouts that the config asks for. Thread-safe."""

    def __init__(
        self,
        store: Path,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
        tracing: Tracing | None = None,
    ) -> None:
        """Begin without any.

        Args:
            store: The artifact store's folder; states and the audit log are kept in it.
            metrics: Shows how they stand.
            clock: Monotonic seconds.
            tracing: Makes a span of each change.
        """
        self._tracing = tracing
        self._folder = store / _FOLDER
        self.audit = AuditLog(store / AUDIT_FILE)
        self._metrics = metrics
        self._clock = clock
        self._lock = threading.RLock()
        self._canaries: dict[str, Canary] = {}
        self._changes: deque[dict[str, Any]] = deque(maxlen=_REMEMBERED_CHANGES)

    def deploy(self, deployments: Mapping[str, DeploymentConfig]) -> None:
        """Have the canaries of these deployments; one that is as it was goes on."""
        with self._lock:
            wanted = {model: each for model, each in deployments.items() if each.canary is not None}
            for model in [*self._canaries]:
                if model not in wanted or not _is_same(self._canaries[model].deployment, wanted[model]):
                    self._canaries.pop(model).close()
                    self._show(model, Weights(0), None)
            for model, deployment in wanted.items():
                if model not in self._canaries:
                    state = StateFile(self._folder, model)
                    self._canaries[model] = Canary(model, deployment, state, on_change=self._note)

    def tick(self, observed: Mapping[str, Observation]) -> dict[str, Weights]:
        """Let time pass, and return how the requests of each model are to be spread.

        Args:
            observed: By model.
        """
        weights = {}
        with self._lock:
            for model, canary in self._canaries.items():
                seen = observed.get(model)
                # The config may have changed since somebody looked.
                if seen is None or seen.tier != canary.config.tier or seen.canary.latencies.bounds != canary.bounds:
                    continue
                try:
                    weights[model] = canary.tick(
                        now=self._clock(), artifact=seen.artifact, canary=seen.canary, stable=seen.stable
                    )
                except (
                    Exception
                ):  # nothing goes to a canary that nobody guards, and the others are guarded all the same
                    _log.exception("rollout of %s: unexpected failure", model)
                    weights[model] = Weights(0)
                self._show(model, weights[model], canary)
        return weights

    def act(self, model: str, action: str, *, who: str, why: str = "") -> dict[str, Any]:
        """Do what an operator says, and return how the rollout stands then; see `Canary.act`.

        Raises:
            NotFound: The model has no canary.
            InvalidArgument: Nobody is named.
            FailedPrecondition: It does not fit how the rollout stands.
        """
        with self._lock:
            canary = self._canary(model)
            canary.act(action, now=self._clock(), who=who, why=why)
            return canary.describe()

    def status(self, model: str | None = None) -> list[dict[str, Any]]:
        """Return how all rollouts stand, or that of one model, ready for JSON.

        Raises:
            NotFound: The model has no canary.
        """
        with self._lock:
            canaries = [*self._canaries.values()] if model is None else [self._canary(model)]
            return [canary.describe() for canary in canaries]

    def changes(self) -> list[dict[str, Any]]:
        """Return what happened lately, the oldest first, ready for JSON."""
        with self._lock:
            return list(self._changes)

    def close(self) -> None:
        """Store how they stand, and let other servers move them on; idempotent."""
        with self._lock:
            for canary in self._canaries.values():
                canary.close()
            self._canaries.clear()

    def _canary(self, model: str) -> Canary:
        canary = self._canaries.get(model)
        if canary is None:
            known = ", ".join(self._canaries) or "none"
            raise NotFound(f"no rollout of a model named {model!r}; models with a canary: {known}")
        return canary

    def _note(self, model: str, change: Change) -> None:
        """Put a change into the audit log, the server's log, the series and a trace."""
        if self._tracing is None:
            self._write_down(model, change)
            return
        attributes: Attributes = {
            "serveprune.model": model,
            "serveprune.rollout.change": str(change.kind),
            "serveprune.rollout.canary_percent": change.canary_percent,
        }
        with self._tracing.span("rollout change", attributes) as span:
            self._write_down(model, change)
            if change.kind is ChangeKind.ABORTED:
                span.failed(change.text)

    def _write_down(self, model: str, change: Change) -> None:
        line = self.audit.add(
            AuditEvent.ROLLOUT,
            {
                "model": model,
                "kind": str(change.kind),
                "text": change.text,
                "canary_percent": change.canary_percent,
                "who": change.who,
            },
        )
        self._changes.append(line)
        level = logging.WARNING if change.kind is ChangeKind.ABORTED else logging.INFO
        _log.log(level, "rollout of %s: %s", model, change.text)
        self._metrics.counter(series.ROLLOUT_CHANGES, model, change.kind).inc()

    def _show(self, model: str, weights: Weights, canary: Canary | None) -> None:
        self._metrics.gauge(series.ROLLOUT_WEIGHT, model).set(weights.canary_percent / 100)
        self._metrics.gauge(series.ROLLOUT_STEP, model).set(0 if canary is None else canary.step)
        for phase in Phase:
            is_in = canary is not None and canary.phase is phase
            self._metrics.gauge(series.ROLLOUT_PHASE, model, phase).set(is_in)


def _is_same(one: DeploymentConfig, other: DeploymentConfig) -> bool:
    """Tell whether two deployments have the same rollout."""
    return rollout_identity(one, artifact="") == rollout_identity(other, artifact="")
