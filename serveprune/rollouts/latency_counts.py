import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

_SHORTEST_SECONDS = 1e-4
_PER_DOUBLING = 8
_DOUBLINGS = 20


def latency_bounds(*exact_seconds: float) -> tuple[float, ...]:
    """Return upper bounds of latency buckets: 0.1 ms to 105 s, each 9 % above the one before.

    Args:
        exact_seconds: Bounds that are there as well, so that what is slower than them is known exactly.
    """
    steps = range(_PER_DOUBLING * _DOUBLINGS + 1)
    return tuple(sorted({_SHORTEST_SECONDS * 2 ** (step / _PER_DOUBLING) for step in steps} | {*exact_seconds}))


@dataclass(frozen=True, slots=True)
class LatencyCounts:
    """How many answers took how long.

    Attributes:
        bounds: Seconds, rising; see `latency_bounds`.
        counts: One more than there are bounds: answers that took no longer than the bound of this index, and longer
            than the bound before; the last ones took longer than all bounds.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, seconds: Sequence[float], bounds: tuple[float, ...]) -> "LatencyCounts":
        """Count these latencies."""
        counts = [0] * (len(bounds) + 1)
        for each in seconds:
            counts[bisect_left(bounds, each)] += 1
        return cls(bounds, tuple(counts))

    @property
    def total(self) -> int:
        """All answers."""
        return sum(self.counts)

    def slower_than(self, seconds: float) -> int:
        """Return how many answers are known to have taken longer: exactly how many if it is a bound, else fewer."""
        return sum(self.counts[bisect_left(self.bounds, seconds) + 1 :])

    def __add__(self, other: "LatencyCounts") -> "LatencyCounts":
        assert self.bounds == other.bounds
        return LatencyCounts(self.bounds, tuple(map(sum, zip(self.counts, other.counts, strict=True))))

    def upper_bounds(self) -> list[tuple[float, int]]:
        """Return each bound with the number of answers that took longer."""
        slower, found = self.total, []
        for bound, count in zip(self.bounds, self.counts, strict=False):
            slower -= count
            found.append((bound, slower))
        return [*found, (math.inf, 0)]
