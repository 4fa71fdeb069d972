from collections.abc import Mapping, Sequence

import numpy as np

from serveprune.evaluation.dataset import Dataset
from serveprune.oip.tensor import DYNAMIC, Array, TensorSpec


def own_answers(
    output: Array,
    spec: TensorSpec,
    *,
    dataset: Dataset,
    indices: Sequence[int] | Array,
    feeds: Mapping[str, Array],
) -> list[Array]:
    """Return each sample's part of one output of a batch, without what the padding answered.

    An output that grows with the sequence, ``(batch, length, ...)``, answers for padding as well; nobody reads
    that, so it must not count.
    """
    rows = list(output)
    padded = next((feeds[name].shape[1] for name in dataset.padding), None)
    if padded is None or len(spec.shape) < 2 or spec.shape[1] != DYNAMIC or output.shape[1] != padded:
        return rows
    return [row[: dataset.length(int(index))] for row, index in zip(rows, indices, strict=True)]


def is_finite(output: Array) -> bool:
    """Tell whether the output holds neither NaN nor infinity."""
    return bool(output.dtype.kind != "f" or np.isfinite(output).all())
