import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serveprune.artifacts.file_lock import FileLock

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StagingArea:
    """Folders that are being written or removed; each has a lock file beside it that its process holds.

    Not the process id but the lock tells whether the writer lives: ids repeat, and differ between containers
    that share a volume.
    """

    folder: Path

    @contextmanager
    def claim(self) -> Iterator[Path]:
        """Give a path that does not exist yet and is this thread's own; removed at the end if it is there."""
        path = self.folder / uuid.uuid4().hex
        # The lock comes before the folder, so no collector ever sees a folder without it.
        lock = FileLock.exclusive(self._lock_of(path))
        try:
            yield path
        finally:
            _remove(path)
            lock.discard()

    def swallow(self, path: Path) -> None:
        """Remove a folder so that others see all of it or nothing.

        Raises:
            OSError: It cannot be renamed; then it is still whole.
        """
        with self.claim() as grave:
            path.rename(grave)

    def collect(self) -> list[Path]:
        """Remove what processes that died left behind, and return it."""
        removed = []
        for name in sorted({entry.name.removesuffix(".lock") for entry in _entries(self.folder)}):
            path = self.folder / name
            try:
                lock = FileLock.try_exclusive(self._lock_of(path))
            except FileNotFoundError:
                # Its owner finished just now, or once and could not remove all of it.
                lock = None
            else:
                if lock is None:
                    continue
            if os.path.lexists(path):
                _remove(path)
                removed.append(path)
            if lock is not None:
                lock.discard()
        return removed

    def _lock_of(self, path: Path) -> Path:
        return path.with_name(f"{path.name}.lock")


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    if os.path.lexists(path):
        _log.warning("%s could not be removed completely; the next collection tries again", path)
