"""In which order the units of a group go, and what that costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serveprune.compression.pruning.dependency_graph import PruningGroup
from serveprune.compression.pruning.linear import LinearMap, Matrix
from serveprune.compression.pruning.statistics import Moments
from serveprune.oip.tensor import Array

_STEPS = 96
"""Removals after which compensated weights and scores are brought up to date; more steps, better order."""

_COMPACT_BELOW = 0.8

_DAMPING_RATIO = 0.1
"""Ridge, as a fraction of the mean variance of the inputs: calibration sets are small."""


@dataclass(frozen=True, slots=True)
class RemovalOrder:
    """Units of a group from the first to go to the last.

    Attributes:
        units: ``(width,)`` indices into the group's units.
        errors: ``(width + 1,)`` error after so many removals, from 0; the share of the consumers' output energy
            that is lost, summed over consumers.
    """

    units: NDArray[np.int64]
    errors: Matrix


@dataclass(frozen=True, slots=True)
class Consumer:
    """A linear map that reads a group's units.

    Attributes:
        channels: ``(units, channels per unit)`` input channels of the map that belong to each unit.
    """

    map: LinearMap
    channels: NDArray[np.int64]


class Importance(Protocol):
    """Decides what goes first.

    Attributes:
        needs_moments: Whether `order` reads second moments of calibration samples.
    """

    needs_moments: bool

    def order(
        self,
        group: PruningGroup,
        consumers: Sequence[Consumer],
        *,
        weights: Mapping[str, Array],
        moments: Mapping[str, Moments],
    ) -> RemovalOrder:
        """Rank a group's units.

        Args:
            group: The units and the weight slices they own.
            consumers: The maps that read them.
            weights: Every constant by name.
            moments: What each consumer reads, by its node; empty if the method needs none.
        """
        ...


class ReconstructionImportance:
    """The consumers' output error after the best compensation, in closed form from the Gram matrix of their inputs.

    Units go greedily. Removing the inputs ``S`` of a map with weights ``W`` and inverse Gram matrix ``G`` costs
    ``tr(W_S' (G_SS)^-1 W_S)`` once the remaining weights make up for it as well as they can: Optimal Brain
    Surgeon (Hassibi and Stork, 1993) for groups of inputs, as in OBC (2208.11580) and ZipLM (2302.04089).
    """

    needs_moments = True

    def order(
        self,
        group: PruningGroup,
        consumers: Sequence[Consumer],
        *,
        weights: Mapping[str, Array],
        moments: Mapping[str, Moments],
    ) -> RemovalOrder:
        """See `Importance.order`."""
        states = [
            _Compensation(item.map.matrix(weights[item.map.weight]), moments[item.map.node], _rows(item))
            for item in consumers
        ]
        alive = np.arange(group.width)
        step = max(1, group.width // _STEPS)
        order: list[int] = []
        errors = [0.0]
        while len(alive) > 1:
            scores = sum(state.scores(alive) for state in states)
            going = alive[np.argsort(scores, kind="stable")[: min(step, len(alive) - 1)]]
            before = errors[-1]
            total = before + sum(state.remove(going) for state in states)
            order += going.tolist()
            # Inside one step the error is taken to grow evenly.
            errors += np.linspace(before, total, len(going) + 1)[1:].tolist()
            alive = np.setdiff1d(alive, going, assume_unique=True)
        order += alive.tolist()
        errors.append(float(len(states)))
        return RemovalOrder(np.array(order), np.maximum.accumulate(np.array(errors)))


class _Compensation:
    """One map while its inputs go: its remaining weights, always the best ones, and the inverse Gram matrix."""

    def __init__(self, matrix: Matrix, moments: Moments, rows: NDArray[np.int64]) -> None:
        covariance, _ = moments.centred()
        # The energy of what the weights give on these inputs; a map's own scale must not count.
        self._energy = max(float(np.einsum("ij,ij->", matrix, covariance @ matrix)), 1e-12)
        covariance[np.diag_indices_from(covariance)] += damping(covariance, rows=moments.count)
        self._inverse = np.linalg.inv(covariance)
        self._matrix = matrix.copy()
        self._rows = rows
        self._alive = np.ones(len(matrix), np.bool_)

    def scores(self, units: NDArray[np.int64]) -> Matrix:
        """Return the error each unit's removal would add."""
        rows = self._rows[units]
        if rows.shape[1] == 1:
            flat = rows[:, 0]
            single: Matrix = np.square(self._matrix[flat]).sum(axis=1) / self._inverse[flat, flat] / self._energy
            return single
        blocks = self._inverse[rows[:, :, None], rows[:, None, :]]
        weights = self._matrix[rows]
        scores: Matrix = np.einsum("uij,uij->u", weights, np.linalg.solve(blocks, weights)) / self._energy
        return scores

    def remove(self, units: NDArray[np.int64]) -> float:
        """Remove units, let the rest make up for them, and return the error that remains."""
        rows = self._rows[units].ravel()
        columns = self._inverse[:, rows]
        block = columns[rows]
        lost = self._matrix[rows]
        makeup = np.linalg.solve(block, lost)
        error = float(np.einsum("ij,ij->", lost, makeup)) / self._energy
        self._matrix -= columns @ makeup
        self._inverse -= columns @ np.linalg.solve(block, columns.T)
        self._matrix[rows] = 0.0
        self._alive[rows] = False
        if self._alive.mean() < _COMPACT_BELOW:
            self._compact()
        return error

    def _compact(self) -> None:
        """Forget the rows that are gone: every update passes over the whole inverse."""
        alive = self._alive
        self._inverse = self._inverse[np.ix_(alive, alive)]
        self._matrix = self._matrix[alive]
        # Rows of units that are gone point anywhere; nobody asks for them again.
        self._rows = (np.cumsum(alive) - 1)[self._rows]
        self._alive = np.ones(len(self._matrix), np.bool_)


def _rows(item: Consumer) -> NDArray[np.int64]:
    return np.stack([item.map.matrix_rows(channels) for channels in item.channels])


class MagnitudeImportance:
    """The norm of all weights a unit owns, the classical choice (Han et al., 1506.02626; Li et al., 1608.08710)."""

    needs_moments = False

    def __init__(self, *, norm: int) -> None:
        """Choose the norm.

        Args:
            norm: 1 or 2.
        """
        self._norm = norm

    def order(
        self,
        group: PruningGroup,
        consumers: Sequence[Consumer],
        *,
        weights: Mapping[str, Array],
        moments: Mapping[str, Moments],
    ) -> RemovalOrder:
        """See `Importance.order`; errors are the share of the group's norm that is gone."""
        scores = np.zeros(group.width)
        for piece in group.slices:
            array = np.abs(np.moveaxis(weights[piece.name], piece.axis, 0).astype(np.float64)) ** self._norm
            if array.ndim > 1:  # biases and statistics say little about what a channel does
                scores += array.reshape(len(array), -1).sum(axis=1)[piece.positions].sum(axis=1)
        return by_score(scores)


class RandomImportance:
    """Units in random order: the control that every other method has to beat."""

    needs_moments = False

    def __init__(self, *, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def order(
        self,
        group: PruningGroup,
        consumers: Sequence[Consumer],
        *,
        weights: Mapping[str, Array],
        moments: Mapping[str, Moments],
    ) -> RemovalOrder:
        """See `Importance.order`; every unit counts the same."""
        order = self._generator.permutation(group.width)
        return RemovalOrder(order, np.linspace(0.0, 1.0, group.width + 1))


def by_score(scores: Matrix) -> RemovalOrder:
    """Return the order of ``(width,)`` scores from the least; errors are the share of their sum that is gone."""
    order = np.argsort(scores, kind="stable")
    total = max(float(scores.sum()), 1e-12)
    return RemovalOrder(order, np.concatenate([[0.0], np.cumsum(scores[order]) / total]))


def damping(second_moments: Matrix, *, rows: int) -> float:
    """Return the ridge for least squares from ``(inputs, inputs)`` second moments of so many rows.

    With fewer rows than inputs any inputs can be made up for on these rows, and only the ridge knows of others: it
    grows with the inputs per row.
    """
    inputs = len(second_moments)
    return float(_DAMPING_RATIO * (1 + inputs / rows) * np.trace(second_moments) / inputs) + 1e-12
