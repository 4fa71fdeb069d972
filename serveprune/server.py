"""The only wiring: from a config to running parts, and back."""

import gc
import importlib.util
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from types import FrameType, MappingProxyType
from typing import Any, Protocol

from prometheus_client import Gauge, Histogram

from serveprune.artifacts.builder import (
    ArtifactBuilder,
    BuildOutcome,
    BuildProgress,
    BuildRequest,
    BuildResult,
)
from serveprune.artifacts.opening import open_store
from serveprune.artifacts.shared_store import SharedArtifactStore
from serveprune.artifacts.store import ArtifactStore, StoreEvent, ignore
from serveprune.artifacts.traced_builder import TracedBuilder
from serveprune.backends.mapped_graph import MappedOnnxRuntimeBackend
from serveprune.backends.protocol import Backend
from serveprune.backends.selection import ONNX_RUNTIME, load_backend
from serveprune.config.changes import config_changes
from serveprune.config.observability import AccessLogConfig
from serveprune.config.root import ServePruneConfig
from serveprune.config.server import Address
from serveprune.errors import Unavailable
from serveprune.frontends.authorization import TOKENS, Authorization, watched_tokens
from serveprune.frontends.certificates import CERTIFICATE, watched_certificate
from serveprune.frontends.grpc.server import GrpcFrontend
from serveprune.frontends.http.operator_call import AskOperators, OperatorAnswer, OperatorCall
from serveprune.frontends.http.server import HttpFrontend
from serveprune.frontends.metrics_endpoint import MetricsEndpoint
from serveprune.frontends.watched_files import Reload, Watch
from serveprune.models.registry import Model, Registry
from serveprune.models.repository import VariantRepository
from serveprune.models.shared_flight_builder import SharedFlightBuilder
from serveprune.observability import metrics as series
from serveprune.observability.access_log import AccessLog
from serveprune.observability.live_series import LiveSeries
from serveprune.observability.metrics import Metrics
from serveprune.observability.request_observer import RequestObserver
from serveprune.observability.tracing_protocol import Tracing, close_in_time
from serveprune.rollouts.driver import RolloutDriver
from serveprune.rollouts.rollouts import Rollouts
from serveprune.routing.router import Router
from serveprune.scheduling.job import Executable
from serveprune.scheduling.job_scheduler import JobScheduler
from serveprune.scheduling.scheduler import Drop, Scheduler
from serveprune.serving.admission import Admission
from serveprune.serving.controlplane import ControlPlane
from serveprune.serving.dataplane import DataPlane
from serveprune.serving.loadable_models import FixedModels, LoadableModels
from serveprune.serving.overview import Overview
from serveprune.serving.report import VariantReporter
from serveprune.serving.rollout_sides import RolloutSides
from serveprune.serving.shadowing import Shadowing

_log = logging.getLogger(__name__)

_STOP_MARGIN_SECONDS = 6.0
"""For a cancelled build to end even where nothing is left of the drain: a moment more than its child is given."""

_COLLECT_AFTER = (10_000, 50, 100)
"""Python's collector walks everything that is alive to find what holds each other; requests leave little of that, and
by default it took a tenth of the time that HTTP requests are computed in, and a third of that of gRPC."""

Contents = Mapping[tuple[str, str], str]
"""Name and version of a model -> what its files are like."""

_STANDARD_INPUT = 0

_COMPRESSING_PACKAGES = ("torch", "onnx", "onnx_ir")


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a running server listens, real ports included."""

    http: Address
    grpc: Address
    metrics: Address


class Elsewhere(Protocol):
    """What a host brings whose variants run, and whose artifacts are built, in other processes than the server's."""

    def scheduler(
        self, *, on_batch: Callable[[Executable, int], None], on_drop: Callable[[Executable, Drop], None]
    ) -> JobScheduler:
        """Return what runs jobs; it tells as `Scheduler` does."""
        ...

    def repository(self, store: ArtifactStore) -> VariantRepository:
        """Return what finds artifacts in a store, and has them loaded where they are to run."""
        ...

    @property
    def builder(self) -> ArtifactBuilder:
        """What makes the artifacts that the store lacks."""
        ...


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
    """All parts of one serving process.

    Attributes:
        authorization: Judges who may ask; ``None`` if everybody may.
        operators: Answers the calls to the admin API that come through the page at ``/ui``; set by whoever has it.
    """

    def __init__(
        self,
        config: ServePruneConfig,
        *,
        shared_builder: ArtifactBuilder | None = None,
        loadable: LoadableModels | None = None,
        contents: Contents = MappingProxyType({}),
        series_folder: Path | None = None,
        elsewhere: Elsewhere | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """Assemble the parts; nothing runs yet.

        Args:
            config: What to serve.
            shared_builder: For one of several processes: builds for all of them. Their supervisor then counts
                builds, and shows the metrics of all.
            loadable: Loads and unloads models by request. Default: none can be.
            contents: What the files of models are like, where they may change under their names.
            series_folder: Where several processes keep their series, whose sum the page at ``/ui`` shows.
            elsewhere: Where variants run and artifacts are built, if not here.
            tracing: Makes spans; closed when the server stops.

        Raises:
            FailedPrecondition: The certificate or the tokens cannot be read or used.
        """
        self.config = config
        tls, tokens = config.server.tls, config.server.tokens
        certificate = watched_certificate(tls) if tls is not None else None
        known_tokens = watched_tokens(tokens, environment=os.environ) if tokens is not None else None
        alone = shared_builder is None
        self.metrics = Metrics()
        self._store_events = {event: self.metrics.counter(series.STORE_EVENTS, event) for event in StoreEvent}
        store = open_store(config.store, on_event=self._count_store_event)
        self.metrics.gauge(series.STORE_BYTES).set_function(store.size_bytes)
        models = _models(config, contents)
        self.registry = Registry(models)
        self._batch_rows: dict[tuple[str, str, str], Histogram] = {}
        self._corrections: dict[tuple[str, str, str], Gauge] = {}
        self._scheduler: JobScheduler = (
            Scheduler(executors=config.server.executors, on_batch=self._count_batch, on_drop=self._count_drop)
            if elsewhere is None
            else elsewhere.scheduler(on_batch=self._count_batch, on_drop=self._count_drop)
        )
        self._router = Router(self._scheduler, self.metrics)
        repository = (
            VariantRepository(
                store,
                partial(_backend, store=store, executors=config.server.executors, maps_weights=not alone),
                threads=config.server.threads_per_executor,
                any_environment=not can_build(),
            )
            if elsewhere is None
            else elsewhere.repository(store)
        )
        self.controlplane = ControlPlane(
            self.registry,
            repository,
            shared_builder
            or (
                artifact_builder(config, tracing=tracing, on_event=self._count_store_event)
                if elsewhere is None
                else elsewhere.builder
            ),
            VariantReporter(self.metrics, counts_builds=alone),
            profiles=config.profiles,
            adaptive_state=self._router.adaptive_state,
            on_settled=_spare_the_collector,
            loadable=loadable or FixedModels(),
            is_awaited=lambda model: self.dataplane.is_preprocessing(model),
        )
        self._shadowing = Shadowing(self.metrics, is_calm=lambda: self._scheduler.is_calm)
        self._admission = Admission(limit=config.server.max_queued_requests, max_bytes=config.server.max_queued_bytes)
        self.dataplane = DataPlane(
            self.registry,
            self._router,
            self._scheduler,
            self._admission,
            self.metrics,
            self._shadowing,
            preprocessing_threads=config.server.executors,
            request_timeout_seconds=config.server.request_timeout_seconds,
            max_request_rows=config.server.max_request_rows,
        )
        self.authorization = Authorization(known_tokens) if known_tokens is not None else None
        self._tracing = tracing
        self._observer = _observer(config.server.logs.access, tracing)
        self.rollouts = Rollouts(config.store.folder, self.metrics, tracing=tracing) if alone else None
        self.overview = Overview(
            self.registry,
            self.controlplane,
            self.dataplane,
            LiveSeries(self.metrics.registry, folder=series_folder),
            rollouts=self.rollouts,
            processes=config.server.processes,
            has_operators=config.server.admin is not None and config.server.admin.through_ui,
        )
        self.operators: AskOperators | None = None
        self._http = HttpFrontend(
            self.dataplane,
            self.controlplane,
            config=config.server,
            on_rejected=self.dataplane.count_rejection,
            certificate=certificate,
            authorization=self.authorization,
            page_data=self.overview if config.server.ui else None,
            ask_operators=self._ask_operators if self.overview.has_operators else None,
            observer=self._observer,
        )
        self._grpc = GrpcFrontend(
            self.dataplane,
            self.controlplane,
            config=config.server,
            on_rejected=self.dataplane.count_rejection,
            certificate=certificate,
            authorization=self.authorization,
            observer=self._observer,
        )
        watched = [each for each in (certificate, known_tokens) if each is not None]
        self._reloads = {
            (what, outcome): self.metrics.counter(series.SECURITY_RELOADS, what, outcome)
            for what in (CERTIFICATE, TOKENS)
            for outcome in Reload
        }
        self._watch = Watch(watched, on_reload=lambda what, outcome: self._reloads[what, outcome].inc())
        self._metrics_endpoint = MetricsEndpoint(self.metrics.registry) if alone else None
        self.sides = RolloutSides(self.registry, self._router)
        self._driver = (
            RolloutDriver(self.rollouts, observe=self.sides.observe, obey=self.sides.obey) if self.rollouts else None
        )
        self._deploy(config, models)

    def apply(self, config: ServePruneConfig, *, contents: Contents = MappingProxyType({})) -> None:
        """Serve what another config says; returns at once, while what it needs is loaded and built in the background.

        What serves now goes on until what takes its place is ready. No request is lost.

        Args:
            config: Differs in models, profiles and deployments only.
            contents: See `Server`; another content makes another model.
        """
        models, changes = _models(config, contents), config_changes(self.config, config)
        # As soon as a model is in the registry requests come.
        self._deploy(config, models)
        effective = self.controlplane.apply(models, profiles=config.profiles, touched=changes.touched)
        self._deploy(config, effective)
        self._router.keep_only(effective)
        # Last, for if anything fails the next try must find the same changes.
        self.config = config

    def look_now(self) -> None:
        """Have requests spread as the rollouts say now, rather than at their next look."""
        if self._driver is not None:
            self._driver.look_now()

    def wait_for(
        self, condition: Callable[[Sequence[list[dict[str, Any]] | None]], bool], timeout_seconds: float
    ) -> bool:
        """Wait until the tiers stand so; they are given by process, of which there is one."""
        return self.controlplane.wait_for(lambda standings: condition([standings]), timeout_seconds)

    def _deploy(self, config: ServePruneConfig, models: Iterable[Model]) -> None:
        """Spread the traffic of models as the config says."""
        deployments = {name: config.deployment(name) for name in config.models}
        self._shadowing.deploy(deployments)
        for model in models:
            self._expect(model)
            self._router.deploy(model, deployments[model.name])
        self.sides.deploy(deployments)
        if self.rollouts is not None:
            self.rollouts.deploy(deployments)
        self._scheduler.share_out({name: deployment.share for name, deployment in deployments.items()})
        self._admission.limit_models(
            {
                name: deployment.max_queued_requests
                for name, deployment in deployments.items()
                if deployment.max_queued_requests is not None
            }
        )

    def _expect(self, model: Model) -> None:
        """Make the series of a model's tiers."""
        self.dataplane.expect(model)
        self._shadowing.expect(model)
        for tier in model.config.tiers:
            identity = (*model.key, tier)
            self._batch_rows[identity] = self.metrics.histogram(series.BATCH_ROWS, *identity)
            self._corrections[identity] = self.metrics.gauge(series.TIER_LATENCY_CORRECTION, *identity)

    def start(self) -> Endpoints:
        """Listen on all ports, then begin to load and build in the background.

        Raises:
            FailedPrecondition: An address cannot be bound; nothing is left running.
        """
        endpoints = self.listen()
        self.load()
        return endpoints

    def load(self) -> None:
        """Begin to load and build, and to watch tokens and certificate, in the background."""
        gc.set_threshold(*_COLLECT_AFTER)
        self._watch.start()
        self.controlplane.start()
        if self._driver is not None:
            self._driver.start()

    def listen(self) -> Endpoints:
        """Listen on all ports.

        Raises:
            FailedPrecondition: An address cannot be bound; nothing is left running.
        """
        try:
            http, grpc, metrics = self._http.start(), self._grpc.start(), self.config.server.metrics
            if self._metrics_endpoint is not None:
                metrics = self._metrics_endpoint.start(metrics)
        except BaseException:
            self.stop(drain_seconds=0.0)
            raise
        self.metrics.gauge(series.PROCESSES).set(1)
        return Endpoints(http, grpc, metrics)

    def stop(self, *, drain_seconds: float | None = None) -> bool:
        """Stop accepting, answer what is in flight, end builds, free everything; idempotent.

        All that waits shares one patience: an orchestrator kills a process that takes longer than it promised.

        Returns:
            Whether nothing is computed or loaded any more. If not, the process must end by ``os._exit``.
        """
        drain = self.config.server.drain_seconds if drain_seconds is None else drain_seconds
        deadline = time.monotonic() + drain
        self._watch.stop()
        # First, for a build takes cores from the requests that are to be answered.
        self.controlplane.cancel_builds()
        fronts = [
            threading.Thread(target=front.stop, kwargs={"drain_seconds": drain}) for front in (self._http, self._grpc)
        ]
        for thread in fronts:
            thread.start()
        for thread in fronts:
            thread.join()
        if self._driver is not None:
            self._driver.stop()
        at_rest = self._shadowing.stop(timeout_seconds=_left(deadline))
        at_rest &= self.dataplane.close(drain_seconds=_left(deadline))
        at_rest &= self._scheduler.stop(drain_seconds=_left(deadline))
        at_rest &= self.controlplane.stop(timeout_seconds=_left(deadline + _STOP_MARGIN_SECONDS))
        if self._metrics_endpoint is not None:
            self._metrics_endpoint.stop()
        if self._observer is not None:
            self._observer.stop(timeout_seconds=_left(deadline))
        close_in_time(self._tracing, left_seconds=_left(deadline))
        return at_rest

    def _ask_operators(self, call: OperatorCall) -> "Future[OperatorAnswer]":
        if self.operators is None:
            raise Unavailable("the admin API is not open yet, or no more", retry_after_seconds=1.0)
        return self.operators(call)

    def _count_batch(self, executable: Executable, rows: int) -> None:
        self._batch_rows[executable.identity].observe(rows)
        self._corrections[executable.identity].set(executable.latency.correction)

    def _count_drop(self, executable: Executable, reason: Drop) -> None:
        self.metrics.counter(series.DROPPED, *executable.identity, reason).inc()

    def _count_store_event(self, event: StoreEvent) -> None:
        self._store_events[event].inc()


def _models(config: ServePruneConfig, contents: Contents) -> list[Model]:
    deployments = {name: config.deployment(name) for name in config.models}
    return [
        Model(
            name,
            model,
            default_tier=deployments[name].default_tier,
            priority=deployments[name].priority,
            content=contents.get((name, version), ""),
        )
        for (name, version), model in config.served().items()
    ]


def _backend(name: str, *, store: ArtifactStore, executors: int, maps_weights: bool) -> Backend:
    """Return the backend of this name; with ``maps_weights`` graphs share their weights with other processes."""
    if maps_weights and name == ONNX_RUNTIME:
        return MappedOnnxRuntimeBackend(store)
    return load_backend(name, executors=executors)


def _spare_the_collector() -> None:
    """Take what is loaded by now out of every later collection, for it will not go away."""
    gc.collect()
    gc.freeze()


def _observer(access: AccessLogConfig | None, tracing: Tracing | None) -> RequestObserver | None:
    """Return what follows requests, if anybody wants to know of them."""
    log = None
    if access is not None:
        log = AccessLog(
            sample_ratio=access.sample_ratio,
            slow_seconds=access.slow_seconds,
            errors=access.errors,
            trace_ids=(lambda record: None) if tracing is None else tracing.ids_of,
        )
    return RequestObserver(tracing=tracing, access=log) if tracing is not None or log is not None else None


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def can_build() -> bool:
    """Tell whether the compressing half is installed."""
    return all(importlib.util.find_spec(package) for package in _COMPRESSING_PACKAGES)


def artifact_builder(
    config: ServePruneConfig,
    *,
    tracing: Tracing | None = None,
    on_event: Callable[[StoreEvent], None] = ignore,
) -> ArtifactBuilder:
    """Return what makes the artifacts that the store lacks, in processes of its own.

    Args:
        config: What is served.
        tracing: Told of builds.
        on_event: Told what happens in a shared store on account of builds.
    """
    builder = _untraced_builder(config, on_event)
    return builder if tracing is None else TracedBuilder(builder, tracing)


def _untraced_builder(config: ServePruneConfig, on_event: Callable[[StoreEvent], None]) -> ArtifactBuilder:
    builder: ArtifactBuilder = ServingOnlyBuilder()
    threads = config.server.threads_per_executor
    if can_build():
        # Imported here because a serving-only image may leave the package out.
        from serveprune.compression.child import SubprocessBuilder
        from serveprune.compression.single_flight_builder import SingleFlightBuilder

        builder = SingleFlightBuilder(
            SubprocessBuilder(config.store, config.builds, threads_of_serving=threads),
            config.store,
            config.builds,
            threads_of_serving=threads,
        )
    store = open_store(config.store, on_event=on_event)
    if not isinstance(store, SharedArtifactStore):
        return builder
    return SharedFlightBuilder(
        builder,
        store,
        config.builds,
        lease_seconds=config.store.lease_seconds,
        threads_of_serving=threads,
        can_build=can_build(),
        on_event=on_event,
    )


class ReloadSignal:
    """Notes SIGHUP, which asks for the config to be read again.

    It comes also when the terminal is closed that the server was started from; then the server is to stop.
    """

    def __init__(self) -> None:
        self._received = self._is_closed = False
        self._has_terminal = os.isatty(_STANDARD_INPUT)
        signal.signal(signal.SIGHUP, self._on_signal)

    def take(self) -> bool:
        """Tell whether the signal has come since the last call."""
        received, self._received = self._received, False
        return received

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._has_terminal and not os.isatty(_STANDARD_INPUT):
            # Both the shell and the kernel send it, and a second SIGTERM would end the server at once.
            if not self._is_closed:
                self._is_closed = True
                signal.raise_signal(signal.SIGTERM)
        else:
            self._received = True


class StopSignals:
    """Notes SIGTERM and SIGINT; a second one ends the process at once."""

    def __init__(self, *, second_ends: bool = True) -> None:
        """Begin to take note.

        Args:
            second_ends: Not in one of several serving processes: whoever ends a whole group (systemd, by default)
                signals it as its supervisor does, and it has requests to answer.
        """
        self._second_ends = second_ends
        # A plain flag: a handler runs in the very thread that waits, and would wait for ever for the lock of an
        # Event that this thread holds at that moment.
        self.received = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received and self._second_ends:
            # Not SystemExit: the interpreter would wait for the threads that are still answering. Builds end with
            # their parent, and the kernel releases the leases.
            os._exit(128 + number)
        self.received = True
