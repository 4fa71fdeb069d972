"""Whether the bytes in an artifact's folder are those that were written."""

import errno
import hashlib
import stat
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from serveprune.artifacts.digest import path_in, sha256_file
from serveprune.artifacts.manifest import COMPRESSED_GRAPH_FILE, GRAPH_FILE, MANIFEST_FILE, FileRecord, Manifest
from serveprune.errors import DataLoss, FailedPrecondition, Internal

MANIFEST_DIGEST_FILE = "manifest.json.sha256"
"""Guards the manifest as the manifest guards the files; `sha256sum --check` reads it."""

DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO)
"""Errors that mean the bytes are lost. Others (permissions, too many open files) say nothing about them."""


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the manifest as it is stored.

    Raises:
        Internal: It holds a value that would not come back from JSON.
    """
    try:
        content = manifest.model_dump_json(indent=2).encode()
        Manifest.model_validate_json(content)
    except (PydanticSerializationError, ValidationError) as error:
        raise Internal(
            f"the manifest of {manifest.kind} artifact {manifest.key} would not survive being written: {error}"
        ) from error
    return content + b"\n"


def encode_manifest_digest(manifest: bytes) -> bytes:
    """Return the content of the file that guards an encoded manifest."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST_FILE}\n".encode()


def load_manifest(folder: Path) -> Manifest:
    """Read the manifest of the artifact in a folder that is named by its key.

    Raises:
        DataLoss: It is missing, altered, of an unknown schema, or belongs to another artifact.
        FailedPrecondition: It cannot be read.
    """
    content = _read(folder / MANIFEST_FILE)
    if _read(folder / MANIFEST_DIGEST_FILE) != encode_manifest_digest(content):
        raise DataLoss(f"{MANIFEST_FILE} is not what was written: {MANIFEST_DIGEST_FILE} does not fit")
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise DataLoss(f"{MANIFEST_FILE} is no manifest of schema 1: {error}") from error
    if manifest.key != folder.name:
        raise DataLoss(f"{MANIFEST_FILE} belongs to artifact {manifest.key}")
    return manifest


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file of an artifact with its record; reads all of them once.

    Raises:
        DataLoss: A file is missing, no plain file, or not what was written.
        FailedPrecondition: A file cannot be read.
    """
    if not _has_graph(manifest.files):
        raise DataLoss(f"the manifest records no {GRAPH_FILE}")
    for name, record in manifest.files.items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DataLoss(f"the manifest names a file outside the artifact: {name!r}")
        try:
            found = (folder / name).lstat()
            if not stat.S_ISREG(found.st_mode):
                raise DataLoss(f"{name} is not a plain file")
            if found.st_size != record.bytes:
                raise DataLoss(f"{name} has {found.st_size} bytes, {record.bytes} were written")
            digest = sha256_file(folder / name)
        except OSError as error:
            raise _as_error(folder / name, error) from error
        if digest != record.sha256:
            raise DataLoss(f"{name} has SHA-256 {digest}, {record.sha256} was written")


def file_records(folder: Path) -> dict[str, FileRecord]:
    """Digest every file below a folder, except a manifest and its digest.

    Raises:
        Internal: There is something other than plain files and folders; an artifact has to stand alone.
    """
    records = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        name = path_in(folder, path)
        if stat.S_ISREG(mode):
            if name not in (MANIFEST_FILE, MANIFEST_DIGEST_FILE):
                records[name] = FileRecord(sha256=sha256_file(path), bytes=path.stat().st_size)
        elif not stat.S_ISDIR(mode):
            raise Internal(f"{path}: expected plain files and folders in an artifact, got a link or device")
    return records


def check_complete(folder: Path, manifest: Manifest) -> None:
    """Compare what is about to be committed with its manifest, by names and sizes.

    Raises:
        Internal: The builder recorded other files than it wrote.
    """
    expected = {name: record.bytes for name, record in manifest.files.items()}
    came = {
        path_in(folder, path): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path_in(folder, path) not in (MANIFEST_FILE, MANIFEST_DIGEST_FILE)
    }
    if expected != came:
        raise Internal(f"the manifest records files (bytes) {expected}, the folder holds {came}")
    if not _has_graph(expected):
        raise Internal(f"expected a {GRAPH_FILE} in every artifact, or a compressed one, got {sorted(expected)}")


def _has_graph(names: Collection[str]) -> bool:
    return (GRAPH_FILE in names) != (COMPRESSED_GRAPH_FILE in names)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _as_error(path, error) from error


def _as_error(path: Path, error: OSError) -> DataLoss | FailedPrecondition:
    if error.errno in DAMAGE:
        return DataLoss(f"{path.name} cannot be read: {error.strerror}")
    return FailedPrecondition(f"{path} cannot be read, though it may be sound: {error}")
