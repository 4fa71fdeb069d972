"""What lies in an artifact's folder without being of it: made from it for one machine, and to be made anew any time.

`ArtifactStore.attach` puts it there; the record inside says whether it is what was written.
"""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from serveprune.artifacts.digest import sha256_file
from serveprune.artifacts.durability import write_file
from serveprune.artifacts.manifest import FileRecord

_log = logging.getLogger(__name__)

_RECORD_FILE = "attachment.json"


class AttachmentRecord(BaseModel):
    """The files there are, or why there are none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: Mapping[str, FileRecord] = {}
    problem: str | None = None


def write_record(folder: Path, *, problem: str | None) -> AttachmentRecord:
    """Record what was written to a folder; with a problem nothing stays but the record."""
    files = sorted(folder.iterdir())
    if problem is not None:
        for file in files:
            file.unlink()
        files = []
    records = {file.name: FileRecord(sha256=sha256_file(file), bytes=file.stat().st_size) for file in files}
    record = AttachmentRecord(files=records, problem=problem)
    write_file(folder / _RECORD_FILE, record.model_dump_json().encode())
    return record


def sound_record(folder: Path, *, expected: Collection[str]) -> AttachmentRecord | None:
    """Return the record of an attachment whose every byte is the one that was written; else ``None``.

    Args:
        folder: Of the attachment.
        expected: Names of the files it has to consist of, unless its record names a problem.
    """
    try:
        record = AttachmentRecord.model_validate_json((folder / _RECORD_FILE).read_bytes())
        wanted = set() if record.problem is not None else set(expected)
        sound = wanted == set(record.files) and all(
            sha256_file(folder / name) == file.sha256 for name, file in record.files.items()
        )
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        _log.warning("%s/%s is made anew: %s", folder.parent.name, folder.name, error)
        return None
    if not sound:
        _log.warning("%s/%s is not what was written, and made anew", folder.parent.name, folder.name)
    return record if sound else None
