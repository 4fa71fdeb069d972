"""Artifacts that the store lacks, built on a node that can."""

import logging
import math
import time
from collections.abc import Callable
from threading import Event

import ray
from ray.exceptions import RayError

from serveprune.artifacts.builder import BuildOutcome, BuildProgress, BuildRequest, BuildResult
from serveprune.building import builder_of
from serveprune.config.root import ServePruneConfig
from serveprune.handlers.ray_serve.settings import BuildsSettings

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
_END_SECONDS = 15.0
"""More than a build that is told to end is given before it is killed."""

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
        try:
            return _followed(worker, request, on_progress, cancelled)
        except RayError as error:
            _log.error("%s %s: the process that built it ended: %s", request.model_name, request.tier, error)
            return _failed("the process that built it ended; see Ray's log")
        finally:
            ray.kill(worker)


def _followed(
    worker: ray.actor.ActorHandle,
    request: BuildRequest,
    on_progress: Callable[[BuildProgress], None],
    cancelled: Event,
) -> BuildResult:
    result, progress = worker.build.remote(request), worker.progress.remote()
    has_begun, give_up_at = False, math.inf
    while not ray.wait([result], timeout=_LOOK_SECONDS)[0]:
        if ray.wait([progress], timeout=0)[0]:
            has_begun = True
            on_progress(ray.get(progress))
            progress = worker.progress.remote()
        if cancelled.is_set() and math.isinf(give_up_at):
            worker.cancel.remote()
            # What waits for a node has nothing to end, and would hear of it only there.
            give_up_at = time.monotonic() + (_END_SECONDS if has_begun else 0.0)
        if time.monotonic() >= give_up_at:
            return _failed("cancelled")
    built: BuildResult = ray.get(result)
    return built


def _failed(reason: str) -> BuildResult:
    return BuildResult(BuildOutcome.FAILED, reasons=(reason,))
