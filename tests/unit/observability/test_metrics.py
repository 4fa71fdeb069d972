import re

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serveprune.observability.metrics import METRICS, Metric, Metrics


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_metric_follows_prometheus_naming(metric: Metric) -> None:
    assert re.fullmatch(r"serveprune_[a-z][a-z_]*[a-z]", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert not re.search(r"_(ms|milliseconds|kb|mb|percent)(_|$)", metric.name)
    assert metric.help.endswith(".")
    bounded = {"code", "reason", "metric", "outcome", "event", "direction", "rows", "kind"}
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
