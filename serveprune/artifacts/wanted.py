"""What a build request asks for, before it is there and once it is."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from serveprune.artifacts.builder import BuildRequest
from serveprune.artifacts.dense import dense_of
from serveprune.artifacts.environment import environment
from serveprune.artifacts.key import artifact_key, source_recipe, tier_packages, tier_recipe
from serveprune.artifacts.store import Artifact, ArtifactStore
from serveprune.config.model import ArtifactSource


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks for. All it is made from was digested, so that looking again costs little.

    Attributes:
        name: Tells it from all others before it is there.
        find: Returns it if the store has it.
    """

    name: str
    find: Callable[[], Artifact | None]


def wanted(store: ArtifactStore, request: BuildRequest, *, threads: int, any_environment: bool = False) -> Wanted:
    """Identify what a request asks for.

    Args:
        store: Where it, and the dense graph that a tier is made from, may be.
        request: What is asked for.
        threads: Threads of one batch in serving.
        any_environment: See `ArtifactStore.find_tier`.

    Raises:
        NotFound, FailedPrecondition: A file that it is made from cannot be read.
    """
    model, profile = request.model, request.profile
    if profile is None:
        recipe = source_recipe(model)
        find: Callable[[], Artifact | None] = partial(store.find_dense, recipe, any_environment=any_environment)
        if isinstance(model.source, ArtifactSource):
            find = partial(dense_of, store, model)
        return Wanted(artifact_key(recipe, environment()), find)
    dense = dense_of(store, model, any_environment=any_environment)
    # The key of a graph that is still to be imported is not known: its source stands for it.
    recipe = tier_recipe(dense.key if dense is not None else source_recipe(model), model, profile, threads=threads)
    packages = tier_packages(model, profile)
    name = artifact_key(recipe, environment(packages))
    if dense is None:
        return Wanted(name, lambda: _tier_of_new_dense(store, request, threads=threads))
    return Wanted(name, partial(store.find_tier, recipe, any_environment=any_environment, extra_packages=packages))


def _tier_of_new_dense(store: ArtifactStore, request: BuildRequest, *, threads: int) -> Artifact | None:
    """Find a tier whose dense graph may have come since it was identified."""
    if dense_of(store, request.model) is None:
        return None
    return wanted(store, request, threads=threads).find()
