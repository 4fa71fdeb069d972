from pathlib import Path

import pytest
from prometheus_client import generate_latest

from serveprune.observability import metrics as series
from serveprune.observability.metrics import Metrics
from serveprune.observability.shared_values import values_shared
from serveprune.observability.tally import Tally

LABELS = ("m", "1", "dense")
SECONDS = (0.0, 0.0004, 0.001, 0.0011, 0.02, 3.0, 1e6)


def moved(metrics: Metrics, *, together: bool) -> bytes:
    counter, gauge = metrics.counter(series.REQUESTED_TIER, *LABELS), metrics.gauge(series.IN_FLIGHT, "m", "1")
    histogram = metrics.histogram(series.QUEUE_SECONDS, *LABELS)
    if together:
        tally = Tally()
        for seconds in SECONDS:
            tally.count(counter)
            tally.count(gauge, 2)
            tally.count(gauge, -1)
            tally.observe(histogram, seconds)
        tally.apply()
        tally.apply()
    else:
        for seconds in SECONDS:
            counter.inc()
            gauge.inc()
            histogram.observe(seconds)
    kept = [line for line in generate_latest(metrics.registry).splitlines() if not line.startswith(b"process_")]
    return b"\n".join(kept)


@pytest.mark.parametrize("shared", [False, True])
def test_moves_made_together_are_those_made_one_by_one(tmp_path: Path, shared: bool) -> None:
    """In one process, and where several keep their values in files."""
    if not shared:
        assert moved(Metrics(), together=True) == moved(Metrics(), together=False)
        return
    shown = []
    for together in (True, False):
        folder = tmp_path / str(together)
        folder.mkdir()
        with values_shared(folder, process="a"):
            shown.append(moved(Metrics(), together=together))
    assert shown[0] == shown[1]


def test_nothing_moves_before_it_is_applied() -> None:
    metrics = Metrics()
    counter = metrics.counter(series.REQUESTED_TIER, *LABELS)
    tally = Tally()
    tally.count(counter)

    assert counter._value.get() == 0
    tally.apply()
    assert counter._value.get() == 1
