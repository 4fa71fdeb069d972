"""The only wiring: from a config to running parts, and back."""

import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from serveprune.artifacts.builder import ArtifactBuilder
from serveprune.artifacts.opening import open_store
from serveprune.artifacts.store import ArtifactStore, StoreEvent
from serveprune.backends.mapped_graph import MappedOnnxRuntimeBackend
from serveprune.backends.protocol import Backend
from serveprune.backends.selection import ONNX_RUNTIME, load_backend
from serveprune.building import builder_of, can_build
from serveprune.config.changes import config_changes
from serveprune.config.root import ServePruneConfig
from serveprune.config.server import Address
from serveprune.frontends.authorization import TOKENS, Authorization, watched_tokens
from serveprune.frontends.certificates import CERTIFICATE, watched_certificate
from serveprune.frontends.grpc.server import GrpcFrontend
from serveprune.frontends.http.operator_call import AdmittedOperators
from serveprune.frontends.http.server import HttpFrontend
from serveprune.frontends.metrics_endpoint import MetricsEndpoint
from serveprune.frontends.observed_request import request_observer
from serveprune.frontends.watched_files import Reload, Watch
from serveprune.models.registry import Model, Registry
from serveprune.models.repository import VariantRepository
from serveprune.observability import metrics as series
from serveprune.observability.live_series import LiveSeries
from serveprune.observability.metrics import Metrics
from serveprune.observability.tracing_protocol import Tracing, close_in_time
from serveprune.rollouts.driver import RolloutDriver
from serveprune.rollouts.rollouts import Rollouts
from serveprune.routing.router import Router
from serveprune.scheduling.job import Executable
from serveprune.scheduling.job_scheduler import JobScheduler
from serveprune.scheduling.scheduler import Drop, Scheduler
from serveprune.serving.admission import Admission
from serveprune.serving.batch_series import BatchSeries
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


class Server:
    """All parts of one serving process.

    Attributes:
        authorization: Judges who may ask; ``None`` if everybody may.
        operators: Answer the calls to the admin API that come through the page at ``/ui``; admitted by whoever has it.
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
        self._batches = BatchSeries(self.metrics)
        self._scheduler: JobScheduler = (
            Scheduler(executors=config.server.executors, on_batch=self._batches.ran, on_drop=self._batches.dropped)
            if elsewhere is None
            else elsewhere.scheduler(on_batch=self._batches.ran, on_drop=self._batches.dropped)
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
                builder_of(config, tracing=tracing, on_event=self._count_store_event)
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
        self._observer = request_observer(config.server.logs.access, tracing)
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
        self.operators = AdmittedOperators()
        self._http = HttpFrontend(
            self.dataplane,
            self.controlplane,
            config=config.server,
            on_rejected=self.dataplane.count_rejection,
            certificate=certificate,
            authorization=self.authorization,
            page_data=self.overview if config.server.ui else None,
            ask_operators=self.operators.ask if self.overview.has_operators else None,
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
            self.dataplane.expect(model)
            self._shadowing.expect(model)
            self._batches.expect(model)
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


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
