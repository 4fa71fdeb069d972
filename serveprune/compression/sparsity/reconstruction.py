"""Zeros one column after the other, the columns behind making up for them: SparseGPT (2301.00774)."""

import numpy as np

from serveprune.compression.pruning.linear import Matrix
from serveprune.compression.sparsity.masks import Mask, group_mask, layer_mask
from serveprune.compression.sparsity.shares import Share
from serveprune.oip.tensor import Array

_BLOCK = 128
"""Columns whose zeros are chosen together."""

DAMPING_RATIO = 0.01
"""Of the mean of the diagonal, added to it: inputs that are nearly the same would make up for each other wildly."""


def inverse_factor(second_moments: Matrix, *, damping_ratio: float = DAMPING_RATIO) -> Matrix:
    """Return the upper Cholesky factor ``U`` of the inverse, ``inv(H) = U' U``, of damped second moments.

    Row ``j`` of ``U`` holds what the columns behind ``j`` do about an error in column ``j``, once those before it
    are fixed.

    Args:
        second_moments: ``(inputs, inputs)`` sums of products of inputs.
        damping_ratio: Of the mean diagonal.
    """
    damped = second_moments.copy()
    diagonal = np.diag_indices_from(damped)
    damped[diagonal] += damping_ratio * np.trace(damped) / len(damped) + 1e-12
    inverse = np.linalg.inv(damped)
    return np.asarray(np.linalg.cholesky((inverse + inverse.T) / 2).T, np.float64)


def saliencies(matrix: Array, factor: Matrix) -> Matrix:
    """Return what zeroing each weight alone costs once the others have made up for it (Hassibi and Stork, 1993).

    Args:
        matrix: ``(outputs, inputs)``.
        factor: See `inverse_factor`.
    """
    inverse_diagonal = np.square(factor).sum(axis=0)
    costs: Matrix = np.square(matrix, dtype=np.float64) / inverse_diagonal
    return costs


def reconstruct(matrix: Array, factor: Matrix, *, share: Share, silent: Mask | None = None) -> Matrix:
    """Return the weights with zeros, and the others changed so that the outputs change least.

    Weights that are zero stay zero, and count.

    Args:
        matrix: ``(outputs, inputs)``.
        factor: See `inverse_factor`.
        share: How many zeros, or in which pattern, whose groups the inputs divide by.
        silent: ``(inputs,)`` those that never were anything but zero; their weights go first.
    """
    pattern = share.pattern
    weights = np.array(matrix, np.float64)
    gone = weights == 0
    silent = np.zeros(weights.shape[1], np.bool_) if silent is None else silent
    width = weights.shape[1]
    block = _BLOCK if pattern is None else _BLOCK - _BLOCK % pattern.group or pattern.group
    # Where something is zero already, the rest of the zeros goes to where there is none.
    left = max(share.zeros - int(gone.sum()), 0)
    free = int((~gone).sum())
    for start in range(0, width, block):
        columns = slice(start, min(start + block, width))
        here = weights[:, columns].copy()
        local = factor[columns, columns]
        scores = np.square(here) / np.square(np.diag(local))
        scores[:, silent[columns]] = 0.0
        scores[gone[:, columns]] = -1.0
        going = np.zeros(here.shape, np.bool_)
        if pattern is None:
            present = int((~gone[:, columns]).sum())
            more = round(left * present / free) if free else 0
            going = ~layer_mask(scores, zeros=more + int(gone[:, columns].sum()))
            left, free = left - more, free - present
        errors = np.zeros_like(here)
        for column in range(here.shape[1]):
            if pattern is not None and column % pattern.group == 0:
                # N:M looks at few columns, so it can afford to choose with what those before have changed.
                ahead = slice(column, column + pattern.group)
                now = np.square(here[:, ahead]) / np.square(np.diag(local)[ahead])
                now[:, silent[columns][ahead]] = 0.0
                now[gone[:, columns][:, ahead]] = -1.0
                going[:, ahead] = ~group_mask(now, kept=pattern.kept, group=pattern.group)
            errors[:, column] = np.where(going[:, column], here[:, column], 0.0) / local[column, column]
            here[:, column:] -= np.outer(errors[:, column], local[column, column:])
            here[going[:, column], column] = 0.0
        here[going] = 0.0
        weights[:, columns] = here
        weights[:, columns.stop :] -= errors @ factor[columns, columns.stop :]
        gone[:, columns] = going
    weights[gone] = 0.0
    return weights
