"""What a deployment of tiers runs: graphs of the store, one batch at a time."""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from serveprune.artifacts.lease import Lease
from serveprune.artifacts.opening import open_store
from serveprune.backends.protocol import Backend, Session
from serveprune.backends.selection import load_backend
from serveprune.config.server import StoreConfig
from serveprune.errors import Internal, NotFound, ServePruneError
from serveprune.handlers.ray_serve.failure import Failure
from serveprune.handlers.ray_serve.open_artifacts import Loaded, OpenArtifacts
from serveprune.models.warm_up import example
from serveprune.oip.tensor import Array, TensorSpec

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0

_Result = TypeVar("_Result")

Interface = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]


class TierReplica:
    """One process of a deployment. Ray calls its methods on an event loop; graphs run in one thread beside it.

    Which artifact a batch is for is said with the batch, so that a profile may change without a new deployment. Graphs
    are loaded and let go of in another thread, while batches of others go on.
    """

    def __init__(self, *, store: StoreConfig, folder: Path, threads: int) -> None:
        """Load what the other replicas of the deployment have; Ray sends nothing here before.

        Args:
            store: Where artifacts are.
            folder: Where replicas of this deployment note what they have.
            threads: Of one batch.
        """
        self._store = open_store(store)
        self._open_artifacts = OpenArtifacts(folder)
        self._threads = threads
        self._backends: dict[str, Backend] = {}
        self._sessions: dict[Loaded, Session] = {}
        self._leases: dict[Loaded, Lease] = {}
        self._loading = threading.Lock()
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="tier")
        self._opening = ThreadPoolExecutor(1, thread_name_prefix="open")
        self._stopped = threading.Event()
        self._follow()
        threading.Thread(target=self._watch, name="open-artifacts", daemon=True).start()

    async def open(self, key: str, backend: str) -> Interface | Failure:
        """Load an artifact, if it is not there yet, and return what it takes and gives."""
        return await _given_by(self._opening, lambda: self._opened(Loaded(key, backend)))

    async def run(
        self, key: str, backend: str, feeds: Mapping[str, Array], outputs: Sequence[str]
    ) -> list[Array] | Failure:
        """Compute a batch."""
        return await _given_by(self._computing, lambda: self._session(Loaded(key, backend)).run(feeds, outputs=outputs))

    def _opened(self, loaded: Loaded) -> Interface:
        self._open_artifacts.add(loaded)
        session = self._session(loaded)
        return session.inputs, session.outputs

    def _session(self, loaded: Loaded) -> Session:
        session = self._sessions.get(loaded)
        if session is None:
            with self._loading:
                # Another thread may have loaded it meanwhile.
                session = self._sessions.get(loaded) or self._noted(loaded)
        return session

    def _noted(self, loaded: Loaded) -> Session:
        # Noted first, for what is loaded and not noted is let go.
        self._open_artifacts.add(loaded)
        try:
            return self._load(loaded)
        except BaseException:
            self._open_artifacts.discard(loaded)
            raise

    def _load(self, loaded: Loaded) -> Session:
        artifact = self._store.open(loaded.key)
        if artifact is None:
            raise NotFound(f"the store has no artifact {loaded.key}; is it the same folder on every node?")
        lease = self._store.lease(loaded.key)
        try:
            if loaded.backend not in self._backends:
                self._backends[loaded.backend] = load_backend(loaded.backend)
            session = self._backends[loaded.backend].load(artifact.graph, threads=self._threads)
        except BaseException:
            lease.release()
            raise
        with suppress(ServePruneError):  # a graph may refuse made-up inputs, and serves all the same
            session.run(example(session.inputs, range(1)))
        self._sessions[loaded], self._leases[loaded] = session, lease
        _log.info("loaded %s on %s", *loaded)
        return session

    def _watch(self) -> None:
        while not self._stopped.wait(_LOOK_SECONDS):
            try:
                self._follow()
            except Exception:  # the next look must come
                _log.exception("a look at what is to be loaded failed")

    def _follow(self) -> None:
        """Load what another replica was asked for, and let go of what no ingress has open any more."""
        present = list(self._sessions)
        try:
            self._open_artifacts.drop_unused()
            wanted = self._open_artifacts.read()
        except OSError as error:
            _log.warning("the store cannot be read: %s", error)
            return
        for loaded in wanted:
            try:
                self._session(loaded)
            except ServePruneError as error:
                _log.warning("%s is not loaded: %s", loaded.key, error.message)
        for loaded in [each for each in present if each not in wanted]:
            # Where batches are computed, so that none is under way in it.
            self._computing.submit(self._let_go, loaded)

    def _let_go(self, loaded: Loaded) -> None:
        if loaded in self._sessions:
            self._sessions.pop(loaded).close()
            self._leases.pop(loaded).release()

    def __del__(self) -> None:
        self._stopped.set()
        for pool in (self._computing, self._opening):
            pool.shutdown(wait=False, cancel_futures=True)


async def _given_by(pool: ThreadPoolExecutor, work: Callable[[], _Result]) -> _Result | Failure:
    try:
        return await asyncio.get_running_loop().run_in_executor(pool, work)
    except ServePruneError as error:
        return Failure.of(error)
    except Exception:  # whatever it is, the caller gets an answer and the log gets the trace
        _log.exception("a batch failed, or a graph was not loaded")
        return Failure.of(Internal("internal error; see the replica's log"))
