import threading
from bisect import bisect_left

from serveprune.rollouts.latency_counts import LatencyCounts
from serveprune.rollouts.window import Agreements, Counts


class Side:
    """Counts how the requests of one side of a rollout end, until somebody takes the counts. Thread-safe."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """Start at zero.

        Args:
            bounds: Seconds; see `latency_bounds`.
        """
        self._bounds = bounds
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._latencies = [0] * (len(self._bounds) + 1)
        self._errors = 0
        self._agreements = Agreements()

    def answered(self, seconds: float) -> None:
        """Count a request that was answered so long after it came."""
        index = bisect_left(self._bounds, seconds)
        with self._lock:
            self._latencies[index] += 1

    def failed(self) -> None:
        """Count a request that failed by the server's fault."""
        with self._lock:
            self._errors += 1

    def compared(self, agreement: float) -> None:
        """Count how far an answer agreed with that of another tier; 1 is the same answer."""
        with self._lock:
            self._agreements += Agreements(1, agreement, agreement * agreement)

    def take(self) -> Counts:
        """Return the counts since the last call."""
        with self._lock:
            taken = Counts(self._errors, LatencyCounts(self._bounds, tuple(self._latencies)), self._agreements)
            self._begin()
        return taken
