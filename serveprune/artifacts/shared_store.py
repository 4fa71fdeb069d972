import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from serveprune.artifacts import integrity
from serveprune.artifacts.durability import write_file
from serveprune.artifacts.environment import environment
from serveprune.artifacts.import_records import ImportRecord, record_file_name
from serveprune.artifacts.key import manifest_key
from serveprune.artifacts.manifest import Manifest
from serveprune.artifacts.remote import RemoteArtifacts
from serveprune.artifacts.store import Artifact, ArtifactStore, StoreEvent, first_of_kind, ignore, newest_first
from serveprune.errors import DataLoss, FailedPrecondition, NotFound, ResourceExhausted, ServePruneError, Unavailable

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_UNPUBLISHED = "unpublished"
_PUBLISHING = "publish"


class SharedArtifactStore(ArtifactStore):
    """A store on this machine in front of one that machines share.

    What is not here is fetched when it is asked for, and checked like anything else. What is stored here is noted as
    unpublished, until `publish` has put it there. While the shared side cannot be reached it is as if it were empty.
    """

    def __init__(
        self,
        root: Path,
        remote: RemoteArtifacts,
        *,
        max_bytes: int,
        on_event: Callable[[StoreEvent], None] = ignore,
    ) -> None:
        """Describe both sides; nothing is read or written yet.

        Args:
            root: Folder on this machine.
            remote: The shared side.
            max_bytes: Bound on the folder on this machine.
            on_event: See `ArtifactStore`.
        """
        super().__init__(root, max_bytes=max_bytes, on_event=on_event)
        self.remote = remote
        self._unpublished = self.root / _UNPUBLISHED

    def commit(self, staging: Path, manifest: Manifest) -> Artifact:
        """See `ArtifactStore.commit`; `publish` puts it on the shared side."""
        # First, for a process that is killed in between must not leave what nobody publishes.
        self._note_unpublished(manifest.key)
        return super().commit(staging, manifest)

    def record_import(self, recipe: str, key: str) -> None:
        """See `ArtifactStore.record_import`."""
        self._note_unpublished(f"{recipe}.{record_file_name(environment())}")
        super().record_import(recipe, key)

    def publish(self) -> bool:
        """Put what was stored here on the shared side, and tell whether nothing is left to be put.

        What fails is logged and counted, and tried again by the next call, in whatever process.
        """
        if not self.has_unpublished():
            return True
        # Not to upload twice. Whoever waits here may rely on it as well: what the other one published is there.
        with self.single_flight(_PUBLISHING):
            # A record names an artifact, which comes first.
            self._publish_each(sorted(self._marks(), key=_is_of_import))
        return not self.has_unpublished()

    def has_unpublished(self) -> bool:
        """Tell whether something that was stored here is not on the shared side yet."""
        return bool(self._marks())

    def note_all_unpublished(self) -> None:
        """Have `publish` look at everything that is here, such as what was stored before the store was shared."""
        for entry in self.entries():
            self._note_unpublished(entry.key)
        for path in self._layout.imports.glob("*/*.json"):
            self._note_unpublished(f"{path.parent.name}.{path.name}")

    def _look_up(self, key: str) -> Artifact | None:
        return super()._look_up(key) or self._fetched(key)

    def _look_up_dense(self, recipe: str, *, any_environment: bool) -> Artifact | None:
        # What is here serves, whatever is wrong with the shared side.
        found = super()._look_up_dense(recipe, any_environment=any_environment)
        if found is None:
            self._reached(lambda: self._fetch_imports(recipe, any_environment=any_environment))
            records = self._import_records(recipe, any_environment=any_environment)
            found = first_of_kind((self._fetched(record.key) for record in records), kind="dense")
        return found

    def _look_up_tier(self, recipe: str, own: str, *, any_environment: bool) -> Artifact | None:
        found = super()._look_up_tier(recipe, own, any_environment=any_environment) or self._fetched(own)
        if found is None and any_environment:
            there = self._reached(lambda: list(self.remote.tiers_of(recipe))) or []
            found = first_of_kind(map(self._fetched, newest_first(there)), kind="tier")
        return found

    def _reached(self, ask: Callable[[], _T]) -> _T | None:
        """Return what the shared side says, or ``None`` while it cannot be reached."""
        try:
            return ask()
        except Unavailable as error:
            self._on_event(StoreEvent.UNREACHABLE)
            _log.error("%s", error.message)
            return None

    def _fetched(self, key: str) -> Artifact | None:
        """Return an artifact of the shared side, which is here then; ``None`` if there is no sound one."""
        return self._sound(key) if self._reached(lambda: self._fetch(key)) else None

    def _fetch(self, key: str) -> bool:
        """Bring an artifact here, and tell whether there was a sound one."""
        self._layout.artifact(key)  # so that no name but a key's reaches the shared side
        manifest = None
        try:
            manifest = self.remote.manifest(key)
            if manifest is None:
                return False
            if manifest_key(manifest) != key:
                raise DataLoss("the key does not fit the manifest")
            # Several processes of one machine fetch once.
            with self.single_flight(f"fetch-{key}"):
                if self._sound(key) is not None:
                    return True
                with self.staging() as folder:
                    self.remote.fetch(manifest, folder)
                    super().commit(folder, manifest)
        except DataLoss as error:
            if self._still_says(key, manifest):
                self._withdraw(key, error.message)
            return False
        self._on_event(StoreEvent.FETCHED)
        _log.info("fetched artifact %s from %s", key, self.remote.storage.url)
        return True

    def _still_says(self, key: str, manifest: Manifest | None) -> bool:
        """Tell whether the shared side still has what turned out corrupt.

        It may have been removed while it was read, or published anew.

        Args:
            key: Of the artifact.
            manifest: What was read; ``None`` if it was the manifest that was corrupt.
        """
        try:
            now = self.remote.manifest(key)
        except DataLoss:
            return manifest is None
        return now is not None and now == manifest

    def _withdraw(self, key: str, problem: str) -> None:
        """Take a corrupt artifact off the shared side, so that it can be built anew."""
        self._on_event(StoreEvent.SHARED_CORRUPT)
        _log.error("artifact %s in %s is corrupt (%s) and is not used", key, self.remote.storage.url, problem)
        try:
            self.remote.withdraw(key)
        except FailedPrecondition as error:
            _log.error("it could not be withdrawn, so nothing can take its place there: %s", error.message)

    def _fetch_imports(self, recipe: str, *, any_environment: bool) -> None:
        """Bring the records here that say what importing this source gave."""
        folder, own = self._layout.import_records(recipe), record_file_name(environment())
        there = self.remote.storage.list(f"imports/{recipe}") if any_environment else [own]
        for name in there:
            if name.endswith(".json") and not (folder / name).exists():
                self._fetch_import(recipe, name)

    def _fetch_import(self, recipe: str, name: str) -> None:
        content = self.remote.storage.read(f"imports/{recipe}/{name}")
        if content is None:
            return
        target = self._layout.import_records(recipe) / name
        try:
            with self.staging() as folder:
                # Records are checked against the names of their file and its folder.
                draft = folder / recipe / name
                draft.parent.mkdir()
                write_file(draft, content)
                ImportRecord.load(draft)
                target.parent.mkdir(parents=True, exist_ok=True)
                draft.rename(target)
        except DataLoss as error:
            self._on_event(StoreEvent.SHARED_CORRUPT)
            _log.error("%s/imports/%s/%s is not used: %s", self.remote.storage.url, recipe, name, error.message)

    def _publish_each(self, marks: Iterable[Path]) -> None:
        """Publish what is marked, whatever becomes of the others."""
        for mark in marks:
            try:
                self._publish_one(mark)
            except (ServePruneError, OSError) as error:
                self._on_event(StoreEvent.PUBLISH_FAILED)
                _log.error("nothing is lost, and it is tried again: %s could not be published: %s", mark.name, error)
                if isinstance(error, Unavailable):
                    return  # each of the others would wait as long

    def _publish_one(self, mark: Path) -> None:
        is_done = self._publish_import(mark) if _is_of_import(mark) else self._publish_artifact(mark.name)
        if is_done:
            mark.unlink(missing_ok=True)

    def _publish_import(self, mark: Path) -> bool:
        recipe, _, name = mark.name.partition(".")
        path = self._layout.import_records(recipe) / name
        try:
            if (self._unpublished / ImportRecord.load(path).key).exists():
                return False
            self.remote.storage.write(f"imports/{recipe}/{name}", path.read_bytes())
        except (DataLoss, FileNotFoundError) as error:
            _log.warning("import record %s is not published: %s", mark.name, error)
        return True

    def _publish_artifact(self, key: str) -> bool:
        try:
            with self.lease(key):
                folder = self._layout.artifact(key)
                manifest = integrity.load_manifest(folder)
                if self._is_there(key):
                    return True
                integrity.check_files(folder, manifest)
                if self.remote.publish(folder, manifest):
                    self._on_event(StoreEvent.PUBLISHED)
                    _log.info("published artifact %s to %s", key, self.remote.storage.url)
        except NotFound:
            _log.warning("artifact %s was never published: it is no longer here", key)
        except DataLoss as error:
            _log.error("artifact %s is not published: %s", key, error.message)
        return True

    def _is_there(self, key: str) -> bool:
        try:
            return self.remote.manifest(key) is not None
        except DataLoss as error:
            self._withdraw(key, error.message)
            return False

    def _marks(self) -> list[Path]:
        return list(self._unpublished.iterdir()) if self._unpublished.is_dir() else []

    def _note_unpublished(self, name: str) -> None:
        try:
            self._unpublished.mkdir(parents=True, exist_ok=True)
            (self._unpublished / name).touch()
        except OSError as error:
            raise ResourceExhausted(f"{self._unpublished} cannot be written: {error.strerror}") from error


def _is_of_import(mark: Path) -> bool:
    return "." in mark.name
