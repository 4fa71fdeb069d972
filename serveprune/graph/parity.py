from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serveprune.backends.protocol import Session
from serveprune.errors import BuildFailed, ServePruneError
from serveprune.oip.tensor import Array

MAX_RELATIVE_ERROR = 1e-3
"""Largest difference between source and graph, relative to the largest value of the output."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Example inputs with what the source framework computes from them.

    Attributes:
        feeds: Input name -> array.
        outputs: Arrays in the order of the graph's outputs.
    """

    feeds: Mapping[str, Array]
    outputs: Sequence[Array]


def measure_parity(session: Session, references: Sequence[Reference], *, label: str) -> float:
    """Return the largest absolute difference between the graph's outputs and the source framework's.

    Args:
        session: The exported graph, loaded.
        references: At least one.
        label: How messages name the source.

    Raises:
        BuildFailed: The graph does not take an input the source takes, or answers differently.
    """
    worst = 0.0
    for reference in references:
        shapes = ", ".join(f"{name} {list(feed.shape)}" for name, feed in reference.feeds.items())
        try:
            results = session.run(reference.feeds)
        except ServePruneError as error:
            raise BuildFailed(
                f"{label}: the exported graph does not take {shapes}, which the source takes; "
                f"an axis was fixed during export: {error.message}"
            ) from error
        for spec, expected, got in zip(session.outputs, reference.outputs, results, strict=True):
            worst = max(worst, _difference(expected, got, where=f"{label}: output {spec.name!r} for {shapes}"))
    return worst


def _difference(expected: Array, got: Array, *, where: str) -> float:
    if expected.shape != got.shape:
        raise BuildFailed(
            f"{where}: the source gives shape {list(expected.shape)}, the exported graph {list(got.shape)}"
        )
    if expected.size == 0:
        return 0.0
    reference, result = expected.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(reference)
    if not np.array_equal(finite, np.isfinite(result)):
        raise BuildFailed(f"{where}: the source and the exported graph disagree on which values are finite")
    if not finite.any():
        return 0.0
    error = float(np.abs(reference[finite] - result[finite]).max())
    scale = float(np.abs(reference[finite]).max())
    # An output of zeros has no scale of its own; float32 rounding is then what can be asked for.
    if error > MAX_RELATIVE_ERROR * max(scale, 1e-3):
        raise BuildFailed(
            f"{where}: the exported graph differs from the source by {error:.3g} at a scale of {scale:.3g}; "
            f"expected at most {MAX_RELATIVE_ERROR:g} of the scale"
        )
    return error
