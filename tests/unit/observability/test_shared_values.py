"""Series of several processes, each in an interpreter of its own, as one scrape sees them."""

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serveprune.observability import metrics as series
from serveprune.observability.metrics import METRICS
from serveprune.observability.shared_values import MergedCollector, forget_gauges

PREPARED = """
import os, signal, sys
from pathlib import Path
from serveprune.observability import metrics as series
from serveprune.observability.metrics import Metrics
from serveprune.observability.shared_values import values_shared
with values_shared(Path(sys.argv[1]), process=sys.argv[2]):
    metrics = Metrics()
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
VARIANT = {"model": "boots", "version": "1", "tier": "dense"}
LABELS = ("boots", "1", "dense")


def run_process(folder: Path, name: str, *lines: str) -> None:
    code = PREPARED + "".join(f"    {line}\n" for line in lines)
    subprocess.run([sys.executable, "-c", code, str(folder), name], timeout=100, check=KILL not in lines)


@pytest.fixture
def registry(tmp_path: Path) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(MergedCollector(tmp_path, gauges={series.STORE_BYTES: lambda: 7.0}))
    return registry


def test_counters_and_histograms_add_up(tmp_path: Path, registry: CollectorRegistry) -> None:
    for name, count in (("0", 3), ("1", 4)):
        run_process(
            tmp_path,
            name,
            f"metrics.counter(series.REQUESTS, *{LABELS}, 'OK').inc({count})",
            f"[metrics.histogram(series.REQUEST_SECONDS, *{LABELS}).observe(0.2) for _ in range({count})]",
            f"metrics.histogram(series.REQUEST_SECONDS, *{LABELS}).observe(100)",
        )

    value = registry.get_sample_value
    assert value("serveprune_requests_total", {**VARIANT, "code": "OK"}) == 7
    name = "serveprune_request_duration_seconds"
    assert value(f"{name}_count", VARIANT) == 9
    assert value(f"{name}_sum", VARIANT) == pytest.approx(7 * 0.2 + 2 * 100)
    buckets = {le: value(f"{name}_bucket", {**VARIANT, "le": le}) for le in ("0.1", "0.25", "30.0", "+Inf")}
    assert buckets == {"0.1": 0, "0.25": 7, "30.0": 7, "+Inf": 9}


def test_gauges_are_merged_as_the_table_says(tmp_path: Path, registry: CollectorRegistry) -> None:
    for name, in_flight, ready, progress in (("0", 2, 1, 0.25), ("1", 5, 0, 0.5)):
        run_process(
            tmp_path,
            name,
            f"metrics.gauge(series.IN_FLIGHT, 'boots', '1').set({in_flight})",
            f"metrics.gauge(series.TIER_READY, *{LABELS}).set({ready})",
            f"metrics.gauge(series.BUILD_PROGRESS, *{LABELS}).set({progress})",
            "metrics.gauge(series.PROCESSES).set(1)",
        )

    value = registry.get_sample_value
    assert value("serveprune_requests_in_flight", {"model": "boots", "version": "1"}) == 7
    assert value("serveprune_tier_ready", VARIANT) == 0
    assert value("serveprune_build_progress_ratio", VARIANT) == 0.5
    assert value("serveprune_processes") == 2


def test_process_that_was_killed_keeps_its_counts_and_loses_its_gauges(
    tmp_path: Path, registry: CollectorRegistry
) -> None:
    count = f"metrics.counter(series.REQUESTS, *{LABELS}, 'OK').inc()"
    run_process(tmp_path, "0", count, "metrics.gauge(series.PROCESSES).set(1)", KILL)
    run_process(tmp_path, "1", count, "metrics.gauge(series.PROCESSES).set(1)")
    files = len(list(tmp_path.iterdir()))

    forget_gauges(tmp_path, process="0")

    value = registry.get_sample_value
    assert value("serveprune_processes") == 1
    assert value("serveprune_requests_total", {**VARIANT, "code": "OK"}) == 2
    # Its successor goes on from there, in the same files.
    run_process(tmp_path, "0", count, "metrics.gauge(series.PROCESSES).set(1)")
    assert value("serveprune_requests_total", {**VARIANT, "code": "OK"}) == 3
    assert value("serveprune_processes") == 2
    assert len(list(tmp_path.iterdir())) == files


def test_whole_table_is_shown_with_its_help_and_what_is_of_the_server_is_asked(
    tmp_path: Path, registry: CollectorRegistry
) -> None:
    run_process(tmp_path, "0", f"metrics.counter(series.REQUESTS, *{LABELS}, 'OK')")

    families = list(text_string_to_metric_families(generate_latest(registry).decode()))

    assert [(family.name, family.type, family.documentation) for family in families] == [
        (metric.name.removesuffix("_total"), metric.kind, metric.help) for metric in METRICS
    ]
    value = registry.get_sample_value
    assert value("serveprune_requests_total", {**VARIANT, "code": "OK"}) == 0
    assert value("serveprune_store_bytes") == 7


def test_file_that_a_starting_process_has_just_made_does_not_fail_the_scrape(
    tmp_path: Path, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_process(tmp_path, "0", f"metrics.counter(series.REQUESTS, *{LABELS}, 'OK').inc()")
    new = tmp_path / "counter_1.db"
    new.touch()
    # The process goes on while the scrape waits.
    filled = (tmp_path / "counter_0.db").read_bytes()
    monkeypatch.setattr("time.sleep", lambda seconds: new.write_bytes(filled))

    assert registry.get_sample_value("serveprune_requests_total", {**VARIANT, "code": "OK"}) == 2
