"""Arrays by sample, in memory up to a limit and then in a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serveprune.oip.tensor import Array

MOST_HELD_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the arrays of one sample are in the file, one after the other."""

    offset: int
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]


class HeldSamples:
    """A few arrays for each sample, of any shapes; each sample is put once."""

    def __init__(self, file: Path, *, most_bytes: int = MOST_HELD_BYTES) -> None:
        """Hold nothing yet.

        Args:
            file: For what does not fit in memory; its folder is removed by whoever made it.
            most_bytes: Of memory.
        """
        self._path = file
        self._most_bytes = most_bytes
        self._bytes = 0
        self._held: dict[int, tuple[Array, ...] | _Place] = {}
        self._offset = 0

    def put(self, index: int, arrays: Sequence[Array]) -> None:
        """Take in the arrays of a sample."""
        # A slice would keep the whole batch it is from.
        own = tuple(np.array(array, order="C") for array in arrays)
        size = sum(array.nbytes for array in own)
        if self._bytes + size <= self._most_bytes:
            self._bytes += size
            self._held[index] = own
            return
        with self._path.open("ab") as file:
            for array in own:
                file.write(array.data)
        shapes, dtypes = tuple(array.shape for array in own), tuple(array.dtype for array in own)
        self._held[index] = _Place(self._offset, shapes, dtypes)
        self._offset += size

    def get(self, index: int) -> tuple[Array, ...]:
        """Return the arrays of a sample, which must not be changed."""
        found = self._held[index]
        if not isinstance(found, _Place):
            return found
        arrays = []
        # Read, not mapped: mapped pages would count as this process's memory.
        with self._path.open("rb") as file:
            file.seek(found.offset)
            for shape, dtype in zip(found.shapes, found.dtypes, strict=True):
                count = int(np.prod(shape, dtype=np.int64))
                arrays.append(np.fromfile(file, dtype, count).reshape(shape))
        return tuple(arrays)
