import errno
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from serveprune.artifacts import integrity
from serveprune.artifacts.durability import full_disk_reported, size_on_disk_bytes, sync_folder, sync_tree, write_file
from serveprune.artifacts.environment import environment
from serveprune.artifacts.file_lock import FileLock
from serveprune.artifacts.housekeeping import Housekeeping
from serveprune.artifacts.import_records import ImportRecord, record_file_name
from serveprune.artifacts.inspection import Finding, Inspection
from serveprune.artifacts.integrity import file_records as file_records  # what a builder needs for its manifest
from serveprune.artifacts.key import artifact_key, manifest_key
from serveprune.artifacts.layout import StoreLayout
from serveprune.artifacts.lease import Lease
from serveprune.artifacts.manifest import COMPRESSED_GRAPH_FILE, GRAPH_FILE, MANIFEST_FILE, Manifest
from serveprune.artifacts.quarantine import Quarantine
from serveprune.artifacts.single_flight import single_flight
from serveprune.artifacts.staging import StagingArea
from serveprune.errors import DataLoss, FailedPrecondition, Internal, NotFound, ResourceExhausted

_log = logging.getLogger(__name__)

_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
_PUBLISHING_ATTEMPTS = 3


class StoreEvent(StrEnum):
    """What happened in a store. Every lookup is a hit or a miss; the others come in addition."""

    HIT = "hit"
    MISS = "miss"
    CORRUPT = "corrupt"
    EVICTED = "evicted"
    STORED = "stored"
    FETCHED = "fetched"
    PUBLISHED = "published"
    PUBLISH_FAILED = "publish_failed"
    SHARED_CORRUPT = "shared_corrupt"
    UNREACHABLE = "unreachable"
    LEASE_WAITED = "lease_waited"
    LEASE_LOST = "lease_lost"


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a build left in the store."""

    folder: Path
    manifest: Manifest

    @property
    def key(self) -> str:
        """Name of the artifact, and of its folder."""
        return self.manifest.key

    @property
    def graph(self) -> Path:
        """The ONNX file; its external data, if any, is beside it.

        That of a tier may be compressed; see `artifacts.graph_file`.
        """
        compressed = COMPRESSED_GRAPH_FILE in self.manifest.files
        return self.folder / (COMPRESSED_GRAPH_FILE if compressed else GRAPH_FILE)


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What verifying one thing found; ``problem`` is ``None`` if it is sound.

    Attributes:
        path: Relative to the store's root.
    """

    path: str
    problem: str | None


def ignore(_: StoreEvent) -> None:
    """Take no note of an event."""


class ArtifactStore:
    """A folder of artifacts that any number of threads and processes use at the same time.

    An artifact appears whole, by one rename, or not at all; it is digested before it is handed out, and what
    does not fit its digests is set aside in quarantine, never served. Thread-safe: it holds no state but its
    arguments.
    """

    def __init__(
        self,
        root: Path,
        *,
        max_bytes: int,
        on_event: Callable[[StoreEvent], None] = ignore,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Describe a store; nothing is read or written yet.

        Args:
            root: Its folder, made when something is stored.
            max_bytes: Bound on artifacts, quarantine and what passes share, beyond which the least recently used go.
            on_event: Told of everything that happens through this object, in the thread it happens in.
            clock: Seconds since 1970; decides what was used last.
        """
        self.root = root.absolute()
        self.max_bytes = max_bytes
        self._on_event = on_event
        self._clock = clock
        self._layout = layout = StoreLayout(self.root)
        self._staging = StagingArea(layout.staging)
        self._inspection = Inspection(Quarantine(layout, clock=clock), on_corrupt=lambda: on_event(StoreEvent.CORRUPT))
        self._housekeeping = Housekeeping(
            layout, max_bytes=max_bytes, on_evicted=lambda: on_event(StoreEvent.EVICTED), clock=clock
        )

    def open(self, key: str) -> Artifact | None:
        """Return an artifact whose every byte is the one that was written, and mark it as used.

        Returns:
            ``None`` if there is none, or if it turned out corrupt and was set aside.

        Raises:
            FailedPrecondition: It is there and this process may not read it.
        """
        return self._counted(self._look_up(key))

    def find_dense(self, recipe: str, *, any_environment: bool = False) -> Artifact | None:
        """Return the dense artifact that importing this source gave in this environment.

        Args:
            recipe: See `key.source_recipe`.
            any_environment: Take the newest import made elsewhere if none was made here. An installation that
                only serves has no torch, so its environment never equals the builder's.
        """
        return self._counted(self._look_up_dense(recipe, any_environment=any_environment))

    def find_tier(
        self, recipe: str, *, any_environment: bool = False, extra_packages: Iterable[str] = ()
    ) -> Artifact | None:
        """Return the tier artifact of this recipe built in this environment.

        Args:
            recipe: See `key.tier_recipe`.
            any_environment: Take the newest one built elsewhere if none was built here.
            extra_packages: See `key.tier_packages`.
        """
        own = artifact_key(recipe, environment(extra_packages))
        return self._counted(self._look_up_tier(recipe, own, any_environment=any_environment))

    def entries(self) -> list[Artifact]:
        """Return all artifacts by their manifests alone: files are not digested, corrupt manifests left out."""
        found = []
        for folder in _children(self._layout.artifacts):
            try:
                found.append(Artifact(folder, integrity.load_manifest(folder)))
            except (DataLoss, FailedPrecondition) as error:
                _log.warning("artifact %s is left out: %s", folder.name, error)
        return found

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Give a fresh folder to write an artifact in; removed at the end unless committed.

        If the process dies meanwhile, the next one that stores something removes it.

        Raises:
            ResourceExhausted: The disk was full, or became full while the block wrote.
        """
        with self._full_disk_reported(self._layout.staging):
            self._staging.collect()
            with self._staging.claim() as folder, self._full_disk_reported(folder):
                folder.mkdir()
                yield folder

    def commit(self, staging: Path, manifest: Manifest) -> Artifact:
        """Make what was written to a staging folder an artifact, durably; then evict what exceeds the bound.

        If a sound artifact of this key exists already, that one is returned and nothing is stored.

        Raises:
            Internal: The manifest does not fit the folder, or its key does not fit the manifest.
            ResourceExhausted: The disk is full; the store is as it was.
        """
        if manifest.key != (expected := manifest_key(manifest)):
            raise Internal(f"expected the {manifest.kind} artifact's key to be {expected}, got {manifest.key}")
        integrity.check_complete(staging, manifest)
        content = integrity.encode_manifest(manifest)
        with self._full_disk_reported(staging):
            write_file(staging / integrity.MANIFEST_DIGEST_FILE, integrity.encode_manifest_digest(content))
            sync_tree(staging)
            write_file(staging / MANIFEST_FILE, content)
            sync_folder(staging)
            self._touch(staging)
            # The lock goes where the manifest goes, so no other process evicts what has only just appeared.
            with FileLock.shared(staging / MANIFEST_FILE):
                existing = self._publish(staging, manifest.key)
                if existing is not None:
                    return existing
                self._on_event(StoreEvent.STORED)
                self._housekeeping.make_room()
        return Artifact(self._layout.artifact(manifest.key), manifest)

    def attach(self, staging: Path, *, key: str, name: str) -> Path:
        """Put what was written to a staging folder into an artifact's own.

        It goes away with the artifact, which the caller leases. It is not of the artifact, so the manifest does not
        record it: whoever reads it has to know whether it is sound. One of that name that is there is replaced.

        Raises:
            ResourceExhausted: The disk is full, or the store would be: no artifact goes for what can be made anew
                any time. The store is as it was.
        """
        target = self._layout.artifact(key) / name
        with self._full_disk_reported(staging):
            if self.size_bytes() + size_on_disk_bytes(staging) > self.max_bytes:
                raise ResourceExhausted(
                    f"attaching {name} to artifact {key} would take the store beyond store.max_bytes "
                    f"({self.max_bytes}); raise it"
                )
            sync_tree(staging)
            if target.exists():
                self._staging.swallow(target)
            staging.rename(target)
            sync_folder(target.parent)
        return target

    def record_import(self, recipe: str, key: str) -> None:
        """Remember that importing this source, in this environment, gave the dense artifact ``key``.

        Raises:
            ResourceExhausted: The disk is full.
        """
        created = datetime.fromtimestamp(self._clock(), UTC).isoformat()
        record = ImportRecord.make(recipe=recipe, key=key, environment=environment(), created=created)
        target = self._layout.import_records(recipe) / record.file_name
        with self.staging() as folder:
            draft = folder / target.name
            write_file(draft, record.model_dump_json(indent=2).encode())
            target.parent.mkdir(parents=True, exist_ok=True)
            draft.rename(target)
            sync_folder(target.parent)
            sync_folder(self._layout.imports)

    def single_flight(self, name: str) -> AbstractContextManager[None]:
        """Let one thread of one process at a time do what ``name`` stands for; the others wait.

        Not re-entrant. Whoever enters should look first whether the one before left what is wanted.
        """
        return single_flight(self._layout.lock(name))

    def try_flight(self, name: str) -> FileLock | None:
        """Enter a single flight (see `single_flight`) if nobody is in it; do not wait.

        The lock's file is the holder's to write in, for whoever comes next.
        """
        return FileLock.try_exclusive(self._layout.lock(name), create=True)

    def lease(self, key: str) -> Lease:
        """Keep an artifact from being evicted, by any process, until the lease is released.

        Raises:
            NotFound: It is not in the store, perhaps evicted since it was found.
        """
        try:
            return Lease(key, FileLock.shared(self._layout.artifact(key) / MANIFEST_FILE))
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"artifact {key} is not in the store {self.root}; it has to be built again") from None

    def is_leased(self, key: str) -> bool:
        """Tell whether any process holds a lease on an artifact at this moment."""
        try:
            lock = FileLock.try_exclusive(self._layout.artifact(key) / MANIFEST_FILE)
        except FileNotFoundError:
            return False
        if lock is not None:
            lock.release()
        return lock is None

    def verify(self) -> list[VerifyResult]:
        """Digest everything in the store and set aside what is corrupt. Does not count as use."""
        return [
            *(self._verified(path, self._inspection.artifact) for path in _children(self._layout.artifacts)),
            *(
                self._verified(path, self._inspection.import_record)
                for path in sorted(self._layout.imports.glob("*/*.json"))
            ),
        ]

    def collect_garbage(self) -> list[str]:
        """Remove what dead processes left, old quarantine and failures, and what exceeds the bound.

        Returns:
            What was removed, relative to the store's root.
        """
        for folder in _children(self._layout.artifacts):
            if not (folder / MANIFEST_FILE).exists():
                self._inspection.artifact(folder)  # half-written: into quarantine, where it counts and ages
        return [str(path.relative_to(self.root)) for path in self._housekeeping.collect()]

    @property
    def pass_cache(self) -> Path:
        """Folder for what passes of several builds share, such as measurements; it may be emptied at any time."""
        return self._layout.pass_cache

    def failure_log(self, name: str) -> Path:
        """Return where to keep the output of a failed build; its folder exists."""
        path = self._layout.failure_log(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def size_bytes(self) -> int:
        """Return the bytes that ``max_bytes`` bounds: artifacts, quarantine, and what passes share."""
        return self._housekeeping.size_bytes()

    def publish(self) -> bool:
        """Put what was stored here where other machines find it; tell whether all is where it belongs."""
        return True

    def _look_up(self, key: str) -> Artifact | None:
        return self._sound(key)

    def _look_up_dense(self, recipe: str, *, any_environment: bool) -> Artifact | None:
        records = self._import_records(recipe, any_environment=any_environment)
        return first_of_kind((self._sound(record.key) for record in records), kind="dense")

    def _look_up_tier(self, recipe: str, own: str, *, any_environment: bool) -> Artifact | None:
        keys = [own]
        if any_environment:
            found = [one.manifest for one in self.entries()]
            keys += newest_first(one for one in found if one.recipe == recipe and one.key != own)
        return first_of_kind(map(self._sound, keys), kind="tier")

    def _sound(self, key: str) -> Artifact | None:
        folder = self._layout.artifact(key)
        manifest = self._inspection.artifact(folder).content
        if manifest is None:
            return None
        self._touch(folder)
        return Artifact(folder, manifest)

    def _counted(self, artifact: Artifact | None) -> Artifact | None:
        self._on_event(StoreEvent.MISS if artifact is None else StoreEvent.HIT)
        return artifact

    def _import_records(self, recipe: str, *, any_environment: bool) -> Iterator[ImportRecord]:
        folder = self._layout.import_records(recipe)
        own = folder / record_file_name(environment())
        record = self._inspection.import_record(own).content
        if record is not None:
            yield record
        if any_environment:
            others = [self._inspection.import_record(path).content for path in folder.glob("*.json") if path != own]
            known = [one for one in others if one is not None]
            yield from sorted(known, key=lambda one: one.created, reverse=True)

    def _publish(self, staging: Path, key: str) -> Artifact | None:
        """Rename the folder into place; return the artifact that is there instead, if it is sound."""
        target = self._layout.artifact(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(_PUBLISHING_ATTEMPTS):
            try:
                staging.rename(target)
            except OSError as error:
                if error.errno not in _OCCUPIED:
                    raise
                existing = self._sound(key)  # sets aside what is corrupt, and so makes place
                if existing is not None:
                    return existing
            else:
                sync_folder(target.parent)
                sync_folder(self.root)
                return None
        raise FailedPrecondition(f"{target} is in the way, corrupt, and could not be set aside; remove it")

    def _verified(self, path: Path, inspect: Callable[[Path], Finding[Any]]) -> VerifyResult:
        return VerifyResult(str(path.relative_to(self.root)), inspect(path).problem)

    def _touch(self, folder: Path) -> None:
        now_ns = int(self._clock() * 1e9)
        try:
            os.utime(folder / MANIFEST_FILE, ns=(now_ns, now_ns))
        except OSError as error:
            # In a read-only store nothing is evicted, so the order of use does not matter.
            _log.debug("the use of %s could not be noted: %s", folder.name, error)

    def _full_disk_reported(self, folder: Path) -> AbstractContextManager[None]:
        return full_disk_reported(self.root, folder=folder, doing="storing an artifact")


def first_of_kind(found: Iterable[Artifact | None], *, kind: str) -> Artifact | None:
    """Return the first that is there, and of this kind; no more of them are looked at."""
    return next((one for one in found if one is not None and one.manifest.kind == kind), None)


def newest_first(manifests: Iterable[Manifest]) -> list[str]:
    """Return the keys of artifacts, the most recently created first."""
    return [one.key for one in sorted(manifests, key=lambda one: one.created, reverse=True)]


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
