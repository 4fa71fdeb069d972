"""Who makes the artifacts that the store lacks; imports the compressing half where it is installed, and no sooner."""

import importlib.util
from collections.abc import Callable
from threading import Event

from serveprune.artifacts.builder import ArtifactBuilder, BuildOutcome, BuildProgress, BuildRequest, BuildResult
from serveprune.artifacts.opening import open_store
from serveprune.artifacts.shared_store import SharedArtifactStore
from serveprune.artifacts.store import StoreEvent, ignore
from serveprune.artifacts.traced_builder import TracedBuilder
from serveprune.config.root import ServePruneConfig
from serveprune.models.shared_flight_builder import SharedFlightBuilder
from serveprune.observability.tracing_protocol import Tracing

_COMPRESSING_PACKAGES = ("torch", "onnx", "onnx_ir")


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
