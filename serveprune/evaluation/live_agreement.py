"""How far two tiers agree on a live request, row by row. Pure."""

from collections.abc import Mapping, Sequence

import numpy as np

from serveprune.evaluation.quality import row_cosines
from serveprune.evaluation.task import Task, scored_outputs
from serveprune.oip.tensor import Array, TensorSpec


def live_task(metric: str, outputs: Sequence[TensorSpec]) -> Task:
    """Return what answers mean whose tiers were judged by this metric at build."""
    if metric == Task.CLASSIFICATION.headline_metric:
        return Task.CLASSIFICATION
    return Task.EMBEDDING if scored_outputs(Task.EMBEDDING, outputs) else Task.GENERIC


def live_agreements(
    task: Task, outputs: Sequence[TensorSpec], served: Mapping[str, Array], shadow: Mapping[str, Array]
) -> list[float]:
    """Return the agreement of each row: 1 is the same answer, and what holds NaN or infinity agrees with nothing.

    For classifiers whether the highest score is at the same class, else the cosine between the two answers; over
    several outputs the lowest. These are the metrics that a gate's ``min_quality`` bounds, but for generic models:
    one request has no mean answer that could be taken off first, so there they are higher.

    Args:
        task: See `live_task`.
        outputs: Of the model.
        served: What the caller got, ``(N, ...)`` each.
        shadow: What the other tier gives for the same inputs.

    Returns:
        N values from 0 to 1; none if an output that counts is missing, or has another shape.
    """
    names = [spec.name for spec in scored_outputs(task, outputs)]
    if not names or any(name not in served or name not in shadow for name in names):
        return []
    if any(served[name].shape != shadow[name].shape or served[name].ndim == 0 for name in names):
        return []
    return np.min([_of_rows(task, served[name], shadow[name]) for name in names], axis=0).tolist()  # type: ignore[no-any-return]


def _of_rows(task: Task, served: Array, shadow: Array) -> Array:
    one, other = (array.reshape(len(array), -1).astype(np.float64) for array in (served, shadow))
    finite = np.isfinite(one).all(axis=1) & np.isfinite(other).all(axis=1)
    if task is Task.CLASSIFICATION:
        same = one.argmax(axis=1) == other.argmax(axis=1)
        return np.where(finite, same, False).astype(np.float64)
    cosines = row_cosines(np.nan_to_num(one), np.nan_to_num(other))
    return np.where(finite, np.clip(cosines, 0.0, 1.0), 0.0)
