"""One build for all processes that share a store; the others wait for it without a child of their own.

Imports no torch and no onnx: this runs in the serving process.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from threading import Event

from serveprune.artifacts.build_failure import BuildFailure
from serveprune.artifacts.builder import ArtifactBuilder, BuildOutcome, BuildProgress, BuildRequest, BuildResult
from serveprune.artifacts.file_lock import FileLock
from serveprune.artifacts.opening import open_store
from serveprune.artifacts.store import Artifact
from serveprune.artifacts.wanted import Wanted, wanted
from serveprune.config.server import BuildsConfig, StoreConfig
from serveprune.errors import ServePruneError
from serveprune.evaluation.choice import result_of_found

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_WAITING = BuildProgress("waiting for another process's build", 0.0)
_CANCELLED = BuildResult(BuildOutcome.FAILED, reasons=("cancelled",))


class SingleFlightBuilder:
    """An `ArtifactBuilder` around another one: of all that ask for an artifact at a time, one process builds.

    Those that waited find the artifact, or fail as the build did; if who built was killed, the next one builds.
    Thread-safe.
    """

    def __init__(
        self, builder: ArtifactBuilder, store: StoreConfig, builds: BuildsConfig, *, threads_of_serving: int
    ) -> None:
        """Describe who builds, and where.

        Args:
            builder: Makes one artifact.
            store: The store it writes to.
            builds: Its limits; a failure counts for those alone that set the same.
            threads_of_serving: Threads one batch gets in serving, which is part of what a tier is found by.
        """
        self._builder = builder
        self._store = open_store(store)
        self._builds = builds
        self._threads_of_serving = threads_of_serving

    def build(
        self, request: BuildRequest, *, on_progress: Callable[[BuildProgress], None], cancelled: Event
    ) -> BuildResult:
        """See `ArtifactBuilder.build`."""
        try:
            sought = wanted(self._store, request, threads=self._threads_of_serving)
            lock = self._store.try_flight(f"build-{sought.name}")
            has_waited = lock is None
            if has_waited:
                _log.info("%s %s: waiting for another process that builds it", request.model_name, request.tier)
                on_progress(_WAITING)
            while lock is None:
                if cancelled.wait(_POLL_SECONDS):
                    return _CANCELLED
                lock = self._store.try_flight(f"build-{sought.name}")
        except (OSError, ServePruneError):
            # The builder fails over it, too, and says why.
            return self._builder.build(request, on_progress=on_progress, cancelled=cancelled)
        with lock:
            ended = self._ended(request, sought, lock, has_waited=has_waited)
            return ended or self._built(request, lock, on_progress, cancelled)

    def _ended(self, request: BuildRequest, sought: Wanted, lock: FileLock, *, has_waited: bool) -> BuildResult | None:
        """Return how the build ended that was waited for, or that ended just before."""
        found = _found(sought)
        if found is not None:
            return result_of_found(found, request, is_anothers=has_waited)
        return self._failure(lock.path) if has_waited else None

    def _failure(self, file: Path) -> BuildResult | None:
        try:
            failure = BuildFailure.read(file.read_bytes())
        except OSError:
            return None  # it never ended, or not here
        return failure.for_limits(self._builds) if failure is not None else None

    def _built(
        self,
        request: BuildRequest,
        lock: FileLock,
        on_progress: Callable[[BuildProgress], None],
        cancelled: Event,
    ) -> BuildResult:
        _write(lock.path, b"")
        result = self._builder.build(request, on_progress=on_progress, cancelled=cancelled)
        if result.outcome is BuildOutcome.FAILED and not cancelled.is_set():
            _write(lock.path, BuildFailure(builds=self._builds, result=result).model_dump_json().encode())
        return result


def _found(sought: Wanted) -> Artifact | None:
    try:
        return sought.find()
    except ServePruneError:
        return None  # the builder fails over it, too, and says why


def _write(file: Path, content: bytes) -> None:
    try:
        file.write_bytes(content)
    except OSError as error:
        # Those who wait then build for themselves.
        _log.warning("%s: those who wait for a build cannot be told how it ended: %s", file, error)
