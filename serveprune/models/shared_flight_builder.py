"""One build for all machines that share a store; the others wait, and fetch what it leaves.

Imports no torch and no onnx: this runs in the serving process, also where nothing can be built.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from threading import Event

from serveprune.artifacts.build_failure import BuildFailure
from serveprune.artifacts.builder import ArtifactBuilder, BuildOutcome, BuildProgress, BuildRequest, BuildResult
from serveprune.artifacts.shared_flight import SharedFlight, SharedLease
from serveprune.artifacts.shared_store import SharedArtifactStore
from serveprune.artifacts.store import StoreEvent
from serveprune.artifacts.wanted import Wanted, wanted
from serveprune.config.server import BuildsConfig
from serveprune.errors import ServePruneError, Unavailable
from serveprune.evaluation.choice import result_of_found

_log = logging.getLogger(__name__)

_LONGEST_POLL_SECONDS = 1.0
_POLLS_PER_LEASE = 10
_RETRY_SECONDS = 10.0
_LONGEST_RETRY_SECONDS = 160.0
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
        patience_seconds: float = math.inf,
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
            patience_seconds: A build that finds the shared store away for as long has failed.
        """
        self._builder = builder
        self._store = store
        self._builds = builds
        self._lease_seconds = lease_seconds
        self._poll_seconds = min(_LONGEST_POLL_SECONDS, lease_seconds / _POLLS_PER_LEASE)
        self._threads = threads_of_serving
        self._can_build = can_build
        self._on_event = on_event
        self._patience_seconds = patience_seconds
        self._unpublished = Event()
        if store.has_unpublished():
            self._unpublished.set()
        threading.Thread(target=self._publish_later, name="publisher", daemon=True).start()

    def build(
        self, request: BuildRequest, *, on_progress: Callable[[BuildProgress], None], cancelled: Event
    ) -> BuildResult:
        """See `ArtifactBuilder.build`."""
        try:
            if not request.is_dense:
                # The lease of a tier is named by its dense graph: all have that first, and then mean the same one.
                dense = self._obtain(request.for_dense(), on_progress, cancelled)
                if dense.outcome is BuildOutcome.FAILED:
                    return dense
            return self._obtain(request, on_progress, cancelled)
        except ServePruneError as error:
            return BuildResult(BuildOutcome.FAILED, reasons=(error.message,), bad_input=error.is_bad_input)
        except OSError as error:
            return BuildResult(BuildOutcome.FAILED, reasons=(str(error),))

    def _obtain(
        self, request: BuildRequest, on_progress: Callable[[BuildProgress], None], cancelled: Event
    ) -> BuildResult:
        """Find the artifact, or wait for who builds it, or build it."""
        sought: Wanted | None = None
        flight: SharedFlight | None = None
        stage, has_waited, away_since = "", False, math.inf
        while not cancelled.is_set():
            try:
                self._store.remote.storage.check()  # which, unlike a lookup, fails while it is away
                # Digested once: what it is made from may be large, and another machine's build may take hours.
                sought = sought or self._wanted(request)
                found = sought.find()
                if found is not None:
                    return result_of_found(found, request, is_anothers=has_waited)
                if not self._can_build:
                    return self._builder.build(request, on_progress=on_progress, cancelled=cancelled)
                flight = flight or self._flight(sought)
                lease = flight.try_take()
                now, message, away_since = _WAITING.stage, "", math.inf
            except Unavailable as error:
                away_since = min(away_since, time.monotonic())
                if time.monotonic() - away_since >= self._patience_seconds:
                    raise
                lease, now, message = None, _UNREACHABLE, error.message
            if lease is not None:
                assert sought is not None  # or there would be no flight
                with lease:
                    failure = flight.last.failure if flight and flight.last and has_waited else None
                    return self._built(
                        request, sought, lease, on_progress, cancelled, left=failure, has_waited=has_waited
                    )
            if now != stage:
                stage = now
                _log.warning("%s %s: %s %s", request.model_name, request.tier, stage, message)
                on_progress(BuildProgress(stage, 0.0, message))
                if stage == _WAITING.stage:
                    has_waited = True
                    self._on_event(StoreEvent.LEASE_WAITED)
            cancelled.wait(self._poll_seconds)
        return _CANCELLED

    def _wanted(self, request: BuildRequest) -> Wanted:
        return wanted(self._store, request, threads=self._threads, any_environment=not self._can_build)

    def _flight(self, sought: Wanted) -> SharedFlight:
        return SharedFlight(
            self._store.remote.storage,
            sought.name,
            lease_seconds=self._lease_seconds,
            on_lost=lambda: self._on_event(StoreEvent.LEASE_LOST),
        )

    def _built(
        self,
        request: BuildRequest,
        sought: Wanted,
        lease: SharedLease,
        on_progress: Callable[[BuildProgress], None],
        cancelled: Event,
        *,
        has_waited: bool,
        left: str | None,
    ) -> BuildResult:
        """Build, while the lease is held; ``left`` is how the build failed that was waited for."""
        # The one before may have ended between the last look and now.
        found = sought.find()
        if found is not None:
            return result_of_found(found, request, is_anothers=has_waited)
        if left is not None and (failed := self._failure(left)) is not None:
            lease.failure = left
            return failed
        result = self._builder.build(request, on_progress=on_progress, cancelled=cancelled)
        if result.outcome is not BuildOutcome.FAILED:
            # While the lease is held, so that whoever comes next finds it.
            if not self._is_published():
                self._unpublished.set()
        elif not cancelled.is_set():
            told = replace(result, log=None)  # which is on this machine
            lease.failure = BuildFailure(builds=self._builds, result=told).model_dump_json()
        return result

    def _failure(self, left: str) -> BuildResult | None:
        failure = BuildFailure.read(left)
        return failure.for_limits(self._builds) if failure is not None else None

    def _is_published(self) -> bool:
        try:
            return self._store.publish()
        except Exception:  # what was built serves here all the same
            _log.exception("publishing failed unexpectedly")
            return False

    def _publish_later(self) -> None:
        pause_seconds = _RETRY_SECONDS
        while True:
            self._unpublished.wait()
            # Before, for what is stored meanwhile sets it anew.
            self._unpublished.clear()
            if self._is_published():
                pause_seconds = _RETRY_SECONDS
            else:
                self._unpublished.set()
                time.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, _LONGEST_RETRY_SECONDS)
