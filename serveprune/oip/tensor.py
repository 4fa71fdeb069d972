from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serveprune.oip.datatype import Datatype

Array = NDArray[Any]

DYNAMIC = -1
"""Size of an axis that each request chooses."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, element type and shape of a model's input or output; ``-1`` is a dynamic axis."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Tell whether a tensor of this shape fits: the same rank, and equal sizes on static axes."""
        if len(shape) != len(self.shape):
            return False
        # A loop, for a generator costs more than all the rest, and this is asked of every input.
        for want, got in zip(self.shape, shape, strict=True):  # noqa: SIM110
            if want not in (DYNAMIC, got):
                return False
        return True


@dataclass(slots=True)
class Tensor:
    """A named array; BYTES elements are ``bytes`` objects, BF16 elements uint16 bit patterns."""

    name: str
    datatype: Datatype
    array: Array

    @classmethod
    def of(cls, name: str, array: Array) -> "Tensor":
        """Wrap an array under the datatype its dtype has in the protocol."""
        return cls(name, Datatype.of(array.dtype), np.asarray(array))

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of all axes."""
        return self.array.shape

    @property
    def size_bytes(self) -> int:
        """Memory of the elements, those of BYTES included."""
        size: int = self.array.nbytes
        if self.datatype is Datatype.BYTES:
            return size + sum(map(len, self.array.flat))
        return size
