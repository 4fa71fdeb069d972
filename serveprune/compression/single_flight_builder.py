"""One build for all processes that share a store; the others wait for it without a child of their own.

Imports no torch and no onnx: this runs in the serving process.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event

from pydantic import BaseModel, ConfigDict, ValidationError

from serveprune.artifacts.builder import ArtifactBuilder, BuildOutcome, BuildProgress, BuildRequest, BuildResult
from serveprune.artifacts.dense import dense_of
from serveprune.artifacts.environment import environment
from serveprune.artifacts.file_lock import FileLock
from serveprune.artifacts.key import artifact_key, source_recipe, tier_packages, tier_recipe
from serveprune.artifacts.store import Artifact, ArtifactStore
from serveprune.config.server import BuildsConfig, StoreConfig
from serveprune.errors import ServePruneError
from serveprune.evaluation.choice import choose

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_WAITING = BuildProgress("waiting for another process's build", 0.0)
_CANCELLED = BuildResult(BuildOutcome.FAILED, reasons=("cancelled",))


class _Failure(BaseModel):
    """What who builds leaves in the lock's file for those who wait, if the build fails."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    builds: BuildsConfig
    result: BuildResult


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
        self._store = ArtifactStore(store.path, max_bytes=store.max_bytes)
        self._builds = builds
        self._threads_of_serving = threads_of_serving

    def build(
        self, request: BuildRequest, *, on_progress: Callable[[BuildProgress], None], cancelled: Event
    ) -> BuildResult:
        """See `ArtifactBuilder.build`."""
        try:
            key = self._key(request)
            lock = self._store.try_flight(f"build-{key}")
            has_waited = lock is None
            if has_waited:
                _log.info("%s %s: waiting for another process that builds it", request.model_name, request.tier)
                on_progress(_WAITING)
            while lock is None:
                if cancelled.wait(_POLL_SECONDS):
                    return _CANCELLED
                lock = self._store.try_flight(f"build-{key}")
        except (OSError, ServePruneError):
            # The builder fails over it, too, and says why.
            return self._builder.build(request, on_progress=on_progress, cancelled=cancelled)
        with lock:
            ended = self._ended(request, lock, has_waited=has_waited)
            return ended or self._built(request, lock, on_progress, cancelled)

    def _key(self, request: BuildRequest) -> str:
        """Return what tells the artifact from all others before it is there."""
        if request.profile is None:
            return artifact_key(source_recipe(request.model), environment())
        dense = dense_of(self._store, request.model)
        # The key of a graph that is still to be imported is not known: its source stands for it.
        base = dense.key if dense is not None else source_recipe(request.model)
        recipe = tier_recipe(base, request.model, request.profile, threads=self._threads_of_serving)
        return artifact_key(recipe, environment(tier_packages(request.model, request.profile)))

    def _ended(self, request: BuildRequest, lock: FileLock, *, has_waited: bool) -> BuildResult | None:
        """Return how the build ended that was waited for, or that ended just before."""
        found = self._found(request)
        if found is not None:
            gate = request.profile.gate if request.profile is not None else None
            reasons = choose(found.manifest.all_measurements, gate).reasons if gate is not None else ()
            outcome = BuildOutcome.REFUSED if reasons else BuildOutcome.CACHED
            return BuildResult(outcome, key=found.key, reasons=reasons, is_anothers=has_waited)
        return self._failure(lock.path) if has_waited else None

    def _found(self, request: BuildRequest) -> Artifact | None:
        try:
            dense = dense_of(self._store, request.model)
            if dense is None or request.profile is None:
                return dense
            recipe = tier_recipe(dense.key, request.model, request.profile, threads=self._threads_of_serving)
            return self._store.find_tier(recipe, extra_packages=tier_packages(request.model, request.profile))
        except ServePruneError:
            return None  # as above

    def _failure(self, file: Path) -> BuildResult | None:
        try:
            failure = _Failure.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            return None  # it never ended, or not here
        return replace(failure.result, is_anothers=True) if failure.builds == self._builds else None

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
            _write(lock.path, _Failure(builds=self._builds, result=result).model_dump_json().encode())
        return result


def _write(file: Path, content: bytes) -> None:
    try:
        file.write_bytes(content)
    except OSError as error:
        # Those who wait then build for themselves.
        _log.warning("%s: those who wait for a build cannot be told how it ended: %s", file, error)
