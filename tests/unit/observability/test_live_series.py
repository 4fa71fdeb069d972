from pathlib import Path

from serveprune.observability import metrics as series
from serveprune.observability.live_series import LiveSeries
from serveprune.observability.metrics import Metrics
from serveprune.observability.shared_values import values_shared

LABELS = ("boots", "1", "dense")


def count(metrics: Metrics, requests: int) -> None:
    for _ in range(requests):
        metrics.counter(series.REQUESTS, *LABELS, "OK").inc()
        metrics.counter(series.SERVED_TIER, *LABELS, "default").inc()
        metrics.histogram(series.REQUEST_SECONDS, *LABELS).observe(0.002)
    metrics.counter(series.REQUESTS, *LABELS, "INTERNAL").inc()
    metrics.counter(series.REQUESTS, *LABELS, "NOT_FOUND").inc(0)
    metrics.histogram(series.REQUEST_SECONDS, *LABELS).observe(100)
    # Of other series, which the page does not show.
    metrics.histogram(series.QUEUE_SECONDS, *LABELS).observe(0.0001)
    metrics.histogram(series.BUILD_SECONDS, *LABELS).observe(1)


def test_document_has_counts_reasons_and_cumulative_buckets() -> None:
    metrics = Metrics()
    count(metrics, 3)

    document = LiveSeries(metrics.registry, folder=None).document()

    (tier,) = document["tiers"]
    assert (tier["model"], tier["version"], tier["tier"]) == LABELS
    assert tier["codes"] == {"OK": 3, "INTERNAL": 1}
    assert tier["reasons"] == {"default": 3}
    assert document["bounds"][:4] == [0.0005, 0.001, 0.0025, 0.005]
    assert tier["buckets"] == [0, 0] + [3] * 13 + [4]
    assert len(tier["buckets"]) == len(document["bounds"]) + 1


def test_clock_goes_on_between_documents() -> None:
    live = LiveSeries(Metrics().registry, folder=None)

    assert live.document()["seconds"] < live.document()["seconds"]


def test_any_process_shows_the_sum_of_all(tmp_path: Path) -> None:
    for name, requests in (("0", 3), ("1", 4)):
        with values_shared(tmp_path, process=name):
            metrics = Metrics()
            count(metrics, requests)

            (tier,) = LiveSeries(metrics.registry, folder=tmp_path).document()["tiers"]

    assert tier["codes"] == {"OK": 7, "INTERNAL": 2}
    assert tier["reasons"] == {"default": 7}
    assert tier["buckets"][-1] == 9
