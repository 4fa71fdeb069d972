from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serveprune.oip.tensor import Array

_AXIS = 1


@dataclass(frozen=True, slots=True)
class Padding:
    """How rows of different length share a run of one graph.

    Attributes:
        values: Graph input ``(N, L, ...)`` -> what lengthens its axis 1 without changing the answers, because a mask
            among them says so.
        outputs: Graph outputs ``(N, L, ...)``, which are as long as the inputs and are cut back.
    """

    values: Mapping[str, int]
    outputs: frozenset[str]

    def length_of(self, feeds: Mapping[str, Array]) -> int | None:
        """Return the length of the rows of one request; ``None`` where its inputs disagree."""
        lengths = {feeds[name].shape[_AXIS] for name in self.values}
        return lengths.pop() if len(lengths) == 1 else None


def stack(arrays: Sequence[Array], *, length: int | None = None, value: int = 0) -> Array:
    """Join rows, ``(n, l, ...)`` each, to ``(sum of n, length, ...)``, every array copied once.

    Args:
        arrays: With equal sizes on all other axes.
        length: Of axis 1 of the result; ``None`` where all arrays are equally long.
        value: Fills what is missing.
    """
    if length is None or all(array.shape[_AXIS] == length for array in arrays):
        return np.concatenate(arrays)
    first = arrays[0]
    rows = sum(len(array) for array in arrays)
    joined = np.full((rows, length, *first.shape[_AXIS + 1 :]), value, dtype=first.dtype)
    start = 0
    for array in arrays:
        stop = start + len(array)
        joined[start:stop, : array.shape[_AXIS]] = array
        start = stop
    return joined


def cut(array: Array, length: int) -> Array:
    """Return an output ``(n, L, ...)`` without what padding added to it."""
    return array[:, :length]
