from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import DYNAMIC, Array, TensorSpec


@dataclass(slots=True)
class DatasetContent:
    """What a reader found in a file: samples, what is known about them, and everything that is wrong."""

    samples: list[Mapping[str, Array]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    pairs: list[tuple[int, int, float]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Misfit(ValueError):
    """An array does not fit a graph input; the message says what was expected and what came."""


def fitted(array: Array, spec: TensorSpec, *, batched: bool) -> Array:
    """Return the array in the input's own type.

    Numbers may change their type where their value survives: any to a float, integers to integers that hold
    them, 0 and 1 to booleans.

    Args:
        array: With the batch axis first, or one sample without it.
        spec: The graph input; axis 0 is the batch.
        batched: Whether the array has the batch axis.

    Raises:
        Misfit: Wrong type, wrong shape, or a value that is not finite or does not fit the type.
    """
    wanted = (DYNAMIC, *spec.shape[1:]) if batched else spec.shape[1:]
    if not TensorSpec(spec.name, spec.datatype, wanted).accepts(array.shape) or not spec.shape:
        raise Misfit(f"expected {spec.datatype} {_sizes(wanted)}, got {array.dtype} {_sizes(array.shape)}")
    if spec.datatype is Datatype.BYTES or array.dtype.kind not in "biuf":
        raise Misfit(f"expected numbers ({spec.datatype}), got {array.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        converted: Array = array.astype(spec.datatype.dtype, copy=False)
        lossless = converted.dtype.kind == "f" or bool(
            array.dtype.kind != "f" and np.array_equal(converted.astype(array.dtype), array)
        )
    if not lossless:
        raise Misfit(f"expected {spec.datatype}, got {array.dtype} values that do not fit")
    if converted.dtype.kind == "f" and not np.isfinite(converted).all():
        raise Misfit("expected finite numbers, got NaN or infinity")
    return converted


def class_number(value: Any) -> int:
    """Return a label as an integer.

    Raises:
        Misfit: It is not a whole number from 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise Misfit(f"expected a whole number from 0, got {value!r}")
    return int(value)


def _sizes(shape: tuple[int, ...]) -> str:
    return f"({', '.join('*' if size == DYNAMIC else str(size) for size in shape)})"
