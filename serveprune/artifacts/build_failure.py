from pydantic import BaseModel, ConfigDict

from serveprune.artifacts.builder import BuildResult
from serveprune.config.server import BuildsConfig


class BuildFailure(BaseModel):
    """What who builds leaves for those who wait, if the build fails; it counts for those alone with the same limits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    builds: BuildsConfig
    result: BuildResult
