"""How artifacts lie in a storage that machines share, and how they are put there and fetched."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from serveprune.artifacts.integrity import encode_manifest, encode_manifest_digest
from serveprune.artifacts.manifest import Manifest
from serveprune.artifacts.object_storage import ObjectStorage
from serveprune.errors import DataLoss

_log = logging.getLogger(__name__)

_ATTEMPTS = 2
"""Bytes may be damaged on their way, too."""


@dataclass(frozen=True, slots=True)
class RemoteArtifacts:
    """The shared side of a store.

    ::

        artifacts/<key>/files/<sha256>                one file of an artifact, named by its content
        artifacts/<key>/manifest                      a line with its own SHA-256, then the manifest; written last, once
        recipes/<recipe>/<key>                        empty: tiers by what was asked for, whatever the environment
        imports/<recipe>/<environment digest>.json    which dense artifact importing a source gave
        flights/<name>/<number>                       who builds (see `SharedFlight`)

    Two machines that publish one key at a time never mix their files, because files are named by content and only one
    manifest is taken.
    """

    storage: ObjectStorage

    def publish(self, folder: Path, manifest: Manifest) -> bool:
        """Put an artifact, its manifest last, and tell whether it was the first of its key.

        Raises:
            Unavailable, FailedPrecondition: See `ObjectStorage.read`; then nobody sees any of it.
        """
        content = encode_manifest(manifest)
        files = {record.sha256: folder / name for name, record in manifest.files.items()}
        for digest, file in files.items():
            self.storage.upload(file, _file_name(manifest.key, digest))
        if manifest.kind == "tier":
            self.storage.write(_recipe_name(manifest), b"")
        is_first = self.storage.create(_manifest_name(manifest.key), encode_manifest_digest(content) + content)
        if is_first:
            # Whoever tidied up may have taken one for a leftover before there was a manifest; see `SharedGarbage`.
            for digest in files.keys() - set(self.storage.list(f"artifacts/{manifest.key}/files")):
                self.storage.upload(files[digest], _file_name(manifest.key, digest))
        return is_first

    def manifest(self, key: str) -> Manifest | None:
        """Return the manifest of an artifact; ``None`` if there is no such artifact.

        Raises:
            DataLoss: It is not what was written.
            Unavailable, FailedPrecondition: See `ObjectStorage.read`.
        """
        stored = self.storage.read(_manifest_name(key))
        if stored is None:
            return None
        line, _, content = stored.partition(b"\n")
        if line + b"\n" != encode_manifest_digest(content):
            raise DataLoss("the manifest is not what was written")
        try:
            manifest = Manifest.model_validate_json(content)
        except ValidationError as error:
            raise DataLoss(f"no manifest of schema 1: {error}") from error
        if manifest.key != key:
            raise DataLoss(f"the manifest belongs to artifact {manifest.key}")
        return manifest

    def fetch(self, manifest: Manifest, folder: Path) -> None:
        """Write an artifact's files to a folder, each checked as it comes.

        Raises:
            DataLoss: A file is missing or not what was written.
            Unavailable, FailedPrecondition: See `ObjectStorage.read`.
        """
        for name, record in manifest.files.items():
            target = folder / name
            if not target.resolve().is_relative_to(folder.resolve()):
                raise DataLoss(f"the manifest names a file outside the artifact: {name!r}")
            target.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(_ATTEMPTS):
                digest = self.storage.download(_file_name(manifest.key, record.sha256), target)
                if digest == record.sha256:
                    break
            else:
                raise DataLoss(f"{name}: expected SHA-256 {record.sha256}, got {digest or 'nothing'}")

    def withdraw(self, key: str) -> None:
        """Remove an artifact's manifest, and so the artifact; its files wait for whoever publishes it anew.

        Raises:
            Unavailable, FailedPrecondition: See `ObjectStorage.read`.
        """
        self.storage.remove(_manifest_name(key))

    def remove(self, key: str) -> None:
        """Remove an artifact with all its files.

        Raises:
            Unavailable, FailedPrecondition: See `ObjectStorage.read`.
        """
        try:
            manifest = self.manifest(key)
        except DataLoss:
            manifest = None
        self.withdraw(key)
        if manifest is not None and manifest.kind == "tier":
            self.storage.remove(_recipe_name(manifest))
        for name in self.storage.list(f"artifacts/{key}/files"):
            self.storage.remove(_file_name(key, name))

    def all_keys(self) -> list[str]:
        """Return the keys of all artifacts, those that are being published included."""
        return self.storage.list("artifacts")

    def tiers_of(self, recipe: str) -> Iterator[Manifest]:
        """Yield the sound manifests of a recipe's tiers, whatever their environment."""
        for key in self.storage.list(f"recipes/{recipe}"):
            try:
                manifest = self.manifest(key)
            except DataLoss as error:
                _log.error("shared artifact %s is left out: %s", key, error.message)
                continue
            if manifest is not None:
                yield manifest


def _manifest_name(key: str) -> str:
    return f"artifacts/{key}/manifest"


def _file_name(key: str, digest: str) -> str:
    return f"artifacts/{key}/files/{digest}"


def _recipe_name(manifest: Manifest) -> str:
    return f"recipes/{manifest.recipe}/{manifest.key}"
