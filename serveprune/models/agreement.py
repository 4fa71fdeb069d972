"""Whether a backend computes with a graph what the reference backend computes."""

from collections.abc import Mapping

import numpy as np

from serveprune.backends.protocol import Session
from serveprune.errors import FailedPrecondition, ServePruneError
from serveprune.oip.tensor import Array

_TOLERANCE = 0.01
"""Largest difference of two answers, as a part of the largest answer: float16 and integers are rounded differently."""


def require_agreement(session: Session, reference: Session, feeds: Mapping[str, Array], *, backend: str) -> None:
    """Compare the answers of two backends to the same inputs.

    Args:
        session: The graph on the backend in question.
        reference: The same graph on the one it must agree with.
        feeds: What to run both on.
        backend: Name of the backend in question, for messages.

    Raises:
        FailedPrecondition: They answer differently, or one of them does not answer, which shows nothing.
    """
    try:
        expected = reference.run(feeds)
    except ServePruneError as error:
        raise FailedPrecondition(
            f"backend {backend} cannot be compared with ONNX Runtime, which refuses made-up inputs ({error.message}); "
            "set backend: onnxruntime or auto"
        ) from error
    try:
        answers = session.run(feeds)
    except ServePruneError as error:
        raise FailedPrecondition(
            f"backend {backend} fails where ONNX Runtime answers ({error.message}); set backend: onnxruntime"
        ) from error
    for spec, wanted, got in zip(session.outputs, expected, answers, strict=True):
        difference = _difference(wanted, got)
        if not difference <= _TOLERANCE:
            raise FailedPrecondition(
                f"backend {backend} answers otherwise than ONNX Runtime: output {spec.name} differs by "
                f"{difference:.2g} of its largest value on made-up inputs, expected {_TOLERANCE:g} at "
                "most; set backend: onnxruntime"
            )


def _difference(wanted: Array, got: Array) -> float:
    """Return the largest difference as a part of the largest wanted value.

    Infinity for another shape, NaN where one has NaN or infinity and the other has something else.
    """
    if wanted.shape != got.shape:
        return float("inf")
    if not wanted.size or np.array_equal(wanted, got, equal_nan=wanted.dtype.kind == "f"):
        return 0.0
    first, second = wanted.astype(np.float64), got.astype(np.float64)
    known = np.isfinite(first) & np.isfinite(second)
    if not np.array_equal(first[~known], second[~known], equal_nan=True):
        return float("nan")
    first, second = first[known], second[known]
    return float(np.max(np.abs(first - second), initial=0.0) / (np.max(np.abs(first), initial=0.0) or 1.0))
