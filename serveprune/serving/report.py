"""How a variant stands, for people (JSON) and for Prometheus."""

from typing import Any

from serveprune.artifacts.builder import BuildOutcome, BuildResult
from serveprune.artifacts.manifest import Manifest
from serveprune.models.registry import Model
from serveprune.models.variant import Variant, VariantState
from serveprune.observability import metrics as series
from serveprune.observability.metrics import Metrics


def describe(variant: Variant) -> dict[str, Any]:
    """Return a variant's state, and what was measured of it, ready for JSON; absent figures are ``None``."""
    progress, artifact = variant.progress, variant.artifact
    description: dict[str, Any] = {
        "tier": variant.tier,
        "state": str(variant.state),
        "reasons": list(variant.reasons),
        "log": variant.log,
        "progress": {"stage": progress.stage, "fraction": progress.fraction, "message": progress.message}
        if progress
        else None,
        "artifact": artifact.key if artifact else None,
        "bytes": artifact.manifest.graph.bytes if artifact else None,
        "parameters": artifact.manifest.graph.parameters if artifact else None,
        "built_here": variant.built_here,
        "backend": variant.backend if artifact else None,
    }
    measurements = artifact.manifest.measurements if artifact else None
    if measurements is None:
        return description
    latency = measurements.latency
    return description | {
        "metric": measurements.metric,
        "quality": dict(measurements.quality),
        "dense_quality": dict(measurements.dense_quality),
        "batch_deviation": measurements.batch_deviation,
        "evaluation_set": measurements.evaluation_set,
        "speedup": latency.speedup,
        "latency_ms": {"dense": latency.dense_ms, "tier": latency.tier_ms},
        "latency_batch_size": latency.batch_size,
        "backends": backends(artifact.manifest) if artifact else {},
    }


def backends(manifest: Manifest) -> dict[str, Any]:
    """Return what was measured on each backend, ready for JSON; of one that could not run the graph, why."""
    measured = {
        each.backend: {
            "quality": dict(each.quality),
            "batch_deviation": each.batch_deviation,
            "speedup": each.latency.speedup,
            "latency_ms": {"dense": each.latency.dense_ms, "tier": each.latency.tier_ms},
        }
        for each in manifest.all_measurements
    }
    return measured | {name: {"not_measured": reason} for name, reason in manifest.unmeasured_backends.items()}


class VariantReporter:
    """Keeps the series of builds and tiers true to the registry."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def publish(self, model: Model, variant: Variant) -> None:
        """Set the gauges of one variant."""
        labels = (model.name, model.version, variant.tier)
        progress = variant.progress.fraction if variant.progress else 0.0
        self._metrics.gauge(series.TIER_READY, *labels).set(variant.state is VariantState.READY)
        self._metrics.gauge(series.BUILD_PROGRESS, *labels).set(progress)
        self._create_at_zero(labels)
        if variant.artifact is None:
            return
        self._metrics.gauge(series.TIER_BYTES, *labels).set(variant.artifact.manifest.graph.bytes)
        measurements = variant.artifact.manifest.measurements
        if measurements is None:
            return
        self._metrics.gauge(series.TIER_SPEEDUP, *labels).set(measurements.latency.speedup)
        self._metrics.gauge(series.TIER_BATCH_DEVIATION, *labels).set(measurements.batch_deviation)
        for metric_name, value in measurements.quality.items():
            self._metrics.gauge(series.TIER_QUALITY, *labels, metric_name).set(value)

    def _create_at_zero(self, labels: tuple[str, str, str]) -> None:
        """Make the series exist before anything happens, so that rates over them are right from the start."""
        for outcome in BuildOutcome:
            self._metrics.counter(series.BUILDS, *labels, outcome)
        self._metrics.histogram(series.BUILD_SECONDS, *labels)

    def count_build(self, model: Model, tier: str, result: BuildResult) -> None:
        """Count a finished build."""
        labels = (model.name, model.version, tier)
        self._metrics.counter(series.BUILDS, *labels, result.outcome).inc()
        self._metrics.histogram(series.BUILD_SECONDS, *labels).observe(result.seconds)
