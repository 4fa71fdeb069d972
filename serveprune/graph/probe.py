from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from serveprune.errors import InvalidArgument
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import Array

AXIS_SIZES = ((5, 9), (32, 64), (224, 256))
"""Pairs of sizes for dynamic axes other than batch, tried in this order until the model takes them:
short sequences first, then images that survive several halvings."""

BATCHES = (1, 3)
"""Batch sizes that together show whether the batch axis is really dynamic."""


@dataclass(frozen=True, slots=True)
class ProbeInput:
    """One input of a model that inputs are made up for.

    Attributes:
        shape: Sizes; a name stands for a dynamic axis, and equal names for equal sizes. The first is batch.
    """

    name: str
    datatype: Datatype
    shape: tuple[int | str, ...]


def generate_feeds(inputs: Sequence[ProbeInput], *, batch: int, size: int, seed: int = 0) -> dict[str, Array]:
    """Make up one feed per input: floats from a normal distribution, integers 0 or 1, which index any table.

    Args:
        inputs: What to make up.
        batch: Size of every dynamic first axis.
        size: Size of the first other dynamic axis; further ones get its multiples, so no two agree by chance.
        seed: The same seed gives the same feeds.
    """
    sizes = axis_assignment([value.shape for value in inputs], batch=batch, size=size)
    generator = np.random.default_rng(seed)
    return {value.name: _elements(generator, value, sizes) for value in inputs}


def axis_assignment(shapes: Iterable[tuple[int | str, ...]], *, batch: int, size: int) -> dict[str, int]:
    """Give every named axis a size; see `generate_feeds`."""
    shapes = tuple(shapes)
    sizes = {shape[0]: batch for shape in shapes if shape and isinstance(shape[0], str)}
    for shape in shapes:
        for axis in shape:
            if isinstance(axis, str) and axis not in sizes:
                others = len(sizes) - len({shape[0] for shape in shapes if shape and isinstance(shape[0], str)})
                sizes[axis] = size * (others + 1)
    return sizes


def _elements(generator: np.random.Generator, value: ProbeInput, sizes: dict[str, int]) -> Array:
    shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in value.shape)
    dtype = value.datatype.dtype
    if value.datatype is Datatype.BF16:
        raise InvalidArgument(f"{value.name}: datatype BF16 cannot be a model input; expected FP32 or FP16")
    if value.datatype is Datatype.BYTES:
        return np.full(shape, "a", dtype=object)
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(0, 2, shape).astype(dtype)
