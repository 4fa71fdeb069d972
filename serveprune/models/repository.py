from pathlib import Path

from serveprune.artifacts.key import source_recipe, tier_recipe
from serveprune.artifacts.store import Artifact, ArtifactStore
from serveprune.backends.protocol import Backend
from serveprune.config.model import ModelConfig
from serveprune.config.profile import ProfileConfig
from serveprune.models.instance import BatchSettings, Instance
from serveprune.preprocessing.loading import load_preprocessor
from serveprune.preprocessing.protocol import Preprocessor


class VariantRepository:
    """Finds artifacts in the store and loads them, warm."""

    def __init__(self, store: ArtifactStore, backend: Backend, *, threads: int, any_environment: bool) -> None:
        """Describe where variants come from and how they run.

        Args:
            store: Where artifacts are.
            backend: What runs them.
            threads: Threads one run may use inside the backend.
            any_environment: Accept artifacts that another environment built. For installations that cannot
                build: they lack torch, so no artifact can be from their own environment.
        """
        self._store = store
        self._backend = backend
        self._threads = threads
        self._any_environment = any_environment

    def find_dense(self, config: ModelConfig) -> Artifact | None:
        """Return the imported graph of a model, if the store has it."""
        return self._store.find_dense(source_recipe(config), any_environment=self._any_environment)

    def find_tier(self, config: ModelConfig, *, dense: Artifact, profile: ProfileConfig) -> Artifact | None:
        """Return what the profile makes of the model, if the store has it, accepted or refused."""
        recipe = tier_recipe(dense.key, config, profile, threads=self._threads)
        return self._store.find_tier(recipe, any_environment=self._any_environment)

    def load(
        self, artifact: Artifact, *, identity: tuple[str, str, str], batches: BatchSettings, dense: Instance | None
    ) -> Instance:
        """Load an artifact and run it once, so that the first request finds it warm.

        While the instance is open the artifact is leased, so that nothing evicts it.

        Raises:
            NotFound: Another process has evicted it since it was found.
            InvalidArgument: The backend cannot load it.
        """
        lease = self._store.lease(artifact.key)
        try:
            session = self._backend.load(artifact.graph, threads=self._threads)
        except BaseException:
            lease.release()
            raise
        instance = Instance(session, identity=identity, batches=batches, dense=dense, on_close=lease.release)
        try:
            instance.warm()
        except BaseException:
            instance.retire()
            raise
        return instance

    def name_of(self, log: Path) -> str:
        """Return the name of a build's log relative to the store, which says where it is but not on which disk."""
        return str(log.relative_to(self._store.root)) if log.is_relative_to(self._store.root) else log.name

    def load_preprocessor(self, dense: Artifact, instance: Instance) -> Preprocessor | None:
        """Return what turns text or images into the model's inputs, if its dense artifact declares it."""
        declared = dense.manifest.preprocessing
        if declared is None:
            return None
        return load_preprocessor(declared, folder=dense.folder, inputs=instance.inputs)
