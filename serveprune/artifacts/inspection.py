import errno
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from serveprune.artifacts import integrity
from serveprune.artifacts.file_lock import FileLock
from serveprune.artifacts.import_records import ImportRecord
from serveprune.artifacts.manifest import MANIFEST_FILE, Manifest
from serveprune.artifacts.quarantine import Identity, Quarantine
from serveprune.errors import DataLoss, FailedPrecondition

_Content = TypeVar("_Content")


@dataclass(frozen=True, slots=True)
class Finding(Generic[_Content]):
    """What was found at a path: sound content, or a problem, or nothing (neither)."""

    content: _Content | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """Reads what the store holds, checks it, and sets aside what is corrupt.

    Attributes:
        on_corrupt: Told of each corrupt thing, once by whoever found it.
    """

    quarantine: Quarantine
    on_corrupt: Callable[[], None]

    def artifact(self, folder: Path) -> Finding[Manifest]:
        """Check an artifact's manifest and digest all its files."""
        return self._inspect(folder, _sound_manifest)

    def import_record(self, path: Path) -> Finding[ImportRecord]:
        """Check an import record."""
        return self._inspect(path, ImportRecord.load)

    def _inspect(self, path: Path, load: Callable[[Path], _Content]) -> Finding[_Content]:
        identity = Identity.at(path)
        if identity is None:
            return Finding()
        try:
            return Finding(content=load(path))
        except DataLoss as error:
            problem = error.message
        except OSError as error:
            if error.errno not in integrity.DAMAGE:
                raise FailedPrecondition(f"{path} cannot be read, though it may be sound: {error}") from error
            problem = f"cannot be read: {error}"
        moved = self.quarantine.set_aside(path, identity=identity, reason=problem)
        if not moved and Identity.at(path) != identity:
            return Finding()  # evicted, or set aside by another process, while we looked
        self.on_corrupt()
        return Finding(problem=problem)


def _sound_manifest(folder: Path) -> Manifest:
    try:
        # Shared, like a lease: an eviction in the middle would look like missing files.
        lock = FileLock.shared(folder / MANIFEST_FILE)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise DataLoss(f"half-written: there is no {MANIFEST_FILE}") from error
        raise
    with lock:
        manifest = integrity.load_manifest(folder)
        integrity.check_files(folder, manifest)
    return manifest
