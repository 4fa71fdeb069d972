from typing import Annotated

from pydantic import AfterValidator, Field

from serveprune.config.base import ConfigModel
from serveprune.config.deployment import DeploymentConfig
from serveprune.config.model import DENSE, ModelConfig, ModelEntry
from serveprune.config.names import Name
from serveprune.config.profile import ProfileConfig
from serveprune.config.repository import RepositoryConfig
from serveprune.config.server import BuildsConfig, ServerConfig, StoreConfig


def _not_dense(name: str) -> str:
    if name == DENSE:
        raise ValueError(f"expected another name: `{DENSE}` is the tier without any pass, which every model has")
    return name


ProfileName = Annotated[Name, AfterValidator(_not_dense)]


class ServePruneConfig(ConfigModel):
    """The whole of `serveprune.yaml`."""

    store: StoreConfig = Field(default=StoreConfig(), description="The artifact store.")
    server: ServerConfig = Field(default_factory=ServerConfig, description="The front ends and their limits.")
    builds: BuildsConfig = Field(default=BuildsConfig(), description="What builds may take from the machine.")
    profiles: dict[ProfileName, ProfileConfig] = Field(
        default_factory=dict,
        description="Name -> profile. The name is also that of the tier.",
        json_schema_extra={"additionalProperties": False, "propertyNames": {"not": {"const": DENSE}}},
    )
    models: dict[Name, ModelEntry] = Field(
        description="Name -> model, as clients ask for it. `{}` if all of them are in the repository.",
        json_schema_extra={"additionalProperties": False},
    )
    repository: RepositoryConfig = Field(
        default=RepositoryConfig(), description="Models that are loaded and unloaded while the server runs."
    )
    deployments: dict[str, DeploymentConfig] = Field(
        default_factory=dict, description="Name of a model -> how its traffic is spread. Default: all to dense."
    )

    def deployment(self, model: str) -> DeploymentConfig:
        """Return the model's deployment, or the default one."""
        return self.deployments.get(model, DeploymentConfig())

    def model(self, name: str) -> ModelConfig:
        """Return the highest version of a model that is served."""
        return list(self.models[name].served.values())[-1]

    def served(self) -> dict[tuple[str, str], ModelConfig]:
        """Return what is served, by name and version: models in the order of the file, the lowest version first."""
        return {
            (name, version): model for name, entry in self.models.items() for version, model in entry.served.items()
        }

    def profile(self, tier: str) -> ProfileConfig | None:
        """Return the profile behind a tier; ``None`` for dense."""
        return self.profiles.get(tier)
