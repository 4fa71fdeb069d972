import logging
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serveprune.artifacts.file_lock import FileLock
from serveprune.artifacts.layout import StoreLayout

_log = logging.getLogger(__name__)

REASON_FILE = "reason.txt"


@dataclass(frozen=True, slots=True)
class Identity:
    """Tells one file or folder from another that later has the same path."""

    inode: int
    changed_ns: int

    @classmethod
    def at(cls, path: Path) -> "Identity | None":
        """Identify what is at a path; ``None`` if nothing is."""
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return cls(found.st_ino, found.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Where corrupt things go: out of reach of every reader, kept for whoever asks why."""

    layout: StoreLayout
    clock: Callable[[], float] = time.time

    def set_aside(self, path: Path, *, identity: Identity, reason: str) -> bool:
        """Move what was found corrupt to quarantine and say why in the log and beside it.

        Args:
            path: A folder or file of the store.
            identity: Of what was judged: by now another process may have moved it and put a sound one there.
            reason: What is wrong with it.

        Returns:
            Whether this call moved it. If the store cannot be written to, that is logged.
        """
        destination = self.layout.quarantine / f"{path.name}.{uuid.uuid4().hex[:8]}"
        try:
            with FileLock.exclusive(self.layout.removal_lock):
                if Identity.at(path) != identity:
                    return False
                self.layout.quarantine.mkdir(parents=True, exist_ok=True)
                if path.is_dir() and not path.is_symlink():
                    path.rename(destination)
                else:
                    destination.mkdir()
                    path.rename(destination / path.name)
        except OSError as error:
            _log.error("%s is corrupt (%s), is not used, and could not be set aside: %s", path, reason, error)
            return False
        _log.error("%s is corrupt (%s); set aside in %s", path, reason, destination)
        self._write_reason(destination, f"{path.relative_to(self.layout.root)}: {reason}\n")
        return True

    def _write_reason(self, destination: Path, reason: str) -> None:
        try:
            (destination / REASON_FILE).write_text(reason, encoding="utf-8")
            now = self.clock()
            os.utime(destination / REASON_FILE, (now, now))  # its age counts from here
        except OSError as error:
            _log.warning("the reason could not be written to %s: %s", destination, error)
