"""One build for all machines that share a store; the others wait, and fetch what it leaves.

Imports no torch and no onnx: this runs in the serving process, also where nothing can be built.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from threading import Event

from serveprune.artifacts.build_failure import BuildFailure
from serveprune.artifacts.builder import ArtifactBuilder, BuildOutcome, BuildProgress, BuildRequest, BuildResult
from serveprune.artifacts.shared_flight import SharedFlight, SharedLease
from serveprune.artifacts.shared_store import SharedArtifactStore
from serveprune.artifacts.store import Artifact, StoreEvent
from serveprune.artifacts.wanted import wanted_artifact, wanted_key
from serveprune.config.server import BuildsConfig
from serveprune.errors import ServePruneError, Unavailable
from serveprune.evaluation.choice import choose

_log = logging.getLogger(__name__)

_LONGEST_POLL_SECONDS = 1.0
_POLLS_PER_LEASE = 10
_RETRY_SECONDS = 10.0
_WAITING = BuildProgress("waiting for another machine's build", 0.0)
_UNREACHABLE = "waiting for the shared store"
_CANCELLED = BuildResult(BuildOutcome.FAILED, reasons=("cancelled",))


class SharedFlightBuilder:
    """An `ArtifactBuilder` around another one: of all machines that ask for an artifact at a time, one builds.

    While the shared store cannot be reached builds wait. What could not be published is tried again in a thread of its
    own. Thread-safe.
    """

    def __init__(
        self,
        builder: ArtifactBuilder,
        store: SharedArtifactStore,
        builds: BuildsConfig,
        *,
        lease_seconds: float,
        threads_of_serving: int,
        can_build: bool,
        on_event: Callable[[StoreEvent], None],
    ) -> None:
        """Describe who builds, and where; begins to publish what an earlier process could not.

        Args:
            builder: Makes one artifact on this machine.
            store: What it writes to.
            builds: Its limits; a failure counts for those alone that set the same.
            lease_seconds: See `SharedFlight`.
            threads_of_serving: Threads one batch gets in serving, which is part of what a tier is found by.
            can_build: Whether ``builder`` can make anything; if not, no lease is taken.
            on_event: Told of waits and lost leases, in the thread they happen in.
        """
        self._builder = builder
        self._store = store
        self._builds = builds
        self._lease_seconds = lease_seconds
        self._poll_seconds = min(_LONGEST_POLL_SECONDS, lease_seconds / _POLLS_PER_LEASE)
        self._threads = threads_of_serving
        self._can_build = can_build
        self._on_event = on_event
        self._unpublished = Event()
        if store.has_unpublished():
            self._unpublished.set()
        threading.Thread(target=self._publish_later, name="publisher", daemon=True).start()

    def build(
        self, request: BuildRequest, *, on_progress: Callable[[BuildProgress], None], cancelled: Event
    ) -> BuildResult:
        """See `ArtifactBuilder.build`."""
        flight: SharedFlight | None = None
        stage, has_waited = "", False
        while not cancelled.is_set():
            try:
                self._store.remote.storage.list("flights")  # which, unlike a lookup, fails while it is away
                found = wanted_artifact(
                    self._store, request, threads=self._threads, any_environment=not self._can_build
                )
                if found is not None:
                    return _result(found.key, self._reasons(request, found), is_anothers=has_waited)
                if not self._can_build:
                    return self._builder.build(request, on_progress=on_progress, cancelled=cancelled)
                flight = flight or self._flight(request)
                lease = flight.try_take()
                now, message = _WAITING.stage, ""
            except Unavailable as error:
                lease, now, message = None, _UNREACHABLE, error.message
            except ServePruneError as error:
                return BuildResult(BuildOutcome.FAILED, reasons=(error.message,))
            if lease is not None:
                with lease:
                    return self._built(request, flight, lease, on_progress, cancelled, has_waited=has_waited)
            if now != stage:
                stage = now
                _log.warning("%s %s: %s %s", request.model_name, request.tier, stage, message)
                on_progress(BuildProgress(stage, 0.0, message))
                if stage == _WAITING.stage:
                    has_waited = True
                    self._on_event(StoreEvent.LEASE_WAITED)
            cancelled.wait(self._poll_seconds)
        return _CANCELLED

    def _flight(self, request: BuildRequest) -> SharedFlight:
        return SharedFlight(
            self._store.remote.storage,
            wanted_key(self._store, request, threads=self._threads),
            lease_seconds=self._lease_seconds,
            on_lost=lambda: self._on_event(StoreEvent.LEASE_LOST),
        )

    def _built(
        self,
        request: BuildRequest,
        flight: SharedFlight | None,
        lease: SharedLease,
        on_progress: Callable[[BuildProgress], None],
        cancelled: Event,
        *,
        has_waited: bool,
    ) -> BuildResult:
        # The one before may have ended between the last look and now.
        found = wanted_artifact(self._store, request, threads=self._threads)
        if found is not None:
            return _result(found.key, self._reasons(request, found), is_anothers=has_waited)
        left = flight.last.failure if flight is not None and flight.last is not None and has_waited else None
        if left is not None and (failed := self._failure(left)) is not None:
            lease.failure = left
            return failed
        result = self._builder.build(request, on_progress=on_progress, cancelled=cancelled)
        if result.outcome is not BuildOutcome.FAILED:
            # While the lease is held, so that whoever comes next finds it.
            if not self._store.publish():
                self._unpublished.set()
        elif not cancelled.is_set():
            told = replace(result, log=None)  # which is on this machine
            lease.failure = BuildFailure(builds=self._builds, result=told).model_dump_json()
        return result

    def _failure(self, left: str) -> BuildResult | None:
        failure = BuildFailure.read(left)
        return failure.for_limits(self._builds) if failure is not None else None

    def _reasons(self, request: BuildRequest, found: Artifact) -> tuple[str, ...]:
        gate = request.profile.gate if request.profile is not None else None
        return choose(found.manifest.all_measurements, gate).reasons if gate is not None else ()

    def _publish_later(self) -> None:
        while True:
            self._unpublished.wait()
            try:
                if self._store.publish():
                    self._unpublished.clear()
                    continue
            except Exception:  # the thread must go on to the next attempt
                _log.exception("publishing failed unexpectedly")
            threading.Event().wait(_RETRY_SECONDS)


def _result(key: str, reasons: tuple[str, ...], *, is_anothers: bool) -> BuildResult:
    outcome = BuildOutcome.REFUSED if reasons else BuildOutcome.CACHED
    return BuildResult(outcome, key=key, reasons=reasons, is_anothers=is_anothers)
