"""How a variant stands, for people (JSON) and for Prometheus."""

from typing import Any

from serveprune.artifacts.builder import BuildOutcome, BuildResult
from serveprune.artifacts.manifest import Manifest
from serveprune.models.instance import Instance
from serveprune.models.registry import Model
from serveprune.models.variant import Variant, VariantState
from serveprune.observability import metrics as series
from serveprune.observability.metrics import Metrics
from serveprune.scheduling.scheduler import Drop

_REPORTED_LENGTH = 128
"""Of sequences: latencies are reported at the length nearest to it that was timed."""


def describe_model(model: Model) -> dict[str, Any]:
    """Return how a model and its tiers stand, ready for JSON."""
    return {
        "name": model.name,
        "version": model.version,
        "default_tier": model.default_tier,
        "tiers": [describe(variant, model.renewals.get(tier)) for tier, variant in model.variants.items()],
    }


def describe(variant: Variant, renewal: Variant | None = None) -> dict[str, Any]:
    """Return a variant's state, and what was measured of it, ready for JSON; absent figures are ``None``.

    Args:
        variant: As it serves, or is to.
        renewal: What is to take its place.
    """
    artifact = variant.artifact
    description: dict[str, Any] = {
        "tier": variant.tier,
        **_standing(variant),
        "renewal": _standing(renewal) if renewal is not None else None,
        "bytes": artifact.manifest.graph.bytes if artifact else None,
        "parameters": artifact.manifest.graph.parameters if artifact else None,
        "built_here": variant.built_here,
        "backend": variant.backend if variant.instance else None,
    }
    if variant.instance is not None:
        description["batches"] = _batches(variant.instance)
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


def _standing(variant: Variant) -> dict[str, Any]:
    progress = variant.progress
    return {
        "state": str(variant.state),
        "reasons": list(variant.reasons),
        "log": variant.log,
        "progress": {"stage": progress.stage, "fraction": progress.fraction, "message": progress.message}
        if progress
        else None,
        "artifact": variant.artifact.key if variant.artifact else None,
    }


def _batches(instance: Instance) -> dict[str, Any]:
    """Return how a loaded variant forms batches and what they take, ready for JSON."""
    latency = instance.latency
    length = latency.table.length_near(_REPORTED_LENGTH)
    return {
        "batchable": instance.batchable,
        "padded_inputs": sorted(instance.padding.values) if instance.padding else [],
        "worthwhile_rows": latency.worthwhile_rows(length),
        "length": length,
        "expected_ms_by_rows": {
            str(rows): latency.expected_seconds(rows, length) * 1000 for rows in latency.table.rows(length)
        },
        "correction": latency.correction,
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

    def __init__(self, metrics: Metrics, *, counts_builds: bool = True) -> None:
        """Remember where the series are.

        Args:
            metrics: Where the series are.
            counts_builds: Not where several processes wait for one build, and whoever runs it counts it.
        """
        self._metrics = metrics
        self._counts_builds = counts_builds

    def retract(self, model: Model) -> None:
        """Show no more how a model stands, for it is no longer served."""
        self._metrics.forget(model=model.name, version=model.version)

    def publish(self, model: Model, tier: str) -> None:
        """Set the gauges of one tier: how far what is being built for it is, and for the rest what serves it."""
        variant, pending = model.variants.get(tier), model.pending(tier)
        if variant is None or pending is None:
            return
        labels = (model.name, model.version, tier)
        progress = pending.progress.fraction if pending.progress else 0.0
        self._metrics.gauge(series.TIER_READY, *labels).set(variant.state is VariantState.READY)
        self._metrics.gauge(series.BUILD_PROGRESS, *labels).set(progress)
        self._create_at_zero(labels)
        correction = variant.instance.latency.correction if variant.instance else 1.0
        self._metrics.gauge(series.TIER_LATENCY_CORRECTION, *labels).set(correction)
        if variant.instance is not None:
            table = variant.instance.latency.table
            length = table.length_near(_REPORTED_LENGTH)
            for rows in table.rows(length):
                self._metrics.gauge(series.TIER_BATCH_SECONDS, *labels, str(rows)).set(table.seconds(rows, length))
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
        for reason in Drop:
            self._metrics.counter(series.DROPPED, *labels, reason)

    def count_build(self, model: Model, tier: str, result: BuildResult) -> None:
        """Count a finished build."""
        if self._counts_builds:
            count_build(self._metrics, (model.name, model.version, tier), result)


def count_build(metrics: Metrics, labels: tuple[str, str, str], result: BuildResult) -> None:
    """Count a finished build of a model, version and tier, unless another process does."""
    if not result.is_anothers:
        metrics.counter(series.BUILDS, *labels, result.outcome).inc()
        metrics.histogram(series.BUILD_SECONDS, *labels).observe(result.seconds)
