import time
from collections.abc import Callable
from threading import Event

from serveprune.artifacts.builder import ArtifactBuilder, BuildOutcome, BuildProgress, BuildRequest, BuildResult
from serveprune.observability.tracing_protocol import OpenSpan, Tracing


class TracedBuilder:
    """An `ArtifactBuilder` that makes a span of each build, and one below it of each of its stages.

    A build runs in a process of its own, which needs no tracing: when a stage begins is in the progress that it tells.

    Args:
        builder: Builds.
        tracing: Makes spans.
        clock_ns: Nanoseconds since the epoch.
    """

    def __init__(
        self, builder: ArtifactBuilder, tracing: Tracing, *, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._builder = builder
        self._tracing = tracing
        self._clock_ns = clock_ns

    def build(
        self, request: BuildRequest, *, on_progress: Callable[[BuildProgress], None], cancelled: Event
    ) -> BuildResult:
        """See `ArtifactBuilder.build`."""
        attributes = {
            "serveprune.model": request.model_name,
            "serveprune.version": request.model.version,
            "serveprune.tier": request.tier,
        }
        with self._tracing.span("build", attributes) as span:
            stages = _Stages(span, self._clock_ns)

            def progressed(progress: BuildProgress) -> None:
                if progress.fraction < 1:
                    stages.begin(progress.stage)
                on_progress(progress)

            result = self._builder.build(request, on_progress=progressed, cancelled=cancelled)
            failure = "; ".join(result.reasons) if result.outcome is BuildOutcome.FAILED else None
            stages.end(failure)
            span.note({"serveprune.build.outcome": result.outcome, "serveprune.build.key": result.key or ""})
            if failure is not None:
                span.failed(failure)
        return result


class _Stages:
    """Which stage a build is at, and since when."""

    def __init__(self, span: OpenSpan, clock_ns: Callable[[], int]) -> None:
        self._span = span
        self._clock_ns = clock_ns
        self._name = ""
        self._begun_ns = 0

    def begin(self, name: str) -> None:
        if name != self._name:
            self.end()
            self._name, self._begun_ns = name, self._clock_ns()

    def end(self, failure: str | None = None) -> None:
        if self._name:
            self._span.stage(self._name, begun_ns=self._begun_ns, ended_ns=self._clock_ns(), failure=failure)
            self._name = ""
