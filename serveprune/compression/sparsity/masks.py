"""Which weights become zero, given their scores: whole layers, rows, groups of N:M, or a whole network."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from serveprune.oip.tensor import Array

Mask = NDArray[np.bool_]
"""True where a weight is left."""

MOST_OF_A_LAYER = 0.99
"""Under one threshold for all layers, a layer loses no more than this, or the target where that is more."""


def layer_mask(scores: Array, *, zeros: int) -> Mask:
    """Leave out so many of the least scores of ``(outputs, inputs)``; of equal ones those that come first."""
    kept = np.ones(scores.size, np.bool_)
    kept[np.argsort(scores, axis=None, kind="stable")[:zeros]] = False
    return kept.reshape(scores.shape)


def output_mask(scores: Array, *, zeros: int) -> Mask:
    """Leave out as many of each row's least scores, so that ``zeros`` or up to a row's remainder fewer go in all."""
    kept = np.ones(scores.shape, np.bool_)
    order = np.argsort(scores, axis=1, kind="stable")
    count, more = divmod(zeros, len(scores))
    np.put_along_axis(kept, order[:, :count], False, axis=1)
    # What does not divide by the rows is taken from the first of them, one weight each.
    if count < scores.shape[1]:
        kept[np.arange(more), order[:more, count]] = False
    return kept


def group_mask(scores: Array, *, kept: int, group: int) -> Mask:
    """Leave ``kept`` of every ``group`` neighbours of a row, those with the greatest scores.

    Args:
        scores: ``(outputs, inputs)``; the inputs divide by ``group``.
        kept: N of N:M.
        group: M of N:M.
    """
    grouped = scores.reshape(-1, group)
    mask = np.zeros(grouped.shape, np.bool_)
    # Of equal scores the first are left out, as in a layer.
    order = np.argsort(grouped, axis=1, kind="stable")
    np.put_along_axis(mask, order[:, group - kept :], True, axis=1)
    return mask.reshape(scores.shape)


def zeros_by_layer(scores: Mapping[str, Array], *, sparsity: float) -> dict[str, int]:
    """Share zeros out among layers by one threshold for all of them.

    Args:
        scores: Of each layer, comparable with each other.
        sparsity: Zeros / weights of all layers together.
    """
    names = list(scores)
    sizes = np.array([scores[name].size for name in names])
    wanted = round(sparsity * int(sizes.sum()))
    most = np.floor(sizes * max(sparsity, MOST_OF_A_LAYER)).astype(int)
    zeros = np.zeros(len(names), int)
    open_: Sequence[int] = range(len(names))
    # A layer that reaches its bound leaves the rest to the others.
    while open_ and wanted > zeros.sum():
        missing = wanted - int(zeros[[i for i in range(len(names)) if i not in open_]].sum())
        flat = np.concatenate([scores[names[index]].ravel() for index in open_])
        owner = np.repeat(list(open_), sizes[list(open_)])
        chosen = np.argsort(flat, kind="stable")[:missing]
        counts = np.bincount(owner[chosen], minlength=len(names))
        full = [index for index in open_ if counts[index] > most[index]]
        for index in open_:
            zeros[index] = min(counts[index], most[index])
        if not full:
            break
        open_ = [index for index in open_ if index not in full]
    return dict(zip(names, zeros.tolist(), strict=True))
