from dataclasses import replace
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from serveprune.artifacts.builder import BuildResult
from serveprune.config.server import BuildsConfig


class BuildFailure(BaseModel):
    """What who builds leaves for those who wait, if the build fails; it counts for those alone with the same limits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    builds: BuildsConfig
    result: BuildResult

    @classmethod
    def read(cls, content: str | bytes) -> Self | None:
        """Return what was left, or ``None`` if that was nothing, or by another version."""
        try:
            return cls.model_validate_json(content)
        except ValidationError:
            return None

    def for_limits(self, builds: BuildsConfig) -> BuildResult | None:
        """Return how the build ended, for one who set these limits; ``None`` if others were set."""
        return replace(self.result, is_anothers=True) if self.builds == builds else None
