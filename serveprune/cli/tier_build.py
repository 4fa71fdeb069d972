"""The build of a tier that a command waits for."""

from threading import Event

from serveprune.artifacts.builder import BuildRequest, BuildResult
from serveprune.artifacts.opening import open_store
from serveprune.artifacts.store import ArtifactStore
from serveprune.building import artifact_builder
from serveprune.cli.compress_target import Target
from serveprune.cli.console import progress_console, progress_display

_PATIENCE_SECONDS = 60.0
"""A server waits for a shared store as long as it takes; whoever sits at a shell would rather know."""


def build_tier(target: Target, interrupted: Event) -> tuple[BuildResult, ArtifactStore]:
    """Build what the command line names, or find it, or wait for whoever builds it; progress is shown meanwhile.

    Args:
        target: What to build, and where.
        interrupted: Set to stop.

    Returns:
        How it ended, and the store that has it then. What was made is where other machines find it, if they may; the
        log says so otherwise.
    """
    builder = artifact_builder(
        target.store,
        target.builds,
        threads_of_serving=target.threads_of_serving,
        patience_seconds=_PATIENCE_SECONDS,
    )
    request = BuildRequest(model_name=target.name, model=target.model, tier=target.tier, profile=target.profile)
    name = f"{target.name}@{target.tier}"
    with progress_display(progress_console()) as display:
        result = builder.build(
            request, on_progress=lambda progress: display.update(name, progress), cancelled=interrupted
        )
        display.finish(name, f"{result.outcome} in {result.seconds:.1f} s")
    store = open_store(target.store)
    store.publish()
    return result, store
