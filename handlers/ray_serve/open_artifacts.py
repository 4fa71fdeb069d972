import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_log = logging.getLogger(__name__)

_NOTE_SECONDS = 60.0
_UNUSED_SECONDS = 5 * _NOTE_SECONDS


class Loaded(NamedTuple):
    """A graph that a replica has, or is to have: an artifact on a backend."""

    key: str
    backend: str


class OpenArtifacts:
    """What the replicas of one deployment have loaded, as empty files in the store that name it.

    A replica that is started reads there what to load before it serves, and the others what one of them was asked for.
    A file says by its time when an ingress last had the graph open; any number of processes write and remove them.
    """

    def __init__(self, folder: Path) -> None:
        """Describe the folder; nothing is read or written yet.

        Args:
            folder: In the store, of this deployment alone.
        """
        self._folder = folder

    def add(self, loaded: Loaded) -> None:
        """Note that it is open."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file(loaded).touch()

    def discard(self, loaded: Loaded) -> None:
        """Note that it is not to be loaded any more."""
        self._file(loaded).unlink(missing_ok=True)

    def read(self) -> list[Loaded]:
        """Return what is to be loaded, what was noted last first."""
        return [loaded for _, loaded in sorted(self._times(), reverse=True)]

    def drop_unused(self) -> None:
        """Discard what no ingress has had open for long: a variant that was replaced leaves its graph."""
        outdated = time.time() - _UNUSED_SECONDS
        for used, loaded in self._times():
            if used < outdated:
                self.discard(loaded)

    def _times(self) -> Iterable[tuple[float, Loaded]]:
        try:
            entries = list(os.scandir(self._folder))
        except FileNotFoundError:
            return []
        found = []
        for entry in entries:
            key, _, backend = entry.name.partition(".")
            try:
                found.append((entry.stat().st_mtime, Loaded(key, backend)))
            except FileNotFoundError:  # discarded by another replica in this very moment
                continue
        return found

    def _file(self, loaded: Loaded) -> Path:
        return self._folder / f"{loaded.key}.{loaded.backend}"


class OpenGraphs:
    """What this ingress has open, noted once a minute for as long as it has. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Begin to note.

        Args:
            folder: Has a folder for each deployment.
        """
        self._folder = folder
        self._open: Counter[tuple[str, Loaded]] = Counter()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        threading.Thread(target=self._note, name="open-graphs", daemon=True).start()

    def add(self, deployment: str, loaded: Loaded) -> None:
        """Count one more session over a graph, which its replica has noted just now."""
        with self._lock:
            self._open[deployment, loaded] += 1

    def discard(self, deployment: str, loaded: Loaded) -> None:
        """Count one less; what none has open is noted no more."""
        with self._lock:
            self._open[deployment, loaded] -= 1
            self._open = +self._open

    def note(self) -> None:
        """Note what is open."""
        with self._lock:
            every = list(self._open)
        for deployment, loaded in every:
            try:
                OpenArtifacts(self._folder / deployment).add(loaded)
            except OSError as error:
                _log.warning("%s: the store cannot be written: %s", deployment, error)

    def stop(self) -> None:
        """Note nothing any more; idempotent."""
        self._stopped.set()

    def _note(self) -> None:
        while not self._stopped.wait(_NOTE_SECONDS):
            self.note()
