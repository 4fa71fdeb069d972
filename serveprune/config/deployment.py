from pydantic import Field

from serveprune.config.base import ConfigModel
from serveprune.config.model import DENSE


class DeploymentConfig(ConfigModel):
    """The policy by which traffic for one model is spread over its tiers."""

    default_tier: str = Field(default=DENSE, description="Serves requests that name no tier; one of the model's tiers.")
