from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from serveprune.artifacts.dense import dense_of
from serveprune.artifacts.key import tier_packages, tier_recipe
from serveprune.artifacts.store import Artifact, ArtifactStore
from serveprune.backends.protocol import Backend, Session
from serveprune.backends.selection import ONNX_RUNTIME
from serveprune.config.model import DENSE, ModelConfig
from serveprune.config.profile import ProfileConfig
from serveprune.models.agreement import require_agreement
from serveprune.models.instance import BatchSettings, Instance
from serveprune.preprocessing.loading import load_preprocessor
from serveprune.preprocessing.protocol import Preprocessor

_COMPARED_ROWS = 3

_LOOPS = frozenset(("Loop", "Scan", "SequenceMap"))
"""Operators that compute a graph within the graph as often as a value says."""


class VariantRepository:
    """Finds artifacts in the store and loads them, warm."""

    def __init__(
        self, store: ArtifactStore, backend: Callable[[str], Backend], *, threads: int, any_environment: bool
    ) -> None:
        """Describe where variants come from and how they run.

        Args:
            store: Where artifacts are.
            backend: Returns what runs them, by its name.
            threads: Threads one run may use inside the backend.
            any_environment: Accept artifacts that another environment built. For installations that cannot
                build: they lack torch, so no artifact can be from their own environment.
        """
        self._store = store
        self._backend = backend
        self._backends: dict[str, Backend] = {}
        self._threads = threads
        self._any_environment = any_environment

    def find_dense(self, config: ModelConfig) -> Artifact | None:
        """Return the imported graph of a model, if the store has it."""
        return dense_of(self._store, config, any_environment=self._any_environment)

    def find_tier(self, config: ModelConfig, *, dense: Artifact, profile: ProfileConfig) -> Artifact | None:
        """Return what the profile makes of the model, if the store has it, accepted or refused."""
        recipe = tier_recipe(dense.key, config, profile, threads=self._threads)
        packages = tier_packages(config, profile)
        return self._store.find_tier(recipe, any_environment=self._any_environment, extra_packages=packages)

    def load(
        self,
        artifact: Artifact,
        *,
        identity: tuple[str, str, str],
        batches: BatchSettings,
        dense: Instance | None,
        backend: str = ONNX_RUNTIME,
    ) -> Instance:
        """Load an artifact and run it once, so that the first request finds it warm.

        While the instance is open the artifact is leased, so that nothing evicts it.

        Raises:
            NotFound: Another process has evicted it since it was found.
            InvalidArgument: The backend cannot load it.
            MissingExtra: The backend is not installed.
            FailedPrecondition: It is dense, and the backend computes something else than ONNX Runtime does.
        """
        lease = self._store.lease(artifact.key)
        try:
            session = self._open(artifact, backend, identity=identity)
        except BaseException:
            lease.release()
            raise
        instance = Instance(
            session,
            identity=identity,
            batches=batches,
            dense=dense,
            has_loops=not _LOOPS.isdisjoint(artifact.manifest.graph.operators),
            on_close=lease.release,
        )
        try:
            instance.warm()
            if identity[2] == DENSE and backend != ONNX_RUNTIME:
                # A tier was measured on what runs it; of dense only this shows that it is the same model.
                with closing(self._open(artifact, ONNX_RUNTIME, identity=identity)) as reference:
                    require_agreement(session, reference, instance.example(_COMPARED_ROWS), backend=backend)
        except BaseException:
            instance.retire()
            raise
        return instance

    def _open(self, artifact: Artifact, backend: str, *, identity: tuple[str, str, str]) -> Session:
        """Load the graph of an artifact; a host whose variants run in other processes has them do it."""
        if backend not in self._backends:
            self._backends[backend] = self._backend(backend)
        return self._backends[backend].load(artifact.graph, threads=self._threads)

    def name_of(self, log: Path) -> str:
        """Return the name of a build's log relative to the store, which says where it is but not on which disk."""
        return str(log.relative_to(self._store.root)) if log.is_relative_to(self._store.root) else log.name

    def load_preprocessor(self, dense: Artifact, instance: Instance) -> Preprocessor | None:
        """Return what turns text or images into the model's inputs, if its dense artifact declares it."""
        declared = dense.manifest.preprocessing
        if declared is None:
            return None
        return load_preprocessor(declared, folder=dense.folder, inputs=instance.inputs)
