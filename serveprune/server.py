"""The only wiring: from a config to running parts, and back."""

import importlib.util
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import Event
from types import FrameType
from wsgiref.simple_server import WSGIServer

from prometheus_client import start_http_server

from serveprune.artifacts.builder import (
    ArtifactBuilder,
    BuildOutcome,
    BuildProgress,
    BuildRequest,
    BuildResult,
)
from serveprune.artifacts.store import ArtifactStore, StoreEvent
from serveprune.backends.selection import load_backend
from serveprune.config.root import ServePruneConfig
from serveprune.config.server import Address
from serveprune.errors import FailedPrecondition
from serveprune.frontends.grpc.server import GrpcFrontend
from serveprune.frontends.http.server import HttpFrontend
from serveprune.models.registry import Model, Registry
from serveprune.models.repository import VariantRepository
from serveprune.observability import metrics as series
from serveprune.observability.metrics import Metrics
from serveprune.scheduling.job import Executable
from serveprune.scheduling.scheduler import Scheduler
from serveprune.serving.admission import Admission
from serveprune.serving.controlplane import ControlPlane
from serveprune.serving.dataplane import DataPlane
from serveprune.serving.report import VariantReporter

_log = logging.getLogger(__name__)

_STOP_MARGIN_SECONDS = 6.0
"""For a cancelled build to end even where nothing is left of the drain: a moment more than its child is given."""

_SIGNAL_POLL_SECONDS = 0.1
_COMPRESSING_PACKAGES = ("torch", "onnx", "onnx_ir")


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a running server listens, real ports included."""

    http: Address
    grpc: Address
    metrics: Address


class ServingOnlyBuilder:
    """Stands in where the compressing half is not installed: every build fails with the way to get it."""

    def build(
        self, request: BuildRequest, *, on_progress: Callable[[BuildProgress], None], cancelled: Event
    ) -> BuildResult:
        """See `ArtifactBuilder.build`."""
        reason = (
            f"the store has no artifact for {request.model_name} {request.tier}, and this installation cannot build "
            'one: pip install "serveprune[compress]", or point store.path to a store that has it'
        )
        return BuildResult(BuildOutcome.FAILED, reasons=(reason,), bad_input=True)


class Server:
    """All parts of one serving process."""

    def __init__(self, config: ServePruneConfig) -> None:
        self.config = config
        self.metrics = Metrics()
        self._store_events = {event: self.metrics.counter(series.STORE_EVENTS, event) for event in StoreEvent}
        store = ArtifactStore(config.store.path, max_bytes=config.store.max_bytes, on_event=self._count_store_event)
        self.metrics.gauge(series.STORE_BYTES).set_function(store.size_bytes)
        can_build = all(importlib.util.find_spec(package) for package in _COMPRESSING_PACKAGES)
        self.registry = Registry(
            {
                name: Model(name, model, default_tier=config.deployment(name).default_tier)
                for name, model in config.models.items()
            }
        )
        self._batch_rows = {
            (name, model.version, tier): self.metrics.histogram(series.BATCH_ROWS, name, model.version, tier)
            for name, model in config.models.items()
            for tier in model.tiers
        }
        repository = VariantRepository(
            store,
            partial(load_backend, executors=config.server.executors),
            threads=config.server.threads_per_executor,
            any_environment=not can_build,
        )
        builder = _subprocess_builder(config) if can_build else ServingOnlyBuilder()
        self.controlplane = ControlPlane(
            self.registry, repository, builder, VariantReporter(self.metrics), profiles=config.profiles
        )
        self._scheduler = Scheduler(executors=config.server.executors, on_batch=self._count_batch)
        self.dataplane = DataPlane(
            self.registry,
            self._scheduler,
            Admission(limit=config.server.max_queued_requests),
            self.metrics,
            preprocessing_threads=config.server.executors,
            request_timeout_seconds=config.server.request_timeout_seconds,
            max_request_rows=config.server.max_request_rows,
        )
        self._http = HttpFrontend(
            self.dataplane, self.controlplane, config=config.server, on_rejected=self.dataplane.count_rejection
        )
        self._grpc = GrpcFrontend(
            self.dataplane, self.controlplane, config=config.server, on_rejected=self.dataplane.count_rejection
        )
        self._metrics_server: WSGIServer | None = None

    def start(self) -> Endpoints:
        """Listen on all ports, then begin to load and build in the background.

        Raises:
            FailedPrecondition: An address cannot be bound; nothing is left running.
        """
        try:
            endpoints = Endpoints(self._http.start(), self._grpc.start(), self._start_metrics())
        except BaseException:
            self.stop(drain_seconds=0.0)
            raise
        self.controlplane.start()
        return endpoints

    def stop(self, *, drain_seconds: float | None = None) -> bool:
        """Stop accepting, answer what is in flight, end builds, free everything; idempotent.

        All that waits shares one patience: an orchestrator kills a process that takes longer than it promised.

        Returns:
            Whether nothing is computed or loaded any more. If not, the process must end by ``os._exit``.
        """
        drain = self.config.server.drain_seconds if drain_seconds is None else drain_seconds
        deadline = time.monotonic() + drain
        # First, for a build takes cores from the requests that are to be answered.
        self.controlplane.cancel_builds()
        fronts = [
            threading.Thread(target=front.stop, kwargs={"drain_seconds": drain}) for front in (self._http, self._grpc)
        ]
        for thread in fronts:
            thread.start()
        for thread in fronts:
            thread.join()
        at_rest = self.dataplane.close(drain_seconds=_left(deadline))
        at_rest &= self._scheduler.stop(drain_seconds=_left(deadline))
        at_rest &= self.controlplane.stop(timeout_seconds=_left(deadline + _STOP_MARGIN_SECONDS))
        if self._metrics_server is not None:
            self._metrics_server.shutdown()
            self._metrics_server.server_close()
            self._metrics_server = None
        return at_rest

    def _start_metrics(self) -> Address:
        address = self.config.server.metrics
        try:
            server, _ = start_http_server(address.port, address.host, registry=self.metrics.registry)
        except OSError as error:
            raise FailedPrecondition(
                f"server.metrics: cannot listen on {address}: {error.strerror}; choose another port"
            ) from error
        self._metrics_server = server
        return Address(address.host, server.server_port)

    def _count_batch(self, executable: Executable, rows: int) -> None:
        self._batch_rows[executable.identity].observe(rows)

    def _count_store_event(self, event: StoreEvent) -> None:
        self._store_events[event].inc()


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _subprocess_builder(config: ServePruneConfig) -> ArtifactBuilder:
    # Imported here because a serving-only image may leave the package out.
    from serveprune.compression.child import SubprocessBuilder

    return SubprocessBuilder(config.store, config.builds, threads_of_serving=config.server.threads_per_executor)


class StopSignals:
    """Notes SIGTERM and SIGINT; a second one ends the process at once."""

    def __init__(self) -> None:
        # A plain flag: a handler runs in the very thread that waits, and would wait for ever for the lock of an
        # Event that this thread holds at that moment.
        self.received = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            # Not SystemExit: the interpreter would wait for the threads that are still answering. Builds end with
            # their parent, and the kernel releases the leases.
            os._exit(128 + number)
        self.received = True

    def wait(self) -> None:
        """Return once a signal has come."""
        while not self.received:
            time.sleep(_SIGNAL_POLL_SECONDS)
