import enum
import logging
import re

import pytest

from serveprune.handlers.torchserve import teller
from serveprune.handlers.torchserve.metrics_file import CARRIED, dimensions
from serveprune.handlers.torchserve.teller import Teller, declared_metrics, worker_name
from serveprune.observability.metrics import REQUEST_SECONDS, REQUESTS, STORE_BYTES, TIER_READY, Metric, Metrics

INT8 = ("m", "1", "int8")
# What TorchServe's front end reads of a line.
VALUE = re.compile(r"[0-9\-,.e]+")


class Kind(enum.Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Noted:
    """A metric of TorchServe that notes what it is told."""

    def __init__(self, metric: Metric, *, dimension_names: list[str] | None = None) -> None:
        self.dimension_names = dimensions(metric) if dimension_names is None else dimension_names
        self.told: list[tuple[float, list[str]]] = []

    def add_or_update(self, value: float, dimension_values: list[str]) -> None:
        assert VALUE.fullmatch(f"{value}")
        assert len(dimension_values) == len(self.dimension_names)
        self.told.append((value, dimension_values))


def cache(**declared: Noted) -> dict[Kind, dict[str, Noted]]:
    kinds = {metric.name: metric.kind for metric in CARRIED}
    found: dict[Kind, dict[str, Noted]] = {kind: {} for kind in Kind}
    for name, noted in declared.items():
        found[Kind(kinds[name])][name] = noted
    return found


def test_metrics_that_torchserve_does_not_declare_are_left_out() -> None:
    noted = Noted(REQUESTS)
    assert declared_metrics(cache(serveprune_requests_total=noted)) == {REQUESTS: noted}


def test_metric_of_another_kind_is_left_out() -> None:
    assert declared_metrics({Kind.GAUGE: {REQUESTS.name: Noted(REQUESTS)}}) == {}


def test_metric_of_other_dimensions_is_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    outdated = Noted(REQUESTS, dimension_names=["model", "tier"])
    assert declared_metrics(cache(serveprune_requests_total=outdated)) == {}
    assert "TorchServe is not told of serveprune_requests_total" in caplog.text


def test_file_without_our_metrics_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert declared_metrics({}) == {}
    assert "`serveprune torchserve metrics` writes one" in caplog.text


def test_everything_is_told_in_the_order_of_the_dimensions() -> None:
    metrics = Metrics()
    noted = {metric: Noted(metric) for metric in (REQUESTS, TIER_READY, REQUEST_SECONDS)}
    metrics.counter(REQUESTS, *INT8, "OK").inc()
    metrics.gauge(TIER_READY, *INT8).set(1)
    metrics.histogram(REQUEST_SECONDS, *INT8).observe(0.25)

    Teller(metrics, noted, worker="W").tell()

    assert noted[REQUESTS].told == [(1, [*INT8, "OK"])]
    assert noted[TIER_READY].told == [(1, [*INT8, "W"])]
    assert noted[REQUEST_SECONDS].told == [(0.25, [*INT8])]


def test_last_moves_are_told_when_it_is_stopped() -> None:
    metrics, noted = Metrics(), Noted(REQUESTS)
    telling = Teller(metrics, {REQUESTS: noted}, worker="W")
    telling.start()
    metrics.counter(REQUESTS, *INT8, "OK").inc()
    telling.stop()
    assert noted.told == [(1, [*INT8, "OK"])]


def test_it_goes_on_when_a_series_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(teller, "_INTERVAL_SECONDS", 0.001)
    metrics, noted = Metrics(), Noted(REQUESTS)
    metrics.gauge(STORE_BYTES).set_function(lambda: 1 / 0)
    telling = Teller(metrics, {STORE_BYTES: Noted(STORE_BYTES), REQUESTS: noted}, worker="W")
    telling.start()
    while "could not be told" not in caplog.text:
        pass
    metrics.counter(REQUESTS, *INT8, "OK").inc()
    telling.stop()
    assert noted.told == [(1, [*INT8, "OK"])]


def test_it_can_be_stopped_when_there_is_nothing_to_tell() -> None:
    telling = Teller(Metrics(), {}, worker="W")
    telling.start()
    telling.stop()


def test_worker_has_torchserves_name() -> None:
    unix = [
        "model_service_worker.py",
        "--sock-type",
        "unix",
        "--sock-name",
        "/tmp/.ts.sock.9001",
        "--metrics-config",
        "m",
    ]
    tcp = ["model_service_worker.py", "--sock-type", "tcp", "--port", "9002"]
    assert worker_name("m", version="1.0", arguments=unix) == "W-9001-m_1.0"
    assert worker_name("m", version="1.0", arguments=tcp) == "W-9002-m_1.0"
