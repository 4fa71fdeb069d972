from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from serveprune.artifacts.digest import sha256_json
from serveprune.errors import DataLoss


class ImportRecord(BaseModel):
    """Which dense artifact importing a source gave, in one environment.

    Dense graphs are stored by content, which is known only after importing; this saves importing again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    recipe: str
    key: str
    environment: Mapping[str, str]
    created: str
    sha256: str

    @classmethod
    def make(cls, *, recipe: str, key: str, environment: Mapping[str, str], created: str) -> "ImportRecord":
        """Make a record that guards its own content."""
        unsigned = cls(recipe=recipe, key=key, environment=environment, created=created, sha256="")
        return unsigned.model_copy(update={"sha256": unsigned.content_digest()})

    @classmethod
    def load(cls, path: Path) -> "ImportRecord":
        """Read the record at ``imports/<recipe>/<environment digest>.json``.

        Raises:
            DataLoss: It is altered, of an unknown schema, or not in its place.
            OSError: It is missing or cannot be read.
        """
        try:
            record = cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise DataLoss(f"no import record of schema 1: {error}") from error
        if record.sha256 != record.content_digest():
            raise DataLoss("the import record is not what was written")
        if (record.recipe, record.file_name) != (path.parent.name, path.name):
            raise DataLoss("the import record belongs to another recipe or environment")
        return record

    @property
    def file_name(self) -> str:
        """Name of the record's file in the folder of its recipe."""
        return record_file_name(self.environment)

    def content_digest(self) -> str:
        """Digest of everything but the digest."""
        return sha256_json(self.model_dump(mode="json", exclude={"sha256"}))


def record_file_name(environment: Mapping[str, str]) -> str:
    """Return the name of the file that records an import made in an environment."""
    return f"{sha256_json(dict(environment))}.json"
