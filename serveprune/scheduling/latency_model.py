import math
import threading
import time
from collections.abc import Callable

from serveprune.scheduling.latency_table import LatencyTable

_WEIGHT = 0.1
"""Of the newest observation: about twenty batches show that the machine has become slower."""

_FORGETTING_SECONDS = 10.0
"""After so long without an observation, half of what was learned since the table was measured is forgotten: a tier
that nobody is sent to because it was slow once would otherwise never be tried again."""

_CORRECTION_SECONDS = 0.01
"""As long as that the correction is not computed anew: it is asked for several times per request."""

_MOST_CORRECTION = 8.0
_UNOBSERVED_SPREAD = 0.1


class LatencyModel:
    """What a variant's batches will take: measured when it was loaded, corrected by what is observed. Thread-safe.

    The correction is one factor, the running geometric mean of observed over measured, with its mean deviation, as
    TCP keeps its round trip time (RFC 6298).
    """

    def __init__(self, table: LatencyTable, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._table = table
        self._clock = clock
        self._lock = threading.Lock()
        self._log_factor = 0.0
        self._spread = _UNOBSERVED_SPREAD
        self._observed_at: float | None = None
        self._correction = -math.inf, 1.0

    @property
    def table(self) -> LatencyTable:
        """What was measured at load, without correction."""
        return self._table

    @property
    def correction(self) -> float:
        """Observed seconds divided by measured ones, as of now; 1 where nothing was observed lately."""
        now = self._clock()
        computed_at, correction = self._correction
        if not 0.0 <= now - computed_at < _CORRECTION_SECONDS:
            correction = math.exp(self._log_factor * self._memory())
            self._correction = now, correction
        return correction

    def expected_seconds(self, rows: int, length: int) -> float:
        """Return what a batch will take, more or less."""
        return self._table.seconds(rows, length) * self.correction

    def estimate(self) -> Callable[[int, int], float]:
        """Return `expected_seconds` as of now, for many sizes at once."""
        table, correction = self._table, self.correction
        return lambda rows, length: table.seconds(rows, length) * correction

    def safe_seconds(self, rows: int, length: int) -> float:
        """Return what a batch will hardly exceed: two mean deviations more than expected."""
        spread = _UNOBSERVED_SPREAD + (self._spread - _UNOBSERVED_SPREAD) * self._memory()
        return self.expected_seconds(rows, length) * math.exp(2 * spread)

    def costs(self, rows: int, length: int) -> tuple[float, float]:
        """Return what rows will take by themselves, and what they add to batches that are as large as it pays."""
        correction = self.correction
        alone, added = self._table.costs(rows, length)
        return alone * correction, added * correction

    def worthwhile_rows(self, length: int) -> int:
        """Return the rows from which on larger batches bring no more rows a second to speak of."""
        return self._table.worthwhile_rows(length)

    def observe(self, rows: int, length: int, seconds: float) -> None:
        """Learn what a batch has taken."""
        measured = self._table.seconds(rows, length)
        with self._lock:
            if measured <= 0:
                # Nothing could be measured at load; the first answer is the first measurement.
                self._table = LatencyTable({(rows, length): seconds})
                return
            ratio = min(max(seconds / measured, 1 / _MOST_CORRECTION), _MOST_CORRECTION)
            memory = self._memory()
            current = self._log_factor * memory
            spread = _UNOBSERVED_SPREAD + (self._spread - _UNOBSERVED_SPREAD) * memory
            surprise = math.log(ratio) - current
            self._spread = spread + _WEIGHT * (abs(surprise) - spread)
            self._log_factor = current + _WEIGHT * surprise
            self._observed_at = self._clock()
            self._correction = -math.inf, 1.0

    def _memory(self) -> float:
        """Return how much of the correction still counts, from 1 down to 0."""
        if self._observed_at is None:
            return 1.0
        unobserved = self._clock() - self._observed_at
        return 1.0 if unobserved <= 0 else 0.5 ** (unobserved / _FORGETTING_SECONDS)
