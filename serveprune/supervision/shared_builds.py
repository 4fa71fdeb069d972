"""One build for all who ask for the same artifact."""

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from serveprune.artifacts.builder import ArtifactBuilder, BuildOutcome, BuildProgress, BuildRequest, BuildResult

_log = logging.getLogger(__name__)

OnProgress = Callable[[BuildProgress], None]
OnResult = Callable[[BuildResult], None]

_CANCELLED = BuildResult(BuildOutcome.FAILED, reasons=("cancelled",))
_UNEXPECTED = BuildResult(BuildOutcome.FAILED, reasons=("unexpected failure; see the server's log",))


@dataclass(slots=True)
class _Build:
    request: BuildRequest
    progress: BuildProgress = field(default_factory=lambda: BuildProgress("waiting for another build", 0.0))
    asking: list[tuple[OnProgress, OnResult]] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)


class SharedBuilds:
    """Runs the builds that serving processes ask for, one at a time, each once for all of them. Thread-safe.

    Whoever asked may die meanwhile: the others still wait, and it asks again when it has been restarted.
    """

    def __init__(self, builder: ArtifactBuilder, *, on_ended: Callable[[BuildRequest, BuildResult], None]) -> None:
        """Describe who builds; the thread begins at once and idles.

        Args:
            builder: Makes one artifact.
            on_ended: Told of each build once, before those who asked.
        """
        self._builder = builder
        self._on_ended = on_ended
        self._is_over = False
        self._lock = threading.Lock()
        self._builds: dict[str, _Build] = {}
        self._waiting: queue.SimpleQueue[_Build | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="builds", daemon=True)
        self._thread.start()

    def ask(self, request: BuildRequest, *, on_progress: OnProgress, on_result: OnResult) -> None:
        """Have an artifact built, or join the build that another process asked for; returns at once."""
        # Not the digest of the artifact's content, which takes reading data sets: equal requests have equal JSON.
        key = request.model_dump_json()
        with self._lock:
            build = self._builds.get(key)
            if build is None or build.cancelled.is_set():
                # One that is being ended would tell whoever joins it that it was.
                build = self._builds[key] = _Build(request)
                if self._is_over:
                    build.cancelled.set()
                self._waiting.put(build)
            build.asking.append((on_progress, on_result))
            progress = build.progress
        on_progress(progress)

    def cancel_unless(self, is_wanted: Callable[[BuildRequest], bool]) -> None:
        """End builds, running or waiting, that are for nothing any more; does not wait."""
        with self._lock:
            for build in self._builds.values():
                if not is_wanted(build.request):
                    build.cancelled.set()

    def cancel(self) -> None:
        """End the running build and begin no other; does not wait."""
        self._is_over = True
        self.cancel_unless(lambda request: False)
        self._waiting.put(None)

    def close(self, *, timeout_seconds: float) -> bool:
        """Cancel, and return whether the running build ended in time."""
        self.cancel()
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (build := self._waiting.get()) is not None:
            result = self._result(build)
            key = build.request.model_dump_json()
            # Together, so that nobody joins a build that has just ended and never hears of it.
            with self._lock:
                if self._builds.get(key) is build:
                    del self._builds[key]
                asking = tuple(build.asking)
            for _, on_result in asking:
                on_result(result)

    def _result(self, build: _Build) -> BuildResult:
        if build.cancelled.is_set():
            return _CANCELLED
        try:
            result = self._builder.build(
                build.request, on_progress=lambda progress: self._spread(build, progress), cancelled=build.cancelled
            )
        except Exception:  # the thread must go on to the other builds
            _log.exception("building %s %s: unexpected failure", build.request.model_name, build.request.tier)
            result = _UNEXPECTED
        if result.outcome is not BuildOutcome.FAILED or not build.cancelled.is_set():
            self._on_ended(build.request, result)
        return result

    def _spread(self, build: _Build, progress: BuildProgress) -> None:
        with self._lock:
            build.progress = progress
            asking = tuple(build.asking)
        for on_progress, _ in asking:
            on_progress(progress)
