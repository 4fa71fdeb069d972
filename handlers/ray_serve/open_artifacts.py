import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_UNUSED_SECONDS = 600.0


class Loaded(NamedTuple):
    """A graph that a replica has, or is to have: an artifact on a backend."""

    key: str
    backend: str


class OpenArtifacts:
    """What the replicas of one deployment have loaded, as empty files in the store that name it.

    A replica that is started reads there what to load before it serves, and the others what one of them was asked for.
    A file says by its time when it was used last; any number of processes write and remove them.
    """

    def __init__(self, folder: Path) -> None:
        """Describe the folder; nothing is read or written yet.

        Args:
            folder: In the store, of this deployment alone.
        """
        self._folder = folder

    def add(self, loaded: Loaded) -> None:
        """Note that it is loaded and used."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file(loaded).touch()

    def discard(self, loaded: Loaded) -> None:
        """Note that it is not to be loaded any more."""
        self._file(loaded).unlink(missing_ok=True)

    def read(self) -> list[Loaded]:
        """Return what is to be loaded, what was used last first."""
        return [loaded for _, loaded in sorted(self._times(), reverse=True)]

    def drop_unused(self, *, kept: int) -> None:
        """Discard what has not been used for long, beyond so many: a variant that was replaced leaves its graph."""
        outdated = time.time() - _UNUSED_SECONDS
        for used, loaded in sorted(self._times(), reverse=True)[kept:]:
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
