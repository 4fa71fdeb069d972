"""Which artifact is a model's dense graph."""

from serveprune.artifacts.key import source_recipe
from serveprune.artifacts.store import Artifact, ArtifactStore
from serveprune.config.model import ArtifactSource, ModelConfig
from serveprune.errors import InvalidArgument


def dense_of(store: ArtifactStore, model: ModelConfig, *, any_environment: bool = False) -> Artifact | None:
    """Return the imported graph of a model, if the store has it.

    Args:
        store: Where it is looked for.
        model: Whose source was imported, or names what was.
        any_environment: See `ArtifactStore.find_dense`; what is named by its key may be of any.

    Raises:
        InvalidArgument: The source names an artifact that is a tier.
        NotFound: A file, folder or module that the source names does not exist.
    """
    if not isinstance(model.source, ArtifactSource):
        return store.find_dense(source_recipe(model), any_environment=any_environment)
    found = store.open(model.source.artifact)
    if found is not None and found.manifest.kind != "dense":
        raise InvalidArgument(
            f"source.artifact: expected the key of a dense artifact, got that of a tier: {found.key}; "
            f"it was made from {found.manifest.dense_key}"
        )
    return found
