"""What an operator says of the application beside `serveprune.yaml`: the `args` of a Ray Serve config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from ray.serve.config import AutoscalingConfig

from serveprune.config.base import ConfigModel
from serveprune.config.numbers import Number, WholeNumber
from serveprune.config.server import ListenAddress, Size
from serveprune.errors import ConfigError

_EVERYWHERE = "*"

_SCALING: Mapping[str, Any] = {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 1}
_SCALING_OF_INGRESS: Mapping[str, Any] = {"min_replicas": 1, "target_ongoing_requests": 64}


class PackingSettings(ConfigModel):
    """Which variants are small enough to share a replica, and what a replica asks for."""

    share: tuple[str, ...] = Field(
        default=(), description="MODEL or MODEL@TIER that count as small, whatever was measured or not."
    )
    small_batch_ms: Number = Field(default=20.0, ge=0, description="A variant is small if a batch takes no longer.")
    small_bytes: Size = Field(default=64 * 2**20, validate_default=True, description="And its graph is no larger.")
    shared_bytes: Size = Field(default=256 * 2**20, validate_default=True, description="Graphs of one shared replica.")
    process_bytes: Size = Field(
        default=400 * 2**20, validate_default=True, description="Memory of a replica before it has loaded a graph."
    )
    bytes_per_graph_byte: Number = Field(
        default=3.0, ge=1, description="Memory that a loaded graph takes, packed weights and arena, to its file."
    )


class IngressSettings(ConfigModel):
    """The replicas that take requests, choose tiers and form batches."""

    num_cpus: Number = Field(default=1.0, ge=0)
    autoscaling: dict[str, Any] = Field(
        default_factory=dict, description="Keys of Ray's autoscaling_config in place of one replica."
    )


class BuildsSettings(ConfigModel):
    """Where artifacts are built that the store lacks."""

    num_cpus: Number = Field(default=1.0, ge=0, description="CPUs that Ray sets aside while a build goes on.")
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="Resources of the nodes that have serveprune[compress] installed."
    )


class RaySettings(ConfigModel):
    """All of them."""

    config: Path = Field(description="serveprune.yaml; models, data sets and store must be there on every node.")
    autoscaling: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="`*`, MODEL, or MODEL@TIER -> Ray's autoscaling_config; the closest one adds to those above it.",
    )
    packing: PackingSettings = PackingSettings()
    ingress: IngressSettings = IngressSettings()
    builds: BuildsSettings = BuildsSettings()
    max_retries: WholeNumber = Field(
        default=3, ge=0, le=20, description="How often a batch is given to another replica when one died with it."
    )
    metrics: ListenAddress | None = Field(
        default=None, description="Where an ingress replica serves its metrics; further ones at the next free ports."
    )

    def scaling(self, model: str, tier: str) -> dict[str, Any]:
        """Return Ray's autoscaling_config of a tier."""
        said = [self.autoscaling.get(name, {}) for name in (_EVERYWHERE, model, f"{model}@{tier}")]
        return dict(_SCALING) | said[0] | said[1] | said[2]

    @property
    def scaling_of_ingress(self) -> dict[str, Any]:
        """Ray's autoscaling_config of the ingress: one replica, or as many as are said to be the least."""
        said = self.ingress.autoscaling
        least = said.get("min_replicas")
        return dict(_SCALING_OF_INGRESS) | {"max_replicas": least if isinstance(least, int) and least else 1} | said

    def has_own_scaling(self, model: str, tier: str) -> bool:
        """Tell whether a tier scales in a way of its own, and so by itself."""
        return f"{model}@{tier}" in self.autoscaling

    def shares(self, model: str, tier: str) -> bool:
        """Tell whether a tier is said to be small."""
        return not {model, f"{model}@{tier}"}.isdisjoint(self.packing.share)


def settings_of(arguments: Mapping[str, Any]) -> RaySettings:
    """Read the `args` of an application.

    Raises:
        ConfigError: Something in them is wrong; the message names each key.
    """
    try:
        settings = RaySettings.model_validate(dict(arguments))
    except ValidationError as error:
        raise ConfigError(_problems("args", error)) from None
    problems = []
    scalings = {f"args.autoscaling.{name}": dict(_SCALING) | said for name, said in settings.autoscaling.items()}
    scalings["args.ingress.autoscaling"] = settings.scaling_of_ingress
    for place, scaling in scalings.items():
        unknown = sorted(scaling.keys() - AutoscalingConfig.model_fields.keys())
        problems += [f"{place}.{key}: Ray's autoscaling_config has no such key" for key in unknown]
        try:
            AutoscalingConfig(**scaling)
        except ValidationError as error:
            problems += _problems(place, error)
    if problems:
        raise ConfigError(problems)
    return settings


def _problems(place: str, error: ValidationError) -> list[str]:
    return [
        f"{'.'.join((place, *map(str, each['loc'])))}: {each['msg']}, got {each['input']!r}" for each in error.errors()
    ]
