"""What is to be told to TorchServe of our series, so that its own endpoint shows them (pure).

It adds up what all workers of a host tell: of counters the increases, and of histograms each single observation.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client.samples import Sample

from serveprune.observability.metrics import Metric, Metrics

_LEAST_SHARE = 1e-6
"""Of a bucket's width: what lies at its lower bound is in the bucket below."""


@dataclass(frozen=True, slots=True)
class Move:
    """One thing to be told.

    Attributes:
        value: Of a counter by how much it rose, of a gauge what it is, of a histogram what was observed.
        dimensions: In the order of `metrics_file.dimensions`.
    """

    metric: Metric
    value: float
    dimensions: tuple[str, ...]


@dataclass(slots=True)
class _Observed:
    """What a histogram has observed with the same labels: how many in each bucket, and their sum."""

    counts: list[int]
    total: float = 0.0


@dataclass(slots=True)
class _Told:
    """What TorchServe knows of this worker, by metric and labels."""

    values: dict[tuple[Metric, tuple[str, ...]], float] = field(default_factory=dict)
    observed: dict[tuple[Metric, tuple[str, ...]], _Observed] = field(default_factory=dict)


class Ledger:
    """Finds what has moved since it was last asked. Not thread-safe; the series may move meanwhile."""

    def __init__(self, metrics: Metrics, carried: Iterable[Metric], *, worker: str) -> None:
        """Begin with nothing told.

        Args:
            metrics: The live series.
            carried: Those that are told.
            worker: Dimension of gauges.
        """
        self._metrics = metrics
        self._carried = tuple(carried)
        self._worker = worker
        self._told = _Told()

    def moves(self, *, gauges: bool = True) -> Iterator[Move]:
        """Yield what has moved, which counts as told then. A series that is new is told even if it stands at 0.

        Args:
            gauges: Whether those are looked at, some of which cost more.
        """
        for metric in self._carried:
            match metric.kind:
                case "counter":
                    yield from self._increases(metric)
                case "histogram":
                    yield from self._observations(metric)
        if gauges:
            for metric in self._carried:
                if metric.kind == "gauge":
                    yield from self._changes(metric)

    def _increases(self, metric: Metric) -> Iterator[Move]:
        told = self._told.values
        for sample in _samples(self._metrics.counter(metric).collect()):
            key = metric, _labels(metric, sample)
            before = told.get(key)
            if before is None or sample.value > before:
                told[key] = sample.value
                yield Move(metric, sample.value - (before or 0.0), key[1])

    def _changes(self, metric: Metric) -> Iterator[Move]:
        told = self._told.values
        for sample in _samples(self._metrics.gauge(metric).collect()):
            key = metric, _labels(metric, sample)
            # TorchServe's parser knows neither NaN nor infinity.
            if told.get(key) != sample.value and math.isfinite(sample.value):
                told[key] = sample.value
                yield Move(metric, sample.value, (*key[1], self._worker))

    def _observations(self, metric: Metric) -> Iterator[Move]:
        for labels, now in _children(metric, _samples(self._metrics.histogram(metric).collect())):
            told = self._told.observed.setdefault((metric, labels), _Observed([0] * len(now.counts)))
            new = [count - before for count, before in zip(now.counts, told.counts, strict=True)]
            if not any(new):
                continue
            told.counts = now.counts
            for value in observations(new, metric.buckets, total=now.total - told.total):
                # Not simply what it is now: a value may be in the sum and not yet in its bucket.
                told.total += value
                yield Move(metric, value, labels)


def observations(counts: Sequence[int], bounds: Sequence[float], *, total: float) -> list[float]:
    """Return values that lie in buckets as often as those were observed, and have the same sum.

    A single value is the one that was observed. Several stand at the same share of their bucket's width each.

    Args:
        counts: Of each bucket, and of what is beyond the last bound.
        bounds: Upper bounds, ascending and positive; what is equal to one is below it.
        total: Sum of the values, none of which is negative.
    """
    lower = [0.0, *bounds]
    upper = [*bounds, max(total, bounds[-1])]
    least = _product(counts, lower)
    width = _product(counts, upper) - least
    share = min(max((total - least) / width, _LEAST_SHARE), 1.0) if width > 0 else 1.0
    return [
        min(low + share * (high - low), high)
        for count, low, high in zip(counts, lower, upper, strict=True)
        for _ in range(count)
    ]


def _product(counts: Sequence[int], values: Sequence[float]) -> float:
    return math.fsum(count * value for count, value in zip(counts, values, strict=True))


def _samples(families: Iterable[object]) -> list[Sample]:
    return [sample for family in families for sample in family.samples]  # type: ignore[attr-defined]  # no annotations


def _labels(metric: Metric, sample: Sample) -> tuple[str, ...]:
    return tuple(sample.labels[name] for name in metric.labels)


def _children(metric: Metric, samples: Iterable[Sample]) -> Iterator[tuple[tuple[str, ...], _Observed]]:
    """Yield the children of a histogram, with the counts of single buckets."""
    found: dict[tuple[str, ...], _Observed] = {}
    for sample in samples:
        child = found.setdefault(_labels(metric, sample), _Observed([]))
        if sample.name.endswith("_bucket"):
            # A sample counts what is in the buckets below too.
            child.counts.append(int(sample.value) - sum(child.counts))
        elif sample.name.endswith("_sum"):
            child.total = sample.value
    yield from found.items()
