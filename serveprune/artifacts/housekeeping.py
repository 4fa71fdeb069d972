import logging
import time
from collections.abc import Callable, Iterator, Mapping
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

PASS_CACHE_SECONDS = 30 * 86_400.0
"""How long what passes share is kept before it is made anew; what killed builds left half written goes with it."""


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
        removed += self._remove_aged(self.layout.pass_cache, stamp="", seconds=PASS_CACHE_SECONDS)
        removed += self.make_room()
        removed += self._remove_dead_imports()
        removed += remove_idle_locks(self.layout.locks)
        return removed

    def make_room(self) -> list[Path]:
        """Remove quarantine, then artifacts and what passes share, each time the oldest first, down to the bound.

        An artifact is as old as its last use.

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
        """Return the bytes that ``max_bytes`` bounds: artifacts, quarantine, and what passes share."""
        return sum(map(size_on_disk_bytes, (self.layout.artifacts, self.layout.quarantine, self.layout.pass_cache)))

    def _remove_excess(self) -> list[Path]:
        layout = self.layout
        # Nobody is served from quarantine, so it goes before anything that somebody may ask for.
        removed = self._remove_oldest({layout.quarantine: (REASON_FILE, self._swallowed)})
        removed += self._remove_oldest(
            {layout.artifacts: (MANIFEST_FILE, self._evict), layout.pass_cache: ("", self._swallowed)}
        )
        left_bytes = self.size_bytes()
        if left_bytes > self.max_bytes:
            _log.warning(
                "the store %s holds %d bytes, %d are allowed, and all that is left is in use or just stored",
                self.layout.root, left_bytes, self.max_bytes,
            )  # fmt: skip
        return removed

    def _remove_oldest(self, folders: Mapping[Path, tuple[str, Callable[[Path], bool]]]) -> list[Path]:
        """Remove what lies in these folders down to the bound; each has a stamp (see `_evictable`) and a remover."""
        removers = {
            one: (folder / one.key, remove)
            for folder, (stamp, remove) in folders.items()
            for one in _evictable(folder, stamp=stamp)
        }

        def remove(candidate: Evictable) -> bool:
            path, remover = removers[candidate]
            return remover(path)

        gone = evict(removers, excess_bytes=self.size_bytes() - self.max_bytes, remove=remove)
        return [removers[one][0] for one in gone]

    def _evict(self, folder: Path) -> bool:
        freed_bytes = size_on_disk_bytes(folder)
        try:
            lock = FileLock.try_exclusive(folder / MANIFEST_FILE)
            if lock is None:
                return False  # leased, or just being read
            with lock:
                self.staging.swallow(folder)
        except FileNotFoundError:
            return False  # evicted by another process, or half-written and none of our business
        except OSError as error:
            _log.warning("artifact %s could not be evicted: %s", folder.name, error)
            return False
        _log.info("evicted artifact %s (%d bytes), the least recently used", folder.name, freed_bytes)
        self.on_evicted()
        return True

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
    """List what is in a folder; the file ``stamp`` in each, or else the thing itself, tells when it was used."""
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        try:
            used = path / stamp if (path / stamp).exists() else path
            yield Evictable(path.name, bytes=size_on_disk_bytes(path), last_used=used.stat().st_mtime_ns)
        except FileNotFoundError:
            continue  # gone since it was listed
