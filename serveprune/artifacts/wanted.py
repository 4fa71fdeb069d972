"""What a build request asks for, before it is there and once it is."""

from serveprune.artifacts.builder import BuildRequest
from serveprune.artifacts.dense import dense_of
from serveprune.artifacts.environment import environment
from serveprune.artifacts.key import artifact_key, source_recipe, tier_packages, tier_recipe
from serveprune.artifacts.store import Artifact, ArtifactStore


def wanted_key(store: ArtifactStore, request: BuildRequest, *, threads: int) -> str:
    """Return what tells the artifact from all others before it is there.

    Args:
        store: Where its dense graph may be.
        request: What is asked for.
        threads: Threads of one batch in serving.

    Raises:
        NotFound, FailedPrecondition: A file that it is made from cannot be read.
    """
    if request.profile is None:
        return artifact_key(source_recipe(request.model), environment())
    dense = dense_of(store, request.model)
    # The key of a graph that is still to be imported is not known: its source stands for it.
    base = dense.key if dense is not None else source_recipe(request.model)
    recipe = tier_recipe(base, request.model, request.profile, threads=threads)
    return artifact_key(recipe, environment(tier_packages(request.model, request.profile)))


def wanted_artifact(
    store: ArtifactStore, request: BuildRequest, *, threads: int, any_environment: bool = False
) -> Artifact | None:
    """Return the artifact if the store has it.

    Raises:
        NotFound, FailedPrecondition: See `wanted_key`.
    """
    dense = dense_of(store, request.model, any_environment=any_environment)
    if dense is None or request.profile is None:
        return dense
    recipe = tier_recipe(dense.key, request.model, request.profile, threads=threads)
    packages = tier_packages(request.model, request.profile)
    return store.find_tier(recipe, any_environment=any_environment, extra_packages=packages)
