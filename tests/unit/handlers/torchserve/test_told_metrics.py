from bisect import bisect_left
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serveprune.handlers.torchserve.told_metrics import Ledger, Move, observations
from serveprune.observability.metrics import (
    QUEUE_SECONDS,
    REQUEST_SECONDS,
    REQUESTS,
    STORE_BYTES,
    TIER_QUALITY,
    TIER_READY,
    Metric,
    Metrics,
)

DENSE, INT8 = ("m", "1", "dense"), ("m", "1", "int8")
BOUNDS = REQUEST_SECONDS.buckets


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def ledger(metrics: Metrics, *carried: Metric) -> Ledger:
    return Ledger(metrics, carried, worker="W-9000-m_1")


def moves(ledger: Ledger, *, gauges: bool = True) -> list[Move]:
    return list(ledger.moves(gauges=gauges))


def test_counter_is_told_by_its_increase(metrics: Metrics) -> None:
    told = ledger(metrics, REQUESTS)
    metrics.counter(REQUESTS, *INT8, "OK").inc(3)
    assert moves(told) == [Move(REQUESTS, 3, (*INT8, "OK"))]

    metrics.counter(REQUESTS, *INT8, "OK").inc(2)
    assert moves(told) == [Move(REQUESTS, 2, (*INT8, "OK"))]
    assert moves(told) == []


def test_counter_is_there_before_anything_was_counted(metrics: Metrics) -> None:
    told = ledger(metrics, REQUESTS)
    metrics.counter(REQUESTS, *DENSE, "OK")

    assert moves(told) == [Move(REQUESTS, 0, (*DENSE, "OK"))]
    assert moves(told) == []


def test_gauge_is_told_with_its_worker_when_it_changes(metrics: Metrics) -> None:
    told = ledger(metrics, TIER_READY)
    gauge = metrics.gauge(TIER_READY, *INT8)
    found = []
    for value in (0, 0, 1, 1, 0):
        gauge.set(value)
        found.append([move.value for move in moves(told)])
    assert found == [[0], [], [1], [], [0]]
    gauge.set(1)
    assert moves(told) == [Move(TIER_READY, 1, (*INT8, "W-9000-m_1"))]


def test_gauge_that_is_read_on_demand_is_not_read_when_gauges_are_not_asked_for(metrics: Metrics) -> None:
    reads: list[float] = []

    def read() -> float:
        reads.append(7.0)
        return 7.0

    metrics.gauge(STORE_BYTES).set_function(read)
    told = ledger(metrics, STORE_BYTES)

    assert moves(told, gauges=False) == []
    assert not reads
    assert moves(told) == [Move(STORE_BYTES, 7, ("W-9000-m_1",))]


def test_gauge_without_a_finite_value_is_not_told(metrics: Metrics) -> None:
    metrics.gauge(TIER_QUALITY, *INT8, "cosine").set(float("nan"))
    metrics.gauge(TIER_QUALITY, *INT8, "accuracy").set(float("inf"))
    assert moves(ledger(metrics, TIER_QUALITY)) == []


def test_histogram_is_told_by_single_observations_of_each_tier(metrics: Metrics) -> None:
    told = ledger(metrics, REQUEST_SECONDS, QUEUE_SECONDS)
    metrics.histogram(REQUEST_SECONDS, *DENSE).observe(0.003)
    metrics.histogram(REQUEST_SECONDS, *INT8).observe(0.04)
    metrics.histogram(QUEUE_SECONDS, *INT8).observe(0.0)

    found = {(move.metric, move.dimensions): move.value for move in moves(told)}
    assert found == {
        (REQUEST_SECONDS, DENSE): pytest.approx(0.003),
        (REQUEST_SECONDS, INT8): pytest.approx(0.04),
        (QUEUE_SECONDS, INT8): pytest.approx(0.0, abs=1e-9),
    }
    assert moves(told) == []

    metrics.histogram(REQUEST_SECONDS, *INT8).observe(0.02)
    (move,) = moves(told)
    assert (move.metric, move.dimensions) == (REQUEST_SECONDS, INT8)
    assert move.value == pytest.approx(0.02)


def test_only_what_is_carried_is_told(metrics: Metrics) -> None:
    metrics.counter(REQUESTS, *DENSE, "OK").inc()
    assert moves(ledger(metrics, TIER_READY)) == []


def test_sum_is_made_up_for_when_a_value_was_in_it_before_it_was_in_its_bucket(metrics: Metrics) -> None:
    told = ledger(metrics, REQUEST_SECONDS)
    histogram = metrics.histogram(REQUEST_SECONDS, *DENSE)
    histogram.observe(0.003)
    histogram._sum.inc(0.004)  # the first half of an observation
    found = [move.value for move in moves(told)]
    histogram._buckets[bisect_left(BOUNDS, 0.004)].inc(1)
    found += [move.value for move in moves(told)]
    histogram.observe(0.0045)
    found += [move.value for move in moves(told)]
    assert len(found) == 3
    assert sum(found) == pytest.approx(0.0115)


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=50))
def test_observations_have_the_same_buckets_and_the_same_sum(values: list[float]) -> None:
    counts = [0] * (len(BOUNDS) + 1)
    for value in values:
        counts[bisect_left(BOUNDS, value)] += 1

    found = observations(counts, BOUNDS, total=sum(values))

    assert Counter(bisect_left(BOUNDS, value) for value in found) == Counter(
        bisect_left(BOUNDS, value) for value in values
    )
    # What lies at a bucket's very beginning is told as a trace more.
    assert sum(found) == pytest.approx(sum(values), rel=1e-4, abs=1e-6)


def test_single_observation_is_told_as_it_was() -> None:
    for value in (0.0001, 0.0031, 0.08, 7.7, 29.0, 1234.5):
        counts = [0] * (len(BOUNDS) + 1)
        counts[bisect_left(BOUNDS, value)] = 1
        assert observations(counts, BOUNDS, total=value) == [pytest.approx(value, rel=1e-9)]


def test_observations_stay_in_their_buckets_when_the_sum_does_not_fit() -> None:
    counts = [0, 2] + [0] * (len(BOUNDS) - 1)
    for total in (0.0, 1.0):
        assert all(BOUNDS[0] < value <= BOUNDS[1] for value in observations(counts, BOUNDS, total=total))
