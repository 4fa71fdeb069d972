from bisect import bisect_left

from prometheus_client import Counter, Gauge, Histogram


class Tally:
    """Moves of series, made together: those of a batch cost little more than those of one request. Not thread-safe.

    To move a series takes a lock, and where several processes share it a write to a file.
    """

    __slots__ = ("_counted", "_observed")

    def __init__(self) -> None:
        self._counted: dict[Counter | Gauge, int] = {}
        self._observed: dict[Histogram, list[float]] = {}

    def count(self, series: Counter | Gauge, amount: int = 1) -> None:
        """Have a series move by so much; a gauge may also fall."""
        self._counted[series] = self._counted.get(series, 0) + amount

    def observe(self, series: Histogram, value: float) -> None:
        """Have a value observed."""
        values = self._observed.get(series)
        if values is None:
            self._observed[series] = [value]
        else:
            values.append(value)

    def apply(self) -> None:
        """Make all moves, and begin anew."""
        if self._counted:
            for series, amount in self._counted.items():
                series.inc(amount)
            self._counted = {}
        if self._observed:
            for histogram, values in self._observed.items():
                _observe(histogram, values)
            self._observed = {}


def _observe(histogram: Histogram, values: list[float]) -> None:
    if len(values) == 1:
        histogram.observe(values[0])
        return
    # What the library does for each value, which it has no public way to do for several.
    found: dict[int, int] = {}
    for value in values:
        index = bisect_left(histogram._upper_bounds, value)
        found[index] = found.get(index, 0) + 1
    histogram._sum.inc(sum(values))
    for index, amount in found.items():
        histogram._buckets[index].inc(amount)
