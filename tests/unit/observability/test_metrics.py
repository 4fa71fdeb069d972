import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serveprune.observability import metrics as series
from serveprune.observability.metrics import METRICS, Metric, Metrics
from serveprune.observability.shared_values import MergedCollector, values_shared


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_metric_follows_prometheus_naming(metric: Metric) -> None:
    assert re.fullmatch(r"serveprune_[a-z][a-z_]*[a-z]", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert not re.search(r"_(ms|milliseconds|kb|mb|percent)(_|$)", metric.name)
    assert metric.help.endswith(".")
    bounded = {
        "code",
        "reason",
        "metric",
        "outcome",
        "event",
        "direction",
        "rows",
        "phase",
        "kind",
        "shadow",
        "operation",
    }
    assert set(metric.labels) <= {"model", "version", "tier", *bounded}


def test_metrics_expose_the_whole_table_and_nothing_else_of_ours() -> None:
    metrics = Metrics()
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    ours = {family.name for family in families if family.name.startswith("serveprune_")}
    assert ours == {metric.name.removesuffix("_total") for metric in METRICS}


def test_metrics_of_two_servers_are_apart() -> None:
    first, second = Metrics(), Metrics()
    counter = next(metric for metric in METRICS if metric.kind == "counter")
    labels = tuple("x" for _ in counter.labels)
    first.counter(counter, *labels).inc()
    assert f"{counter.name}{{" in generate_latest(first.registry).decode()
    assert f"{counter.name}{{" not in generate_latest(second.registry).decode()


def test_gauges_of_a_forgotten_model_are_gone_and_its_counts_stay() -> None:
    metrics = Metrics()
    for version in ("1", "2"):
        metrics.gauge(series.TIER_READY, "minilm", version, "int8").set(1)
        metrics.counter(series.REQUESTS, "minilm", version, "int8", "OK").inc()
    metrics.forget(model="minilm", version="1")
    shown = generate_latest(metrics.registry).decode()
    ready = [line for line in shown.splitlines() if line.startswith("serveprune_tier_ready{")]
    counted = [line for line in shown.splitlines() if line.startswith("serveprune_requests_total{")]
    assert [line.partition('version="')[2][0] for line in ready] == ["2"]
    assert len(counted) == 2


def test_tiers_of_a_forgotten_model_are_not_ready_where_processes_share_their_series(tmp_path: Path) -> None:
    with values_shared(tmp_path, process="0"):
        metrics = Metrics()
        metrics.gauge(series.TIER_READY, "minilm", "1", "int8").set(1)
        metrics.forget(model="minilm", version="1")
        merged = CollectorRegistry()
        merged.register(MergedCollector(tmp_path, gauges={}))
        labels = {"model": "minilm", "version": "1", "tier": "int8"}
        assert merged.get_sample_value("serveprune_tier_ready", labels) == 0
