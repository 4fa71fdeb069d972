import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from serveprune.artifacts.durability import size_on_disk_bytes
from serveprune.artifacts.eviction import Evictable, evict
from serveprune.artifacts.file_lock import FileLock
from serveprune.artifacts.import_records import ImportRecord
from serveprune.artifacts.layout import FAILURE_LOG_FILE, StoreLayout
from serveprune.artifacts.manifest import MANIFEST_FILE
from serveprune.artifacts.quarantine import REASON_FILE
from serveprune.artifacts.single_flight import remove_idle_locks
from serveprune.artifacts.staging import StagingArea
from serveprune.errors import DataLoss

_log = logging.getLogger(__name__)

QUARANTINE_SECONDS = 7 * 86_400.0
"""How long what was set aside is kept, if the room is not needed."""

FAILURES_SECONDS = 30 * 86_400.0
"""How long the logs of failed builds are kept."""


@dataclass(frozen=True, slots=True)
class Housekeeping:
    """Removes what a store need not keep; any number of processes may do so at the same time.

    Attributes:
        on_evicted: Told of each artifact that was evicted.
    """

    layout: StoreLayout
    max_bytes: int
    on_evicted: Callable[[], None]
    clock: Callable[[], float] = time.time

    @property
    def staging(self) -> StagingArea:
        """What is being written or removed."""
        return StagingArea(self.layout.staging)

    def collect(self) -> list[Path]:
        """Remove everything that is too old, left over, or beyond the bound, and return it."""
        removed = self.staging.collect()
        removed += self._remove_aged(self.layout.quarantine, stamp=REASON_FILE, seconds=QUARANTINE_SECONDS)
        removed += self._remove_aged(self.layout.failures, stamp=FAILURE_LOG_FILE, seconds=FAILURES_SECONDS)
        removed += self.make_room()
        removed += self._remove_dead_imports()
        removed += remove_idle_locks(self.layout.locks)
        return removed

    def make_room(self) -> list[Path]:
        """Remove quarantine, oldest first, then artifacts, least recently used first, down to the bound.

        Leased artifacts stay, and with them the excess. Returns what was removed.
        """
        if self.size_bytes() <= self.max_bytes:
            return []
        try:
            # Two processes that evict at the same time would remove twice what is needed.
            with FileLock.exclusive(self.layout.removal_lock):
                return self._remove_excess()
        except OSError as error:
            _log.error("nothing could be evicted from %s: %s", self.layout.root, error)
            return []

    def size_bytes(self) -> int:
        """Return the bytes that ``max_bytes`` bounds: artifacts and quarantine."""
        return size_on_disk_bytes(self.layout.artifacts) + size_on_disk_bytes(self.layout.quarantine)

    def _remove_excess(self) -> list[Path]:
        removed: list[Path] = []
        # Nobody is served from quarantine, so it goes before anything that somebody may ask for.
        for folder, stamp, remove in (
            (self.layout.quarantine, REASON_FILE, self._remove),
            (self.layout.artifacts, MANIFEST_FILE, self._evict),
        ):
            excess_bytes = self.size_bytes() - self.max_bytes
            gone = evict(_evictable(folder, stamp=stamp), excess_bytes=excess_bytes, remove=remove)
            removed += [folder / one.key for one in gone]
        left_bytes = self.size_bytes()
        if left_bytes > self.max_bytes:
            _log.warning(
                "the store %s holds %d bytes, %d are allowed, and all that is left is in use or just stored",
                self.layout.root, left_bytes, self.max_bytes,
            )  # fmt: skip
        return removed

    def _evict(self, candidate: Evictable) -> bool:
        folder = self.layout.artifacts / candidate.key
        try:
            lock = FileLock.try_exclusive(folder / MANIFEST_FILE)
            if lock is None:
                return False  # leased, or just being read
            with lock:
                self.staging.swallow(folder)
        except FileNotFoundError:
            return False  # evicted by another process, or half-written and none of our business
        except OSError as error:
            _log.warning("artifact %s could not be evicted: %s", candidate.key, error)
            return False
        _log.info("evicted artifact %s (%d bytes), the least recently used", candidate.key, candidate.bytes)
        self.on_evicted()
        return True

    def _remove(self, candidate: Evictable) -> bool:
        return self._swallowed(self.layout.quarantine / candidate.key)

    def _swallowed(self, path: Path) -> bool:
        try:
            self.staging.swallow(path)
        except FileNotFoundError:
            return False  # another process was faster
        except OSError as error:
            _log.warning("%s could not be removed: %s", path, error)
            return False
        return True

    def _remove_aged(self, folder: Path, *, stamp: str, seconds: float) -> list[Path]:
        oldest_ns = int((self.clock() - seconds) * 1e9)
        aged = [folder / one.key for one in _evictable(folder, stamp=stamp) if one.last_used <= oldest_ns]
        return [path for path in aged if self._swallowed(path)]

    def _remove_dead_imports(self) -> list[Path]:
        removed = []
        for path in sorted(self.layout.imports.glob("*/*.json")):
            try:
                record = ImportRecord.load(path)
            except (DataLoss, FileNotFoundError):
                continue  # what is corrupt is set aside, with a reason, by whoever asks for it or verifies
            if not self.layout.artifact(record.key).exists():
                path.unlink(missing_ok=True)
                removed.append(path)
        return removed


def _evictable(folder: Path, *, stamp: str) -> Iterator[Evictable]:
    """List what is in a folder; the file ``stamp`` in each, or else its folder, tells when it was used."""
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        try:
            used = path / stamp if (path / stamp).exists() else path
            yield Evictable(path.name, bytes=size_on_disk_bytes(path), last_used=used.stat().st_mtime_ns)
        except FileNotFoundError:
            continue  # gone since it was listed
