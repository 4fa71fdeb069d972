from collections.abc import Callable, Mapping
from pathlib import Path

from ray.serve.handle import DeploymentHandle

from serveprune.artifacts.builder import ArtifactBuilder
from serveprune.artifacts.store import Artifact, ArtifactStore
from serveprune.backends.protocol import Session
from serveprune.backends.selection import load_backend
from serveprune.config.root import ServePruneConfig
from serveprune.handlers.ray_serve.builds import RayBuilder
from serveprune.handlers.ray_serve.open_artifacts import Loaded, OpenGraphs
from serveprune.handlers.ray_serve.packing import Identity, Pack
from serveprune.handlers.ray_serve.remote_session import RemoteSession
from serveprune.handlers.ray_serve.schedulers import Schedulers
from serveprune.handlers.ray_serve.settings import RaySettings
from serveprune.models.repository import VariantRepository
from serveprune.scheduling.job import Executable
from serveprune.scheduling.scheduler import Drop


class RayComputing:
    """Where the variants of an ingress replica run, and its artifacts are built; see `server.Elsewhere`."""

    def __init__(
        self,
        config: ServePruneConfig,
        settings: RaySettings,
        *,
        packs: Mapping[str, Pack],
        handles: Mapping[str, DeploymentHandle],
        in_flight: Mapping[str, int],
        folder: Path,
    ) -> None:
        """Describe it; nothing is asked for yet.

        Args:
            config: What is served.
            settings: Beside it.
            packs: What each deployment of tiers has.
            handles: Of each of them.
            in_flight: Batches that may be on their way to each of them.
            folder: In the store, where the replicas of each note what they have.
        """
        self._config, self._settings = config, settings
        self._handles, self._in_flight = handles, in_flight
        self._open_graphs = OpenGraphs(folder)
        self.deployments = {identity: pack.name for pack in packs.values() for identity in pack.identities}

    def scheduler(
        self, *, on_batch: Callable[[Executable, int], None], on_drop: Callable[[Executable, Drop], None]
    ) -> Schedulers:
        """See `Elsewhere.scheduler`."""
        return Schedulers(self._in_flight, self.deployments, on_batch=on_batch, on_drop=on_drop)

    def repository(self, store: ArtifactStore) -> VariantRepository:
        """See `Elsewhere.repository`."""
        return _RemoteRepository(store, self._session, threads=self._config.server.threads_per_executor)

    @property
    def builder(self) -> ArtifactBuilder:
        """See `Elsewhere.builder`."""
        return RayBuilder(self._config, self._settings.builds)

    def stop(self) -> None:
        """End what it does by itself; idempotent."""
        self._open_graphs.stop()

    def _session(self, identity: Identity, loaded: Loaded) -> Session:
        name = self.deployments[identity]
        return RemoteSession(
            self._handles[name],
            loaded,
            name=name,
            open_graphs=self._open_graphs,
            max_retries=self._settings.max_retries,
            timeout_seconds=self._config.server.request_timeout_seconds,
        )


class _RemoteRepository(VariantRepository):
    """Finds artifacts here, and has them loaded by the replicas that are to run them."""

    def __init__(self, store: ArtifactStore, session: Callable[[Identity, Loaded], Session], *, threads: int) -> None:
        # Whatever node built it: the nodes of a cluster need not be alike.
        super().__init__(store, load_backend, threads=threads, any_environment=True)
        self._session = session

    def _open(self, artifact: Artifact, backend: str, *, identity: Identity) -> Session:
        return self._session(identity, Loaded(artifact.key, backend))
