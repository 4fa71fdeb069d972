"""Some requests are computed once more by another tier, after they were answered, to see how far the two agree."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from serveprune.config.deployment import DeploymentConfig
from serveprune.config.traffic import ShadowConfig
from serveprune.errors import ServePruneError
from serveprune.evaluation.live_agreement import live_agreements, live_task
from serveprune.models.registry import Model
from serveprune.observability import metrics as series
from serveprune.observability.metrics import Metrics
from serveprune.oip.messages import InferenceResponse
from serveprune.oip.tensor import Array
from serveprune.routing.route import Route

_log = logging.getLogger(__name__)

_MOST_WAITING = 16
_MOST_BYTES = 64 * 2**20
_PATIENCE_SECONDS = 5.0
"""A comparison that has waited so long for a calm moment is dropped."""
_LOOK_SECONDS = 0.005
_LOWEST_PRIORITY = 19


class ShadowOutcome(StrEnum):
    """What became of a request that was to be computed once more."""

    COMPARED = "compared"
    DROPPED = "dropped"
    FAILED = "failed"


@dataclass(slots=True)
class ShadowSample:
    """A request that is to be computed once more.

    Attributes:
        served: Where it went; its side of a rollout, if it has one, is told the agreement.
        tier: That computes it again.
        offered: When it was answered, in monotonic seconds.
    """

    model: Model
    served: Route
    tier: str
    feeds: Mapping[str, Array]
    size_bytes: int
    answer: InferenceResponse | None = None
    offered: float = 0.0


class Shadowing:
    """Computes samples in a thread of the lowest priority, and only while nothing else waits. Thread-safe.

    Under load samples are dropped, not requests: few are kept, and none is begun while a request waits or all
    executors are at work.
    """

    def __init__(
        self, metrics: Metrics, *, is_calm: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin without any.

        Args:
            metrics: Where agreements are shown.
            is_calm: Tells whether requests would not wait for it.
            clock: Monotonic seconds.
        """
        self._metrics = metrics
        self._is_calm = is_calm
        self._clock = clock
        self._shadows: dict[str, ShadowConfig] = {}
        self._owed: dict[tuple[str, str], float] = {}
        self._waiting: deque[ShadowSample] = deque()
        self._held_bytes = 0
        self._changed = threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None

    @property
    def is_active(self) -> bool:
        """Whether any model has a shadow."""
        return bool(self._shadows)

    def deploy(self, deployments: Mapping[str, DeploymentConfig]) -> None:
        """Have the shadows of these deployments."""
        shadows = {model: each.shadow for model, each in deployments.items() if each.shadow is not None}
        with self._changed:
            self._shadows = shadows
            if shadows and self._thread is None and not self._stopped:
                self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
                self._thread.start()

    def expect(self, model: Model) -> None:
        """Make the series of a model's shadow before anything is compared, so that rates over them are right."""
        shadow = self._shadows.get(model.name)
        if shadow is None:
            return
        for tier in model.config.tiers:
            if tier != shadow.tier:
                labels = (*model.key, tier, shadow.tier)
                self._metrics.histogram(series.SHADOW_AGREEMENT, *labels)
                for outcome in ShadowOutcome:
                    self._metrics.counter(series.SHADOWED, *labels, outcome)

    def sample(self, model: Model, route: Route, feeds: Mapping[str, Array]) -> ShadowSample | None:
        """Return what is to be computed once more, if this request is one of those."""
        shadow = self._shadows.get(model.name)
        if shadow is None or shadow.tier == route.tier:
            return None
        # By tier: if a canary gets every twentieth request, say, every fiftieth of all may never be one of its.
        served = (model.name, route.tier)
        with self._changed:
            owed = self._owed.get(served, 0.0) + shadow.sample_ratio
            self._owed[served] = owed - (owed >= 1)
        if owed < 1:
            return None
        return ShadowSample(model, route, shadow.tier, feeds, sum(array.nbytes for array in feeds.values()))

    def offer(self, sample: ShadowSample, answer: InferenceResponse) -> None:
        """Compute a request once more, now that it was answered, if there is room and time."""
        sample.answer, sample.offered = answer, self._clock()
        with self._changed:
            has_room = len(self._waiting) < _MOST_WAITING and self._held_bytes + sample.size_bytes <= _MOST_BYTES
            if has_room and not self._stopped:
                self._waiting.append(sample)
                self._held_bytes += sample.size_bytes
                self._changed.notify()
                return
        self._count(sample, ShadowOutcome.DROPPED)

    def stop(self, *, timeout_seconds: float) -> bool:
        """Drop what waits, and wait for what is computed, for so long at the most; idempotent.

        Returns:
            Whether nothing is computed any more.
        """
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread is None:
            return True
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        # Its compute, too, comes after that of all others on this machine's cores.
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopped)
                if self._stopped:
                    return
                sample = self._waiting.popleft()
            try:
                outcome = self._take(sample)
            except Exception:  # nobody else would see it, and the thread must go on
                _log.exception("%s: a request could not be compared", sample.model.name)
                outcome = ShadowOutcome.FAILED
            self._count(sample, outcome)
            with self._changed:
                self._held_bytes -= sample.size_bytes
            # Its tensors may not outlive it while the next one is awaited.
            del sample

    def _take(self, sample: ShadowSample) -> ShadowOutcome:
        while not self._is_calm():
            if self._stopped or self._clock() - sample.offered > _PATIENCE_SECONDS:
                return ShadowOutcome.DROPPED
            time.sleep(_LOOK_SECONDS)
        variant = sample.model.variants.get(sample.tier)
        if variant is None or variant.instance is None:
            return ShadowOutcome.DROPPED
        instance = variant.instance
        try:
            instance.acquire()
        except ServePruneError:
            return ShadowOutcome.DROPPED
        try:
            outputs = instance.run(sample.feeds)
        except ServePruneError as error:
            _log.warning("%s %s: not compared: %s", sample.model.name, sample.tier, error.message)
            return ShadowOutcome.FAILED
        finally:
            instance.release()
        return self._compare(sample, dict(zip(instance.output_names, outputs, strict=True)))

    def _compare(self, sample: ShadowSample, outputs: Mapping[str, Array]) -> ShadowOutcome:
        assert sample.answer is not None
        served = {tensor.name: tensor.array for tensor in sample.answer.outputs}
        specs = sample.served.instance.outputs
        task = live_task(_metric(sample), specs)
        agreements = live_agreements(task, specs, served, outputs)
        if not agreements:
            return ShadowOutcome.DROPPED
        shown = self._metrics.histogram(series.SHADOW_AGREEMENT, *sample.model.key, sample.served.tier, sample.tier)
        for agreement in agreements:
            shown.observe(agreement)
            if sample.served.side is not None:
                sample.served.side.compared(agreement)
        return ShadowOutcome.COMPARED

    def _count(self, sample: ShadowSample, outcome: ShadowOutcome) -> None:
        labels = (*sample.model.key, sample.served.tier, sample.tier)
        self._metrics.counter(series.SHADOWED, *labels, outcome).inc()


def _metric(sample: ShadowSample) -> str:
    """Return what the tiers were judged by at build."""
    for tier in (sample.served.tier, sample.tier):
        variant = sample.model.variants.get(tier)
        measurements = variant.artifact.manifest.measurements if variant is not None and variant.artifact else None
        if measurements is not None:
            return measurements.metric
    return ""
