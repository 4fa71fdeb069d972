"""Samples in random order, as torch takes them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serveprune.evaluation.dataset import Dataset
from serveprune.oip.tensor import Array

_LENGTH_NOISE = 0.1
"""Share of its length by which a text may move when texts are sorted: padding stays little, and company changes."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some samples of a set.

    Attributes:
        indices: ``(n,)`` int64, which samples of the set these are.
        feeds: Graph input -> tensor with the batch axis first, padded to the longest sample.
    """

    indices: NDArray[np.int64]
    feeds: dict[str, Tensor]


def tensors(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    """Return arrays as tensors that share their memory where they can."""
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


class ShuffledBatches:
    """An endless stream of batches: each epoch holds every sample once, in an order of its own.

    Samples of one shape, or of one kind of shape where padding says how to lengthen them, share batches, which are of
    nearly equal size. Texts meet others of about their length.
    """

    def __init__(self, dataset: Dataset, *, batch_size: int, seed: int) -> None:
        """Sort the samples into kinds; nothing is read yet.

        Args:
            dataset: The samples.
            batch_size: Most samples of one batch.
            seed: The order of epoch ``n`` depends on it and on ``n`` alone.
        """
        self._dataset = dataset
        self._seed = seed
        self._kinds = list(dataset.chunks(len(dataset)))
        self._counts = [-(-len(kind) // batch_size) for kind in self._kinds]
        self._lengths = np.array([dataset.length(index) or 0 for index in range(len(dataset))], np.float64)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in which every sample occurs once."""
        return sum(self._counts)

    def from_step(self, step: int) -> Iterator[Batch]:
        """Yield the batches of step ``step`` and all later ones."""
        epoch, skipped = divmod(step, self.steps_per_epoch)
        while True:
            for indices in self.indices(epoch)[skipped:]:
                yield Batch(indices, tensors(self._dataset.collate(indices)))
            epoch, skipped = epoch + 1, 0

    def indices(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return which samples each batch of an epoch holds."""
        generator = np.random.default_rng([self._seed, epoch])
        batches: list[NDArray[np.int64]] = []
        for kind, count in zip(self._kinds, self._counts, strict=True):
            mixed = generator.permutation(kind)
            noise = generator.uniform(1 - _LENGTH_NOISE, 1 + _LENGTH_NOISE, len(mixed))
            by_length = mixed[np.argsort(self._lengths[mixed] * noise, kind="stable")]
            batches += np.array_split(by_length, count)
        return [batches[place] for place in generator.permutation(len(batches))]
