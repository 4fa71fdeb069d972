from prometheus_client import Gauge, Histogram

from serveprune.models.registry import Model
from serveprune.observability import metrics as series
from serveprune.observability.metrics import Metrics
from serveprune.scheduling.job import Executable
from serveprune.scheduling.scheduler import Drop


class BatchSeries:
    """What the scheduler tells of batches, in the series of their variants. Thread-safe."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._rows: dict[tuple[str, str, str], Histogram] = {}
        self._corrections: dict[tuple[str, str, str], Gauge] = {}

    def expect(self, model: Model) -> None:
        """Make the series of a model's tiers, before the first batch of any."""
        for tier in model.config.tiers:
            identity = (*model.key, tier)
            self._rows[identity] = self._metrics.histogram(series.BATCH_ROWS, *identity)
            self._corrections[identity] = self._metrics.gauge(series.TIER_LATENCY_CORRECTION, *identity)

    def ran(self, executable: Executable, rows: int) -> None:
        """Note a batch of so many rows."""
        self._rows[executable.identity].observe(rows)
        self._corrections[executable.identity].set(executable.latency.correction)

    def dropped(self, executable: Executable, reason: Drop) -> None:
        """Note a request that was not computed."""
        self._metrics.counter(series.DROPPED, *executable.identity, reason).inc()
