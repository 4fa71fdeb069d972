"""Seconds of a batch by its rows and the length of each, as they were measured. Pure."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_WORTHWHILE = 1.03
"""A batch is as large as it pays: beyond it a row gets no cheaper than by this factor."""

_RUN_SECONDS = 0.0002
"""What a run costs the server beside its compute: batches of quick graphs pay for that alone."""

_MOST_KNOWN = 4096
"""Sizes that are looked up rather than interpolated again."""


@dataclass(frozen=True, slots=True)
class _Curve:
    """Seconds by rows for rows of one length; both ascend."""

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, rows: int) -> float:
        index = bisect_left(self.rows, rows)
        if index < len(self.rows) and self.rows[index] == rows:
            return self.seconds[index]
        if len(self.rows) == 1:
            return self.seconds[0] * rows / self.rows[0]
        # Outside of what was measured the nearest two points say how it goes on.
        right = min(max(index, 1), len(self.rows) - 1)
        return max(_line(self.rows, self.seconds, right, rows), 0.0)


class LatencyTable:
    """What a variant's batches take: linear between the points that were measured, and beyond them.

    Longer batches never take less: noise that says so is smoothed away.
    """

    def __init__(self, measured: Mapping[tuple[int, int], float]) -> None:
        """Take measurements.

        Args:
            measured: ``(rows, length)`` -> seconds; empty where nothing is known, and then everything takes none.
        """
        by_length: dict[int, dict[int, float]] = {}
        for (rows, length), seconds in sorted(measured.items()):
            by_length.setdefault(max(length, 1), {})[rows] = seconds
        self._lengths = tuple(by_length)
        self._curves = tuple(_curve(points) for points in by_length.values())
        self._worthwhile = tuple(map(_worthwhile_rows, self._curves))
        self.measured = dict(sorted(measured.items()))
        self._known: dict[tuple[int, int], float] = {}
        self._known_costs: dict[tuple[int, int], tuple[float, float]] = {}

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths that were measured, ascending."""
        return self._lengths

    def length_near(self, length: int) -> int:
        """Return the measured length nearest to this one; 1 where nothing was measured."""
        return min(self._lengths, key=lambda measured: abs(measured - length), default=1)

    def rows(self, length: int) -> tuple[int, ...]:
        """Return the rows that were measured at a measured length, ascending."""
        return tuple(rows for rows, measured in self.measured if measured == length)

    def seconds(self, rows: int, length: int) -> float:
        """Return what a batch takes."""
        known = self._known.get((rows, length))
        if known is None:
            known = self._interpolated(rows, length)
            if len(self._known) < _MOST_KNOWN:
                self._known[rows, length] = known
        return known

    def costs(self, rows: int, length: int) -> tuple[float, float]:
        """Return what rows take by themselves, and what they add to batches that are as large as it pays."""
        known = self._known_costs.get((rows, length))
        if known is None:
            together = self.worthwhile_rows(length)
            known = self.seconds(rows, length), self.seconds(together, length) * rows / together
            if len(self._known_costs) < _MOST_KNOWN:
                self._known_costs[rows, length] = known
        return known

    def quick_rows(self, length: int, *, seconds: float) -> int:
        """Return the most rows, of those that were measured, that take no longer than so long; at least 1."""
        if not self._curves:
            return 1
        quick = (rows for rows in self.rows(self.length_near(length)) if self.seconds(rows, length) <= seconds)
        return max(quick, default=1)

    def _interpolated(self, rows: int, length: int) -> float:
        if not self._curves:
            return 0.0
        if len(self._lengths) == 1:
            # One size was measured; others take as much more as they have more elements.
            return self._curves[0].at(rows) * length / self._lengths[0]
        right = min(max(bisect_left(self._lengths, length), 1), len(self._lengths) - 1)
        around = [curve.at(rows) for curve in self._curves[right - 1 : right + 1]]
        shorter, longer = self._lengths[right - 1 : right + 1]
        if length > longer:
            # The line through two noisy points may lead anywhere; at least as many elements more are computed.
            return around[1] * length / longer
        if length < shorter:
            return around[0]
        return around[0] + (around[1] - around[0]) * (length - shorter) / (longer - shorter)

    def worthwhile_rows(self, length: int) -> int:
        """Return the rows from which on larger batches bring no more rows a second to speak of."""
        if not self._curves:
            return 1
        return self._worthwhile[min(bisect_left(self._lengths, length), len(self._lengths) - 1)]


def _curve(points: Mapping[int, float]) -> _Curve:
    seconds: list[float] = []
    for value in points.values():
        seconds.append(max(value, seconds[-1] if seconds else 0.0))
    return _Curve(tuple(points), tuple(seconds))


def _worthwhile_rows(curve: _Curve) -> int:
    each = [(seconds + _RUN_SECONDS) / rows for rows, seconds in zip(curve.rows, curve.seconds, strict=True)]
    return next(rows for rows, cost in zip(curve.rows, each, strict=True) if cost <= min(each) * _WORTHWHILE)


def _line(places: Sequence[int], values: Sequence[float], right: int, place: int) -> float:
    """Return the height at ``place`` of the line through two neighbouring points, the second at ``right``."""
    before, after = places[right - 1], places[right]
    slope = (values[right] - values[right - 1]) / (after - before)
    return values[right - 1] + slope * (place - before)
