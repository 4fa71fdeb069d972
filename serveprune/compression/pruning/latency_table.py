"""Milliseconds by width, interpolated between what was timed. No I/O, no clock."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from serveprune.compression.pruning.cost import Widths
from serveprune.compression.pruning.footprint_cost import FootprintCost

_SAME = 0.02
"""Calibration points whose sums differ by less, relative to dense, are one: between them there is only noise."""


@dataclass(frozen=True, slots=True)
class FragmentTable:
    """Times of one fragment.

    Attributes:
        groups: Indices of the groups it depends on.
        grid: Per group the widths that were timed, ascending; for a fragment with ``work``, one axis: the
            amounts of work.
        milliseconds: One time per point of the grid, rising along every axis.
        work: What stands for the widths where more than two groups meet (a Concat).
    """

    groups: tuple[int, ...]
    grid: tuple[tuple[float, ...], ...]
    milliseconds: NDArray[np.float64]
    work: FootprintCost | None = None

    def value(self, widths: Widths) -> float:
        """Return the time at given widths; 0 where one of them is 0, the block being gone."""
        group = self.groups[0]
        return float(self.along(group, widths=widths, candidates=widths[group : group + 1])[0])

    def along(self, group: int, *, widths: Widths, candidates: Widths) -> NDArray[np.float64]:
        """Return the time for each width one group may take."""
        if not all(widths[other] for other in self.groups if other != group):
            return np.zeros(len(candidates))
        if self.work is not None:
            amounts = self.work.along(group, widths=widths, candidates=candidates)
            times = np.interp(amounts, self.grid[0], self.milliseconds)
        else:
            times = self._interpolate(group, widths, candidates)
        return np.where(candidates > 0, times, 0.0)

    def _interpolate(self, group: int, widths: Widths, candidates: Widths) -> NDArray[np.float64]:
        axis = self.groups.index(group)
        line = self.milliseconds
        if len(self.groups) > 1:
            rows = np.moveaxis(line, axis, 0)
            width = float(widths[self.groups[1 - axis]])
            line = np.array([np.interp(width, self.grid[1 - axis], row) for row in rows])
        return np.interp(candidates.astype(np.float64), self.grid[axis], line)


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Predicts the latency of a model from the widths of its groups; a `CostModel` in summed milliseconds.

    The fragments, timed alone, say how the widths share the time; a few timings of the whole model say what
    their sum is worth there, where runtimes save copies between fragments and add what no fragment holds.

    Attributes:
        fragments: Times of all that depends on widths.
        calibration: Sums of the fragments' times with the milliseconds that the whole model took, both rising.
        dense: The widths before anything is removed.
    """

    fragments: tuple[FragmentTable, ...]
    calibration: tuple[tuple[float, float], ...]
    dense: Widths

    @property
    def dense_ms(self) -> float:
        """Milliseconds of the model before anything is removed."""
        return self.predict(self.dense)

    @property
    def base_ms(self) -> float:
        """Milliseconds that no width changes."""
        return max(self.milliseconds(0.0), 0.0)

    def total(self, widths: Widths) -> float:
        """See `CostModel.total`; `predict` says what it means for the whole model."""
        return sum(fragment.value(widths) for fragment in self.fragments)

    def along(self, group: int, *, widths: Widths, candidates: Widths) -> NDArray[np.float64]:
        """See `CostModel.along`."""
        result = np.full(len(candidates), self.total(widths))
        for fragment in self.fragments:
            if group in fragment.groups:
                result += fragment.along(group, widths=widths, candidates=candidates) - fragment.value(widths)
        return result

    def predict(self, widths: Widths) -> float:
        """Return the milliseconds of one batch at given widths."""
        return self.milliseconds(self.total(widths))

    def budget(self, milliseconds: float) -> float:
        """Return what the fragments may sum up to for the whole model to take so long."""
        sums, measured = np.array(self.calibration).T
        if milliseconds <= measured[0]:
            slope = self._slope(0)
            return float(sums[0] - (measured[0] - milliseconds) / slope) if slope > 0 else float("-inf")
        if milliseconds >= measured[-1]:
            return float("inf")
        return float(np.interp(milliseconds, measured, sums))

    def milliseconds_by_width(self, group: int, *, candidates: Sequence[int]) -> NDArray[np.float64]:
        """Return the milliseconds of the whole model for each width of one group, the others dense."""
        sums = self.along(group, widths=self.dense, candidates=np.array(candidates, np.int64))
        return np.array([self.milliseconds(value) for value in sums.tolist()])

    def corrected(self, widths: Widths, *, measured_ms: float) -> "LatencyTable":
        """Return a table that predicts what was measured at these widths, and as before at dense."""
        total, whole = self.total(widths), self.calibration[-1][0]
        others = [
            point
            for point in self.calibration[:-1]
            if abs(point[0] - total) > _SAME * whole and (point[0] < total) == (point[1] < measured_ms)
        ]
        return replace(self, calibration=tuple(sorted([*others, (total, measured_ms), self.calibration[-1]])))

    def milliseconds(self, total: float) -> float:
        """Return what a sum of the fragments' times means for the whole model."""
        sums, measured = np.array(self.calibration).T
        if total < sums[0]:
            return float(max(measured[0] - self._slope(0) * (sums[0] - total), 0.0))
        return float(np.interp(total, sums, measured))

    def _slope(self, place: int) -> float:
        if len(self.calibration) < 2:
            return 1.0
        (first, low), (second, high) = self.calibration[place : place + 2]
        return (high - low) / (second - first)


def rising(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the nearest times that do not fall along any axis: a wider model is never faster but by noise.

    Pools neighbours that violate the order along one axis after the other (isotonic regression).
    """
    result = times.astype(np.float64)
    for _ in range(3):
        for axis in range(result.ndim):
            result = np.apply_along_axis(_pooled, axis, result)
    for axis in range(result.ndim):
        result = np.maximum.accumulate(result, axis=axis)
    return result


def _pooled(line: NDArray[np.float64]) -> NDArray[np.float64]:
    means: list[float] = []
    counts: list[int] = []
    for value in line.tolist():
        means.append(value)
        counts.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            count = counts[-2] + counts[-1]
            means[-2:] = [(means[-2] * counts[-2] + means[-1] * counts[-1]) / count]
            counts[-2:] = [count]
    return np.repeat(means, counts)
