"""Quality metrics, as pure functions of what dense and tier answered.

Arrays named ``dense`` and ``tier`` hold the answers to the same samples in the same order. All sums are taken
in float64. Values are finite for finite inputs.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from serveprune.oip.tensor import Array

SQNR_CAP_DB = 200.0
"""Stands for an infinite ratio, which JSON cannot hold; float32 itself resolves about 150 dB."""

FINITE_FRACTION = "finite_fraction"
"""Fraction of samples the tier answers without NaN and infinity; recorded only when it is below 1."""

WORST = {
    "top1_agreement": 0.0,
    "accuracy": 0.0,
    "cosine": -1.0,
    "nearest_neighbour_agreement": 0.0,
    "sqnr_db": -SQNR_CAP_DB,
    "pearson": -1.0,
    "spearman": -1.0,
}
"""The lowest value of each metric; what a tier scores whose answers hold NaN or infinity."""

_EQUALLY_NEAR = 1e-6
"""Cosines that differ by less are a tie: float32 does not tell them apart."""

_Float64 = NDArray[np.float64]


def top1_agreement(dense: Array, tier: Array) -> float:
    """Return the fraction of rows ``(N, classes)`` whose highest score is at the same class."""
    return float(np.mean(dense.argmax(axis=1) == tier.argmax(axis=1)))


def accuracy(scores: Array, labels: Array) -> float:
    """Return the fraction of rows ``(N, classes)`` whose highest score is at the label ``(N,)``."""
    return float(np.mean(scores.argmax(axis=1) == labels))


def cosine(dense: Array, tier: Array) -> float:
    """Return the mean over rows ``(N, width)`` of the cosine between the two."""
    return float(np.mean(row_cosines(dense, tier)))


def row_cosines(first: Array, second: Array) -> _Float64:
    """Return the cosine between rows ``(N, width)`` of equal index, ``(N,)``.

    Two zero vectors are alike (1), a zero vector and another one have nothing in common (0).
    """
    first, second = _unit_range(first), _unit_range(second)
    first_energy, second_energy = np.sum(first * first, axis=1), np.sum(second * second, axis=1)
    # One root of the product, so that the cosine of a vector with itself is 1 to the last bit.
    norms = np.sqrt(first_energy * second_energy)
    cosines = np.sum(first * second, axis=1) / np.where(norms == 0, 1, norms)
    both_zero = (first_energy == 0) & (second_energy == 0)
    return np.clip(np.where(both_zero, 1.0, cosines), -1.0, 1.0)


def nearest_neighbour_agreement(dense: Array, tier: Array) -> float:
    """Return the fraction of samples whose nearest other sample is the same, by cosine of ``(N, width)``.

    Neighbours are looked for within each set: among dense embeddings, and among tier embeddings. If several
    samples are equally near in dense, any of them counts. N is at least 2; 3 for a figure that says anything.
    """
    dense_unit, tier_unit = _normalised(dense), _normalised(tier)
    same = 0
    for index in range(len(dense_unit)):
        nearness = dense_unit @ dense_unit[index]
        tier_nearness = tier_unit @ tier_unit[index]
        nearness[index] = tier_nearness[index] = -np.inf
        same += bool(nearness[tier_nearness.argmax()] >= nearness.max() - _EQUALLY_NEAR)
    return same / len(dense_unit)


def pearson(first: Array, second: Array) -> float:
    """Return the linear correlation of two series ``(N,)``; 0 where one of them is constant."""
    first, second = _centred(first), _centred(second)
    norm = math.sqrt(float(first @ first) * float(second @ second))
    return 0.0 if norm == 0 else float(np.clip(first @ second / norm, -1.0, 1.0))


def spearman(first: Array, second: Array) -> float:
    """Return the correlation of ranks of two series ``(N,)``; equal values share the mean of their ranks."""
    return pearson(_ranks(first), _ranks(second))


@dataclass(slots=True)
class SignalEnergies:
    """Sums over a stream of answers, from which SQNR and the cosines of the whole stream follow.

    Where float64 cannot hold the squares (values beyond 1e154), all have their worst value.

    Attributes:
        width: Size of the last axis of every answer; 1 if that changes or does not matter.
    """

    dense: float = 0.0
    tier: float = 0.0
    product: float = 0.0
    noise: float = 0.0
    width: int = 1
    _centred: "_CentredSums" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._centred = _CentredSums(self.width)

    def add(self, dense: Array, tier: Array) -> None:
        """Take more answers in, of any one shape."""
        first, second = np.ravel(dense).astype(np.float64), np.ravel(tier).astype(np.float64)
        difference = first - second
        self.dense += float(first @ first)
        self.tier += float(second @ second)
        self.product += float(first @ second)
        self.noise += float(difference @ difference)
        self._centred.add(first.reshape(-1, self.width), second.reshape(-1, self.width))

    @property
    def centred_cosine(self) -> float:
        """Cosine of all answers as one long vector after dense's mean answer is taken off both.

        What every answer has in common says nothing about the inputs: of two sets of logits around -8 the plain
        cosine is above 0.99 however much they disagree. The mean is taken for each index of the last axis (each
        class, each feature) where ``width`` says how long that is, else over everything. It is dense's mean for
        both, so a tier whose answers are shifted is worse for it. Answers of dense that do not vary at all leave
        nothing to compare; then it is the plain cosine.
        """
        if self.noise == 0:
            return 1.0
        if not math.isfinite(self.dense + self.tier):
            return WORST["cosine"]
        dense, tier, product = self._centred.energies()
        if dense <= 0:
            return self.cosine
        return 0.0 if tier <= 0 else min(max(product / math.sqrt(dense) / math.sqrt(tier), -1.0), 1.0)

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise ratio in dB: energy of dense over energy of the difference.

        Between -`SQNR_CAP_DB` and `SQNR_CAP_DB`.
        """
        if self.noise == 0:
            return SQNR_CAP_DB
        if self.dense == 0 or not math.isfinite(self.dense + self.noise):
            return -SQNR_CAP_DB
        decibels = 10 * (math.log10(self.dense) - math.log10(self.noise))
        return min(max(decibels, -SQNR_CAP_DB), SQNR_CAP_DB)

    @property
    def cosine(self) -> float:
        """Cosine of all answers as one long vector; zeros as in `row_cosines`."""
        if self.noise == 0:
            return 1.0
        if self.dense == 0 or self.tier == 0:
            return 0.0
        if not math.isfinite(self.dense + self.tier):
            return WORST["cosine"]
        return min(max(self.product / math.sqrt(self.dense) / math.sqrt(self.tier), -1.0), 1.0)


class _CentredSums:
    """Sums about the first answer, so that little is lost when the mean is taken off in the end."""

    def __init__(self, width: int) -> None:
        self._origin: _Float64 | None = None
        self._count = 0
        self._dense_sum = np.zeros(width)
        self._tier_sum = np.zeros(width)
        self._dense = self._tier = self._product = 0.0

    def add(self, dense: _Float64, tier: _Float64) -> None:
        """Take in rows ``(n, width)``."""
        if not len(dense):
            return
        if self._origin is None:
            self._origin = dense[0].copy()
        first, second = dense - self._origin, tier - self._origin
        self._count += len(first)
        self._dense_sum += first.sum(axis=0)
        self._tier_sum += second.sum(axis=0)
        self._dense += float(np.vdot(first, first))
        self._tier += float(np.vdot(second, second))
        self._product += float(np.vdot(first, second))

    def energies(self) -> tuple[float, float, float]:
        """Return the energies of dense and of the tier and their product, all about dense's mean."""
        mean = self._dense_sum / max(self._count, 1)
        mean_energy, shared = self._count * float(mean @ mean), float(mean @ self._tier_sum)
        return self._dense - mean_energy, self._tier - 2 * shared + mean_energy, self._product - shared


def _unit_range(rows: Array) -> _Float64:
    """Scale each row to a largest magnitude of 1, so that no square overflows or vanishes."""
    wide = rows.astype(np.float64)
    peaks = np.max(np.abs(wide), axis=1, keepdims=True, initial=0.0)
    scaled: _Float64 = wide / np.where(peaks == 0, 1, peaks)
    return scaled


def _normalised(rows: Array) -> _Float64:
    scaled = _unit_range(rows)
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    unit: _Float64 = scaled / np.where(norms == 0, 1, norms)
    return unit


def _centred(series: Array) -> _Float64:
    wide = series.astype(np.float64)
    centred: _Float64 = wide - wide.mean()
    return centred


def _ranks(series: Array) -> _Float64:
    """Return ranks from 1; equal values share the mean of theirs."""
    _, positions, counts = np.unique(series, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: _Float64 = (last - (counts - 1) / 2)[positions]
    return ranks
