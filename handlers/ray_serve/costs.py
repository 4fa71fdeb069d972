"""What the store knows of variants before they are loaded."""

from collections.abc import Callable

from serveprune.artifacts.dense import dense_of
from serveprune.artifacts.key import tier_packages, tier_recipe
from serveprune.artifacts.opening import open_store
from serveprune.artifacts.store import Artifact, ArtifactStore
from serveprune.config.model import DENSE, ModelConfig
from serveprune.config.root import ServePruneConfig
from serveprune.errors import NotFound
from serveprune.handlers.ray_serve.packing import VariantCost


def variant_costs(
    config: ServePruneConfig, *, alone: Callable[[str, str], bool], shares: Callable[[str, str], bool]
) -> list[VariantCost]:
    """Return what each variant of a config takes, as far as its artifact is there and says so.

    Args:
        config: What is to be served.
        alone: Tells of a model's tier whether it shares nothing.
        shares: Tells of a model's tier whether it is small, whatever was measured.
    """
    store = open_store(config.store)
    costs = []
    for (name, version), model in config.served().items():
        found = _artifacts(store, config, model)
        for tier in model.tiers:
            artifact = found.get(tier)
            costs.append(
                VariantCost(
                    (name, version, tier),
                    batch_ms=_batch_ms(tier, found),
                    graph_bytes=artifact.manifest.graph.bytes if artifact is not None else None,
                    alone=alone(name, tier),
                    shares=shares(name, tier),
                )
            )
    return costs


def _artifacts(store: ArtifactStore, config: ServePruneConfig, model: ModelConfig) -> dict[str, Artifact]:
    try:
        dense = dense_of(store, model, any_environment=True)
    except NotFound:
        return {}
    if dense is None:
        return {}
    found = {DENSE: dense}
    for tier in model.tiers:
        profile = config.profile(tier)
        if profile is not None:
            recipe = tier_recipe(dense.key, model, profile, threads=config.server.threads_per_executor)
            artifact = store.find_tier(recipe, any_environment=True, extra_packages=tier_packages(model, profile))
            if artifact is not None:
                found[tier] = artifact
    return found


def _batch_ms(tier: str, found: dict[str, Artifact]) -> float | None:
    """Return what a batch takes; dense was timed beside each of its tiers."""
    timed = [each.manifest.measurements for each in found.values() if each.manifest.measurements is not None]
    if tier == DENSE:
        return max((each.latency.dense_ms for each in timed), default=None)
    own = found[tier].manifest.measurements if tier in found else None
    return own.latency.tier_ms if own is not None else None
