"""Who makes the artifacts that the store lacks, from the config: for servers, and for commands."""

import importlib.util
import math
from collections.abc import Callable
from threading import Event

from serveprune.artifacts.builder import ArtifactBuilder, BuildOutcome, BuildProgress, BuildRequest, BuildResult
from serveprune.artifacts.opening import open_store
from serveprune.artifacts.shared_store import SharedArtifactStore
from serveprune.artifacts.store import StoreEvent, ignore
from serveprune.artifacts.traced_builder import TracedBuilder
from serveprune.config.root import ServePruneConfig
from serveprune.config.server import BuildsConfig, StoreConfig
from serveprune.models.shared_flight_builder import SharedFlightBuilder
from serveprune.observability.tracing_protocol import Tracing

_COMPRESSING_PACKAGES = ("torch", "onnx", "onnx_ir")
_LOOKUPS = (StoreEvent.HIT, StoreEvent.MISS)


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


def can_build() -> bool:
    """Tell whether the compressing half is installed."""
    return all(importlib.util.find_spec(package) for package in _COMPRESSING_PACKAGES)


def builder_of(
    config: ServePruneConfig, *, tracing: Tracing | None = None, on_event: Callable[[StoreEvent], None] = ignore
) -> ArtifactBuilder:
    """Return what builds for a server.

    Args:
        config: What is served.
        tracing: Told of builds.
        on_event: Told what happens in a shared store on account of builds.
    """
    builder = artifact_builder(
        config.store, config.builds, threads_of_serving=config.server.threads_per_executor, on_event=on_event
    )
    return builder if tracing is None else TracedBuilder(builder, tracing)


def artifact_builder(
    store: StoreConfig,
    builds: BuildsConfig,
    *,
    threads_of_serving: int,
    on_event: Callable[[StoreEvent], None] = ignore,
    patience_seconds: float = math.inf,
) -> ArtifactBuilder:
    """Return what makes artifacts, in processes of its own: one build for all that share the store.

    Args:
        store: Where they go.
        builds: Limits of one build.
        threads_of_serving: Threads one batch gets in serving.
        on_event: Told what happens in a shared store on account of builds, but for lookups.
        patience_seconds: See `SharedFlightBuilder`.
    """
    builder: ArtifactBuilder = ServingOnlyBuilder()
    if can_build():
        # Imported here because a serving-only image may leave the package out.
        from serveprune.compression.child import SubprocessBuilder
        from serveprune.compression.single_flight_builder import SingleFlightBuilder

        builder = SingleFlightBuilder(
            SubprocessBuilder(store, builds, threads_of_serving=threads_of_serving),
            store,
            builds,
            threads_of_serving=threads_of_serving,
        )

    def told(event: StoreEvent) -> None:
        # One that waits looks again and again.
        if event not in _LOOKUPS:
            on_event(event)

    opened = open_store(store, on_event=told)
    if not isinstance(opened, SharedArtifactStore):
        return builder
    return SharedFlightBuilder(
        builder,
        opened,
        builds,
        lease_seconds=store.lease_seconds,
        threads_of_serving=threads_of_serving,
        can_build=can_build(),
        on_event=told,
        patience_seconds=patience_seconds,
    )
