"""Unit ids of the axes of one value, and how operators move them."""

import math
from collections.abc import Sequence

import numpy as np

from serveprune.compression.pruning.units import Ids

Axes = tuple[Ids | None, ...]
"""Per axis the unit of each position; ``None`` where nothing can be removed (dynamic, spatial, pinned by nature)."""


def reshape_runs(before: Sequence[int], after: Sequence[int]) -> list[tuple[range, range]]:
    """Split a reshape into the smallest runs of input axes and output axes that hold the same elements.

    ``(2, 5, 12) -> (2, 5, 3, 4)`` gives ``0|0, 1|1, 2|2..3``. Axes of size 1 join the run before them.
    """
    found: list[tuple[range, range]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        start_i, start_j = i, j
        left = before[i] if i < len(before) else 1
        right = after[j] if j < len(after) else 1
        i, j = min(i + 1, len(before)), min(j + 1, len(after))
        while left != right:
            if left < right:
                left *= before[i]
                i += 1
            else:
                right *= after[j]
                j += 1
        # Sizes of 1 change nothing, so they go with the run they follow.
        while i < len(before) and before[i] == 1 and not (j < len(after) and after[j] == 1):
            i += 1
        while j < len(after) and after[j] == 1 and not (i < len(before) and before[i] == 1):
            j += 1
        found.append((range(start_i, i), range(start_j, j)))
    return found


def strides(sizes: Sequence[int]) -> list[int]:
    """Return how many positions of the joined axis one step along each axis is."""
    return [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]


def positions(sizes: Sequence[int], axis: int) -> Ids:
    """Return for every position of the joined axis the position along one of the axes it was joined from."""
    return (np.arange(math.prod(sizes)) // strides(sizes)[axis]) % sizes[axis]
