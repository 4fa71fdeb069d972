from pydantic import Field

from serveprune.config.base import ConfigModel
from serveprune.config.deployment import DeploymentConfig
from serveprune.config.model import ModelConfig
from serveprune.config.profile import ProfileConfig
from serveprune.config.server import BuildsConfig, ServerConfig, StoreConfig


class ServePruneConfig(ConfigModel):
    """The whole of `serveprune.yaml`."""

    store: StoreConfig = StoreConfig()
    server: ServerConfig = Field(default_factory=ServerConfig)
    builds: BuildsConfig = BuildsConfig()
    profiles: dict[str, ProfileConfig] = Field(default_factory=dict)
    models: dict[str, ModelConfig] = Field(min_length=1)
    deployments: dict[str, DeploymentConfig] = Field(default_factory=dict)

    def deployment(self, model: str) -> DeploymentConfig:
        """Return the model's deployment, or the default one."""
        return self.deployments.get(model, DeploymentConfig())

    def profile(self, tier: str) -> ProfileConfig | None:
        """Return the profile behind a tier; ``None`` for dense."""
        return self.profiles.get(tier)
