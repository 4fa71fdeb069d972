import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from serveprune.artifacts.digest import sha256_json
from serveprune.errors import InvalidArgument

_DIGEST = re.compile(r"[0-9a-f]{64}")
FAILURE_LOG_FILE = "build.log"

_LONGEST_NAME = 200  # file systems end at 255 bytes, and suffixes are added


@dataclass(frozen=True, slots=True)
class StoreLayout:
    """Where things lie below a store's root.

    ::

        artifacts/<key>/                              one artifact, manifest.json among its files
        artifacts/<key>/mapped-<id>/                  its graph as this machine's processes map it; made anew if lost
        imports/<recipe>/<environment digest>.json    which dense artifact importing a source gave
        quarantine/<key>.<id>/                        what was set aside, with reason.txt
        failures/<name>/build.log                     output of a build that failed
        pass-cache/<digest>.<ending>                  what passes of several builds share
        locks/<name>.lock                             single flights; locks/removal guards renames out of artifacts/
        tmp/<id>/, tmp/<id>.lock                      what is being written, and the proof that its writer lives
    """

    root: Path

    @property
    def artifacts(self) -> Path:
        """Folder of all artifacts."""
        return self.root / "artifacts"

    @property
    def imports(self) -> Path:
        """Folder of all import records."""
        return self.root / "imports"

    @property
    def quarantine(self) -> Path:
        """Folder of what was set aside."""
        return self.root / "quarantine"

    @property
    def failures(self) -> Path:
        """Folder of failed builds' logs."""
        return self.root / "failures"

    @property
    def pass_cache(self) -> Path:
        """Folder of what passes of several builds share; anything in it can be made anew."""
        return self.root / "pass-cache"

    @property
    def locks(self) -> Path:
        """Folder of lock files."""
        return self.root / "locks"

    @property
    def staging(self) -> Path:
        """Folder of what is being written."""
        return self.root / "tmp"

    @property
    def removal_lock(self) -> Path:
        """Held while something is renamed out of `artifacts`. No single flight's file has this name."""
        return self.locks / "removal"

    def artifact(self, key: str) -> Path:
        """Folder of one artifact.

        Raises:
            InvalidArgument: ``key`` is no SHA-256.
        """
        return self.artifacts / _checked_digest(key)

    def import_records(self, recipe: str) -> Path:
        """Folder of the import records of one source recipe.

        Raises:
            InvalidArgument: ``recipe`` is no SHA-256.
        """
        return self.imports / _checked_digest(recipe)

    def lock(self, name: str) -> Path:
        """Lock file of a single flight."""
        return self.locks / f"{_file_name(name)}.lock"

    def failure_log(self, name: str) -> Path:
        """Log of the last failed build of that name."""
        return self.failures / _file_name(name) / FAILURE_LOG_FILE


def _checked_digest(value: str) -> str:
    if not _DIGEST.fullmatch(value):
        raise InvalidArgument(f"expected a SHA-256 as 64 lower-case hexadecimal digits, got {value!r}")
    return value


def _file_name(name: str) -> str:
    quoted = quote(name, safe="@")
    if quoted in ("", ".", "..") or len(quoted) > _LONGEST_NAME:
        return sha256_json(name)
    return quoted
