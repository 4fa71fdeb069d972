"""Every Prometheus series of serveprune, in one table. The reference page is generated from it.

Label values come from the registry or from an enumeration, never from what a client sent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    values,
)

_VARIANT = ("model", "version", "tier")

_REQUEST_SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
_BUILD_SECONDS = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
_AGREEMENTS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)
_BATCH_ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of the table.

    Attributes:
        merge: Of a gauge: what of the values of several serving processes is shown. Counters and histograms add up.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = _VARIANT
    buckets: tuple[float, ...] = field(default=_REQUEST_SECONDS)
    merge: Literal["sum", "max", "min"] = "max"


REQUESTS = Metric(
    "serveprune_requests_total",
    "counter",
    "Requests answered, by the status code (OK or an error code) and the tier that served them; those that failed "
    "before one was chosen by the tier they asked for, or the default tier.",
    (*_VARIANT, "code"),
)
REJECTED_REQUESTS = Metric(
    "serveprune_rejected_requests_total",
    "counter",
    "Requests refused before they were admitted to a model, by status code.",
    ("code",),
)
REQUEST_SECONDS = Metric(
    "serveprune_request_duration_seconds",
    "histogram",
    "Time from a decoded request to its answer: preprocessing, queue and compute.",
)
PREPROCESSING_SECONDS = Metric(
    "serveprune_request_preprocessing_seconds",
    "histogram",
    "Time spent turning text or images into tensors; only requests that need it.",
)
QUEUE_SECONDS = Metric("serveprune_request_queue_seconds", "histogram", "Time a request waited for a free executor.")
COMPUTE_SECONDS = Metric(
    "serveprune_request_compute_seconds", "histogram", "Time the batch that held the request was computed."
)
BATCH_ROWS = Metric("serveprune_batch_rows", "histogram", "Rows per computed batch.", buckets=_BATCH_ROWS)
DROPPED = Metric(
    "serveprune_dropped_requests_total",
    "counter",
    "Requests, or parts of large ones, that were not computed because their deadline had passed (expired), or would "
    "have passed during compute while others waited (hopeless).",
    (*_VARIANT, "reason"),
)
IN_FLIGHT = Metric(
    "serveprune_requests_in_flight",
    "gauge",
    "Requests admitted and not yet answered.",
    ("model", "version"),
    merge="sum",
)
REQUESTED_TIER = Metric(
    "serveprune_requested_tier_total",
    "counter",
    "Requests by the tier they asked for, or the default tier, or the best tier that might have been chosen.",
)
SERVED_TIER = Metric(
    "serveprune_served_tier_total",
    "counter",
    "Requests by the tier they were routed to and why: requested, default, objective, adaptive (the best tier that "
    "can be in time), adaptive_load (a smaller one because of the load), or a fallback because the wanted tier was "
    "building, refused or failed.",
    (*_VARIANT, "reason"),
)
ADAPTIVE_CEILING = Metric(
    "serveprune_adaptive_ceiling_rank",
    "gauge",
    "Best tier that an adaptive deployment serves now, as its position among the model's tiers; 0 is dense.",
    ("model", "version"),
)
ADAPTIVE_STEPS = Metric(
    "serveprune_adaptive_steps_total",
    "counter",
    "How often the best tier that an adaptive deployment serves changed, by direction: up (better), down (smaller).",
    ("model", "version", "direction"),
)
TIER_READY = Metric(
    "serveprune_tier_ready",
    "gauge",
    "1 when the tier is loaded, warm and routed to, in every serving process; else 0.",
    merge="min",
)
TIER_QUALITY = Metric(
    "serveprune_tier_quality",
    "gauge",
    "Quality of the tier measured at build on held-out inputs, by metric; agreement metrics compare with dense.",
    (*_VARIANT, "metric"),
)
TIER_SPEEDUP = Metric(
    "serveprune_tier_speedup_ratio",
    "gauge",
    "Dense latency divided by the tier's latency, measured at build.",
)
TIER_BYTES = Metric("serveprune_tier_bytes", "gauge", "Size of the tier's graph with its weights.")
TIER_BATCH_DEVIATION = Metric(
    "serveprune_tier_batch_deviation_ratio",
    "gauge",
    "How far a row's answer moved at worst when its neighbours in the batch changed, measured at build.",
)
TIER_BATCH_SECONDS = Metric(
    "serveprune_tier_batch_seconds",
    "gauge",
    "What a batch of so many rows takes, timed when the tier was loaded; of sequences at the length nearest to 128.",
    (*_VARIANT, "rows"),
)
TIER_LATENCY_CORRECTION = Metric(
    "serveprune_tier_latency_correction_ratio",
    "gauge",
    "How much longer batches take than was timed when the tier was loaded, as observed lately; forecasts are "
    "corrected by it.",
)
BUILDS = Metric(
    "serveprune_builds_total",
    "counter",
    "Builds by how they ended: built, cached, refused, failed.",
    (*_VARIANT, "outcome"),
)
BUILD_SECONDS = Metric(
    "serveprune_build_duration_seconds", "histogram", "Duration of finished builds.", buckets=_BUILD_SECONDS
)
BUILD_PROGRESS = Metric(
    "serveprune_build_progress_ratio", "gauge", "Progress of the running build from 0 to 1; 0 when none runs."
)
STORE_EVENTS = Metric(
    "serveprune_store_events_total",
    "counter",
    "What happened in the artifact store: hit, miss, stored, evicted, corrupt; of a shared one also fetched, "
    "published, publish_failed, shared_corrupt, unreachable, lease_waited (for another machine's build), lease_lost.",
    ("event",),
)
STORE_BYTES = Metric("serveprune_store_bytes", "gauge", "Size of all artifacts in the store.", ())
SECURITY_RELOADS = Metric(
    "serveprune_security_reloads_total",
    "counter",
    "Changes on disk of the certificate or the tokens, by whether the new one was taken or refused, so that the old "
    "one stays; of each serving process, and of the admin API (`admin_certificate`, `admin_tokens`).",
    ("kind", "outcome"),
)
CONFIG_RELOAD_SUCCESSFUL = Metric(
    "serveprune_config_last_reload_successful",
    "gauge",
    "1 when what the config file said at the last look is served; 0 when it was rejected, and what was served before "
    "goes on.",
    (),
)
CONFIG_RELOAD_SECONDS = Metric(
    "serveprune_config_last_reload_success_timestamp_seconds",
    "gauge",
    "When the config file was last found to be good, in seconds since the epoch.",
    (),
)
SHADOW_AGREEMENT = Metric(
    "serveprune_shadow_agreement_ratio",
    "histogram",
    "How far live answers of a tier agreed with those of the shadow tier to the same requests, by the metric that "
    "tiers are judged by; 1 is the same answer.",
    (*_VARIANT, "shadow"),
    buckets=_AGREEMENTS,
)
SHADOWED = Metric(
    "serveprune_shadowed_requests_total",
    "counter",
    "Requests that were to be computed once more by the shadow tier: compared, dropped (because of the load, or "
    "because the tier was not ready) or failed.",
    (*_VARIANT, "shadow", "outcome"),
)
ROLLOUT_WEIGHT = Metric(
    "serveprune_rollout_canary_weight_ratio",
    "gauge",
    "Share of the requests that name no tier which goes to the canary.",
    ("model",),
)
ROLLOUT_STEP = Metric(
    "serveprune_rollout_step", "gauge", "Step of the rollout that is under way, counted from 0.", ("model",)
)
ROLLOUT_PHASE = Metric(
    "serveprune_rollout_phase",
    "gauge",
    "1 for the phase that the rollout is in (waiting, progressing, paused, promoted, aborted), 0 for the others.",
    ("model", "phase"),
)
ROLLOUT_CHANGES = Metric(
    "serveprune_rollout_changes_total",
    "counter",
    "What happened to rollouts: canary_ready, canary_not_ready, step, paused, resumed, promoted, aborted.",
    ("model", "kind"),
)
ADMIN_REQUESTS = Metric(
    "serveprune_admin_requests_total",
    "counter",
    "Requests to the admin API, by what they asked for (`unknown`: nothing that there is, or without a token that "
    "counts) and the status code (OK or an error code).",
    ("operation", "code"),
)
PROCESSES = Metric("serveprune_processes", "gauge", "Serving processes that listen.", (), merge="sum")
PROCESS_RESTARTS = Metric(
    "serveprune_process_restarts_total", "counter", "Serving processes that ended unasked and were replaced.", ()
)

_MULTIPROCESS_MODES: Mapping[str, Literal["livesum", "livemax", "livemin"]] = {
    "sum": "livesum",
    "max": "livemax",
    "min": "livemin",
}

_OWN_VALUES = values.MutexValue
"""What keeps the values of a process that shares them with no other."""

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""The whole table, in the order of the module."""


class Metrics:
    """The live series of one server, in a registry of its own. Thread-safe."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        # Without this every series comes with a second one that holds nothing but its birthday.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # it ships no annotations
        self.registry = registry or CollectorRegistry()
        self._shares_series = values.ValueClass is not _OWN_VALUES
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._counters: dict[Metric, Counter] = {}
        self._gauges: dict[Metric, Gauge] = {}
        self._histograms: dict[Metric, Histogram] = {}
        for metric in METRICS:
            self._declare(metric)

    def _declare(self, metric: Metric) -> None:
        match metric.kind:
            case "counter":
                self._counters[metric] = Counter(metric.name, metric.help, metric.labels, registry=self.registry)
            case "gauge":
                self._gauges[metric] = Gauge(
                    metric.name,
                    metric.help,
                    metric.labels,
                    registry=self.registry,
                    # "live": what a process that died was up to counts no longer.
                    multiprocess_mode=_MULTIPROCESS_MODES[metric.merge],
                )
            case "histogram":
                self._histograms[metric] = Histogram(
                    metric.name, metric.help, metric.labels, registry=self.registry, buckets=metric.buckets
                )

    def counter(self, metric: Metric, *labels: str) -> Counter:
        """Return the counter, or its child for these label values in the table's order."""
        counter = self._counters[metric]
        return counter.labels(*labels) if labels else counter

    def gauge(self, metric: Metric, *labels: str) -> Gauge:
        """Return the gauge, or its child for these label values in the table's order."""
        gauge = self._gauges[metric]
        return gauge.labels(*labels) if labels else gauge

    def forget(self, *, model: str, version: str) -> None:
        """Show no gauge of a model any more; what was counted stays.

        Where several processes share their series they are not taken back: those whose sum or least value is shown
        are set to 0.
        """
        for metric, gauge in self._gauges.items():
            if metric.labels[:2] != ("model", "version"):
                continue
            if not self._shares_series:
                gauge.remove_by_labels({"model": model, "version": version})
            elif metric.merge != "max":
                for labels in [each for each in gauge._metrics if each[:2] == (model, version)]:
                    gauge.labels(*labels).set(0)

    def histogram(self, metric: Metric, *labels: str) -> Histogram:
        """Return the histogram, or its child for these label values in the table's order."""
        histogram = self._histograms[metric]
        return histogram.labels(*labels) if labels else histogram
