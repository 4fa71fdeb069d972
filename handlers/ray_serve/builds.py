"""Artifacts that the store lacks, built on a node that can."""

import logging
from collections.abc import Callable
from threading import Event

import ray
from ray.exceptions import GetTimeoutError, RayError

from serveprune.artifacts.builder import BuildOutcome, BuildProgress, BuildRequest, BuildResult
from serveprune.building import builder_of
from serveprune.config.root import ServePruneConfig
from serveprune.handlers.ray_serve.settings import BuildsSettings

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
_WAITING = BuildProgress("waiting for a node", 0.0)


class BuildWorker:
    """An actor that builds one artifact. It is told to end, and asked how far it is, while it builds."""

    def __init__(self, config: ServePruneConfig) -> None:
        self._builder = builder_of(config)
        self._progress = BuildProgress("starting", 0.0)
        self._cancelled = Event()

    def build(self, request: BuildRequest) -> BuildResult:
        """See `ArtifactBuilder.build`."""
        return self._builder.build(request, on_progress=self._show, cancelled=self._cancelled)

    def progress(self) -> BuildProgress:
        """Return how far it is."""
        return self._progress

    def cancel(self) -> None:
        """End the build soon."""
        self._cancelled.set()

    def _show(self, progress: BuildProgress) -> None:
        self._progress = progress


class RayBuilder:
    """An `ArtifactBuilder` whose builds run on a node of the cluster that has room and what they need.

    Of all ingress replicas that want an artifact one has it built: their workers find each other by the store's locks.
    """

    def __init__(self, config: ServePruneConfig, settings: BuildsSettings) -> None:
        self._config, self._settings = config, settings

    def build(
        self, request: BuildRequest, *, on_progress: Callable[[BuildProgress], None], cancelled: Event
    ) -> BuildResult:
        """See `ArtifactBuilder.build`."""
        on_progress(_WAITING)
        worker = (
            ray.remote(BuildWorker)
            .options(
                num_cpus=self._settings.num_cpus, resources=dict(self._settings.resources) or None, max_concurrency=3
            )
            .remote(self._config)
        )
        result = worker.build.remote(request)
        try:
            while not ray.wait([result], timeout=_LOOK_SECONDS)[0]:
                if cancelled.is_set():
                    worker.cancel.remote()
                self._look(worker, on_progress)
            built: BuildResult = ray.get(result)
        except RayError as error:
            _log.error("%s %s: the process that built it ended: %s", request.model_name, request.tier, error)
            return BuildResult(BuildOutcome.FAILED, reasons=("the process that built it ended; see Ray's log",))
        finally:
            ray.kill(worker)
        return built

    def _look(self, worker: ray.actor.ActorHandle, on_progress: Callable[[BuildProgress], None]) -> None:
        try:
            on_progress(ray.get(worker.progress.remote(), timeout=_LOOK_SECONDS))
        except GetTimeoutError:
            on_progress(_WAITING)
