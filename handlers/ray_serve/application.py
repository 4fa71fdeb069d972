"""The Ray Serve application: `serveprune.handlers.ray_serve.application:application` as `import_path`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application

from serveprune.config.root import ServePruneConfig
from serveprune.handlers.ray_serve.config_source import ConfigSource
from serveprune.handlers.ray_serve.costs import variant_costs
from serveprune.handlers.ray_serve.ingress import Ingress
from serveprune.handlers.ray_serve.packing import Pack, PackingRules, pack
from serveprune.handlers.ray_serve.replica import TierReplica
from serveprune.handlers.ray_serve.settings import RaySettings, settings_of

INGRESS = "ingress"
"""Name of the deployment that takes requests, and gets `user_config`."""

_FOLDER = "ray"
_ONGOING_IN_REPLICA = 2
"""One batch is computed, and the next one is on its way."""

_HEALTH_CHECK_SECONDS = 2.0
"""How soon a process that died is noticed, and started anew; Ray's default is 10 s."""


def application(arguments: Mapping[str, Any]) -> Application:
    """Build the application; called by `serve run`, `serve deploy` and KubeRay with the `args` of the config.

    Raises:
        ConfigError: `args` or `serveprune.yaml` is wrong; the message names each place.
    """
    settings = settings_of(arguments)
    source = ConfigSource.read(settings.config)
    config = source.config()
    packs = packs_of(config, settings)
    folder = config.store.folder / _FOLDER / source.digest[:16]
    scalings = {each.name: _scaling(each, settings) for each in packs}
    handles = {each.name: _tiers(each, config, scalings[each.name], folder=folder) for each in packs}
    ingress = serve.deployment(serve.ingress()(Ingress)).options(
        name=INGRESS,
        ray_actor_options={"num_cpus": settings.ingress.num_cpus},
        autoscaling_config=settings.scaling_of_ingress,
        # So that replicas are told even where the config of Ray Serve says nothing.
        user_config={},
        # The server counts and refuses itself.
        max_ongoing_requests=2 * config.server.max_queued_requests,
        graceful_shutdown_timeout_s=config.server.drain_seconds,
        health_check_period_s=_HEALTH_CHECK_SECONDS,
    )
    return ingress.bind(
        source,
        settings,
        packs={each.name: each for each in packs},
        handles=handles,
        in_flight={name: scaling["max_replicas"] + 1 for name, scaling in scalings.items()},
        folder=folder,
    )


def packs_of(config: ServePruneConfig, settings: RaySettings) -> list[Pack]:
    """Return which deployments of tiers there are."""
    said = settings.packing
    rules = PackingRules(
        small_batch_ms=said.small_batch_ms,
        small_bytes=said.small_bytes,
        shared_bytes=said.shared_bytes,
        process_bytes=said.process_bytes,
        bytes_per_graph_byte=said.bytes_per_graph_byte,
    )
    costs = variant_costs(config, alone=settings.has_own_scaling, shares=settings.shares)
    return pack(costs, rules, threads=config.server.threads_per_executor)


def _tiers(each: Pack, config: ServePruneConfig, scaling: Mapping[str, Any], *, folder: Path) -> Application:
    resources: dict[str, Any] = {"num_cpus": each.num_cpus}
    if each.memory_bytes is not None:
        resources["memory"] = each.memory_bytes
    deployment = serve.deployment(TierReplica).options(
        name=each.name,
        ray_actor_options=resources,
        autoscaling_config=dict(scaling),
        max_ongoing_requests=_ONGOING_IN_REPLICA,
        graceful_shutdown_timeout_s=config.server.drain_seconds,
        health_check_period_s=_HEALTH_CHECK_SECONDS,
    )
    return deployment.bind(store=config.store, folder=folder / each.name, threads=config.server.threads_per_executor)


def _scaling(each: Pack, settings: RaySettings) -> dict[str, Any]:
    """Return how a deployment scales: as its tiers do, of those that share one the most of each bound."""
    every = [settings.scaling(model, tier) for model, _, tier in each.identities]
    return every[0] | {bound: max(one[bound] for one in every) for bound in ("min_replicas", "max_replicas")}
