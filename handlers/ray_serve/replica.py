"""What a deployment of tiers runs: graphs of the store, one batch at a time."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from serveprune.artifacts.lease import Lease
from serveprune.artifacts.store import ArtifactStore
from serveprune.backends.protocol import Backend, Session
from serveprune.backends.selection import load_backend
from serveprune.errors import Internal, NotFound, ServePruneError
from serveprune.handlers.ray_serve.failure import Failure
from serveprune.handlers.ray_serve.open_artifacts import Loaded, OpenArtifacts
from serveprune.models.warm_up import example
from serveprune.oip.tensor import Array, TensorSpec

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_NOTE_SECONDS = 60.0

_Result = TypeVar("_Result")

Interface = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]


class TierReplica:
    """One process of a deployment. Ray calls its methods on an event loop; graphs run in one thread beside it.

    Which artifact a batch is for is said with the batch, so that a profile may change without a new deployment.
    """

    def __init__(self, *, store: Path, max_bytes: int, folder: Path, threads: int, variants: int) -> None:
        """Load what the other replicas of the deployment have; Ray sends nothing here before.

        Args:
            store: Where artifacts are.
            max_bytes: Its bound.
            folder: Where replicas of this deployment note what they have.
            threads: Of one batch.
            variants: Of this deployment; beyond as many graphs, those that nobody uses are let go.
        """
        self._store = ArtifactStore(store, max_bytes=max_bytes)
        self._open_artifacts = OpenArtifacts(folder)
        self._threads, self._variants = threads, variants
        self._backends: dict[str, Backend] = {}
        self._sessions: dict[Loaded, Session] = {}
        self._leases: dict[Loaded, Lease] = {}
        self._noted: dict[Loaded, float] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tier")
        self._stopped = threading.Event()
        self._follow()
        self._thread = threading.Thread(target=self._watch, name="open-artifacts", daemon=True)
        self._thread.start()

    async def open(self, key: str, backend: str) -> Interface | Failure:
        """Load an artifact, if it is not there yet, and return what it takes and gives."""
        return await self._apart(lambda: self._opened(Loaded(key, backend)))

    async def run(
        self, key: str, backend: str, feeds: Mapping[str, Array], outputs: Sequence[str]
    ) -> list[Array] | Failure:
        """Compute a batch."""
        return await self._apart(lambda: self._run(Loaded(key, backend), feeds, outputs))

    async def describe(self) -> dict[str, Any]:
        """Return which process this is and what it has loaded, for people who look for a fault."""
        return {"pid": os.getpid(), "loaded": sorted(tuple(each) for each in self._sessions)}

    async def _apart(self, work: Callable[[], _Result]) -> _Result | Failure:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except ServePruneError as error:
            return Failure.of(error)
        except Exception:  # whatever it is, the caller gets an answer and the log gets the trace
            _log.exception("a batch failed")
            return Failure.of(Internal("internal error; see the replica's log"))

    def _run(self, loaded: Loaded, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        answers = self._session(loaded).run(feeds, outputs=outputs)
        self._note(loaded)
        return answers

    def _opened(self, loaded: Loaded) -> Interface:
        session = self._session(loaded)
        self._open_artifacts.add(loaded)
        return session.inputs, session.outputs

    def _session(self, loaded: Loaded) -> Session:
        session = self._sessions.get(loaded)
        if session is None:
            session = self._load(loaded)
        return session

    def _load(self, loaded: Loaded) -> Session:
        artifact = self._store.open(loaded.key)
        if artifact is None:
            raise NotFound(f"the store has no artifact {loaded.key}; is store.path the same folder on every node?")
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

    def _note(self, loaded: Loaded) -> None:
        """Say that a graph is used, not more often than need be."""
        now = time.monotonic()
        if now - self._noted.get(loaded, -_NOTE_SECONDS) >= _NOTE_SECONDS:
            self._noted[loaded] = now
            self._open_artifacts.add(loaded)

    def _watch(self) -> None:
        while not self._stopped.wait(_LOOK_SECONDS):
            with suppress(RuntimeError):  # the pool was shut down
                self._pool.submit(self._follow).result()

    def _follow(self) -> None:
        """Load what another replica was asked for, and let go of what none is asked for any more."""
        try:
            self._open_artifacts.drop_unused(kept=self._variants)
            wanted = self._open_artifacts.read()
        except OSError as error:
            _log.warning("the store cannot be read: %s", error)
            return
        for loaded in wanted:
            try:
                self._session(loaded)
            except ServePruneError as error:
                _log.warning("%s is not loaded: %s", loaded.key, error.message)
                self._open_artifacts.discard(loaded)
        for loaded in [each for each in self._sessions if each not in wanted]:
            self._sessions.pop(loaded).close()
            self._leases.pop(loaded).release()

    def __del__(self) -> None:
        self._stopped.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
