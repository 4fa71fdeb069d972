"""What nobody asks for any more on the shared side of a store."""

import json
import logging
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from serveprune.artifacts.key import source_recipe, tier_recipe
from serveprune.artifacts.manifest import Manifest
from serveprune.artifacts.remote import RemoteArtifacts
from serveprune.config.model import ArtifactSource, ModelConfig
from serveprune.config.profile import ProfileConfig
from serveprune.errors import DataLoss

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """A model that somebody serves, and the profiles of its tiers.

    Attributes:
        threads: Threads of one batch in serving, which is part of what a tier is found by.
    """

    model: ModelConfig
    profiles: tuple[ProfileConfig, ...]
    threads: int


@dataclass(frozen=True, slots=True)
class Garbage:
    """One thing to remove.

    Attributes:
        kind: ``artifact``, which nobody asks for; ``leftover``, of one that has no sound manifest; ``record``, of one
            that is not there; ``lease``, which nobody renews.
        name: Key of the artifact or of what is left of one; else the object's, below the store's URL.
        written: By the clock of the storage.
        manifest: Of an artifact.
    """

    kind: Literal["artifact", "leftover", "record", "lease"]
    name: str
    written: datetime
    manifest: Manifest | None = None

    @property
    def bytes(self) -> int:
        """Size of the artifact's files; what is left of one that has no manifest is not known."""
        return 0 if self.manifest is None else sum(record.bytes for record in self.manifest.files.values())


class SharedGarbage:
    """Finds what nobody asks for on the shared side, and removes it. Reads every manifest, and no other file."""

    def __init__(self, remote: RemoteArtifacts, *, unasked_before: datetime, dead_before: datetime) -> None:
        """Describe what counts as old; nothing is read yet.

        Args:
            remote: The shared side.
            unasked_before: Artifacts that nobody asks for are spared if they were written since.
            dead_before: What has no manifest is being published if it was written since, and a lease held.
        """
        self._remote = remote
        self._storage = remote.storage
        self._unasked_before = unasked_before
        self._dead_before = dead_before

    def find(self, asked: Iterable[Asked]) -> list[Garbage]:
        """Return what may go, artifacts first.

        An artifact is asked for if a model or a tier is found by it, in whatever environment it was made; or if a tier
        that stays was made from it.

        Raises:
            NotFound, FailedPrecondition: A file that a model is made from cannot be read; or see `ObjectStorage.read`.
            Unavailable: See `ObjectStorage.read`.
        """
        found = {key: self._manifest(key) for key in self._remote.all_keys()}
        manifests = {key: manifest for key, manifest in found.items() if manifest is not None}
        records = dict(self._import_records())
        unasked = self._unasked(manifests, records, asked)
        return [
            *unasked,
            *self._leftovers(found.keys() - manifests.keys()),
            *self._orphaned_records(manifests.keys() - {one.name for one in unasked}, records),
            *self._leases(),
        ]

    def remove(self, garbage: Garbage) -> None:
        """Remove one thing; an artifact's manifest goes first, so that nobody finds it half.

        Raises:
            Unavailable, FailedPrecondition: See `ObjectStorage.read`.
        """
        if garbage.kind in ("artifact", "leftover"):
            self._remote.remove(garbage.name)
        else:
            self._storage.remove(garbage.name)

    def _manifest(self, key: str) -> Manifest | None:
        try:
            return self._remote.manifest(key)
        except DataLoss as error:
            _log.warning("shared artifact %s is corrupt: %s", key, error.message)
            return None

    def _import_records(self) -> Iterator[tuple[str, str]]:
        """Yield the objects of import records, and the key that each names."""
        for recipe in self._storage.list("imports"):
            for file in self._storage.list(f"imports/{recipe}"):
                name = f"imports/{recipe}/{file}"
                yield name, _key_in(self._storage.read(name))

    def _unasked(
        self, manifests: Mapping[str, Manifest], records: Mapping[str, str], asked: Iterable[Asked]
    ) -> list[Garbage]:
        dense: set[str] = set()
        recipes: set[str] = set()
        for one in asked:
            own = _dense_keys(one.model, records)
            dense |= own
            recipes |= {
                tier_recipe(key, one.model, profile, threads=one.threads) for key in own for profile in one.profiles
            }
        old = {
            key: written
            for key, manifest in manifests.items()
            if key not in dense and manifest.recipe not in recipes
            and (written := self._storage.modified(f"artifacts/{key}/manifest")) is not None
            and written < self._unasked_before
        }  # fmt: skip
        bases = {manifest.dense_key for key, manifest in manifests.items() if key not in old}
        return [Garbage("artifact", key, old[key], manifests[key]) for key in sorted(old.keys() - bases)]

    def _leftovers(self, keys: Iterable[str]) -> Iterator[Garbage]:
        for key in sorted(keys):
            names = ["manifest", *(f"files/{name}" for name in self._storage.list(f"artifacts/{key}/files"))]
            times = [self._storage.modified(f"artifacts/{key}/{name}") for name in names]
            written = max((one for one in times if one is not None), default=None)
            if written is not None and written < self._dead_before:
                yield Garbage("leftover", key, written)

    def _orphaned_records(self, staying: Container[str], imports: Mapping[str, str]) -> Iterator[Garbage]:
        tiers = {f"recipes/{recipe}/{key}": key for recipe in self._storage.list("recipes") for key in self._of(recipe)}
        for name, key in (tiers | dict(imports)).items():
            if key not in staying:
                yield from self._if_dead("record", name)

    def _of(self, recipe: str) -> list[str]:
        return self._storage.list(f"recipes/{recipe}")

    def _leases(self) -> Iterator[Garbage]:
        for flight in self._storage.list("flights"):
            for number in self._storage.list(f"flights/{flight}"):
                yield from self._if_dead("lease", f"flights/{flight}/{number}")

    def _if_dead(self, kind: Literal["record", "lease"], name: str) -> Iterator[Garbage]:
        written = self._storage.modified(name)
        if written is not None and written < self._dead_before:
            yield Garbage(kind, name, written)


def _dense_keys(model: ModelConfig, records: Mapping[str, str]) -> set[str]:
    if isinstance(model.source, ArtifactSource):
        return {model.source.artifact}
    folder = f"imports/{source_recipe(model)}/"
    return {key for name, key in records.items() if name.startswith(folder)}


def _key_in(content: bytes | None) -> str:
    """Return the key that an import record names, or nothing."""
    try:
        return str(json.loads(content or b"{}")["key"])
    except (ValueError, KeyError, TypeError):
        return ""
