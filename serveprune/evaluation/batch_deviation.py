import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from serveprune.evaluation.answers import is_finite, own_answers
from serveprune.evaluation.dataset import Dataset
from serveprune.evaluation.quality import row_cosines
from serveprune.evaluation.runnable_graph import RunnableGraph
from serveprune.evaluation.task import Task, scored_outputs
from serveprune.oip.tensor import Array, TensorSpec

SAMPLES = 64
"""So many samples, spread over the dataset, show the effect; each is computed three or six times."""

_ROUNDS = 2
_BATCHES_PER_BLOCK = 4
_PROBABILITY_SUM_TOLERANCE = 1e-3
_OPPOSITE = 2.0
"""1 - cosine of two vectors that point in opposite directions, the most there is."""


Answers = Callable[[Sequence[int]], dict[str, list[Array]]]
"""Computes the samples at these positions as one batch: output name -> what each of them is answered."""


def batch_deviation(
    graph: RunnableGraph,
    dataset: Dataset,
    *,
    task: Task,
    outputs: Sequence[TensorSpec],
    batch_size: int,
    seed: int = 0,
) -> float:
    """Measure how far an answer moves, from 0 (not at all), when a sample is computed in a batch instead of alone.

    Up to `SAMPLES` samples, spread over the dataset, are each computed alone (batch of 1) and twice among random
    others (batches of ``batch_size`` to less than twice that, at least 2). What is returned is the larger of

    - *as clients see it*: alone at its own length, against a batch with neighbours of all lengths, padded to the
      longest of them as serving pads a request of several texts. The padding's part is included.
    - *the neighbours alone*: where sequences are padded, in blocks of similar lengths of which **all** rows are
      padded to the block's longest, alone as well as together, so that only the neighbours change.

    Without padding both are one. The deviation of a sample is the largest, over both batches and all outputs that
    the task scores, of

    - classification: the largest absolute difference of a class probability (softmax of the output, unless its
      rows are probabilities already), 0 to 1;
    - embedding, generic: 1 - cosine(alone, in batch), 0 to 2. For an output of one number per row the cosine says
      nothing; there it is the absolute difference over the largest magnitude among all rows, at most 2.

    The worst sample counts. ``outputs`` are those of the dense graph: passes may lose what is known of the shapes.

    A float graph computes rows apart and gives about 1e-7, unless it lets padding move its answers. Answers with
    NaN or infinity give the upper end. Where no two samples can share a batch it is 0.
    """
    chosen = dataset.select(_spread(len(dataset)))
    probe = _Probe(graph, chosen, outputs=scored_outputs(task, outputs))
    randomness = np.random.default_rng(seed)
    neighbours = max(batch_size, 2)
    moved = [0.0]
    for indices in chosen.chunks(len(chosen)):
        moved.append(_deviation(probe.served(indices), len(indices), task, neighbours, randomness))
    if chosen.padding:
        for indices in chosen.chunks(neighbours * _BATCHES_PER_BLOCK):
            moved.append(_deviation(probe.equally_padded(indices), len(indices), task, neighbours, randomness))
    return max(moved)


def _spread(count: int) -> list[int]:
    indices = np.linspace(0, count - 1, min(count, SAMPLES)).round()
    return [int(index) for index in indices]


def _deviation(answers: Answers, count: int, task: Task, neighbours: int, randomness: np.random.Generator) -> float:
    """Return the largest deviation among samples at positions 0 to ``count``, all of which can share a batch."""
    if count < 2:
        return 0.0
    singles = [answers([position]) for position in range(count)]
    alone = {name: [single[name][0] for single in singles] for name in singles[0]}
    distances = {name: _distance(task, its) for name, its in alone.items()}
    worst = 0.0
    for _ in range(_ROUNDS):
        for positions in np.array_split(randomness.permutation(count), max(count // neighbours, 1)):
            for name, together in answers(positions.tolist()).items():
                for position, answer in zip(positions.tolist(), together, strict=True):
                    worst = max(worst, distances[name](alone[name][position], answer))
    return worst


class _Probe:
    """Computes some samples of a dataset together."""

    def __init__(self, graph: RunnableGraph, dataset: Dataset, *, outputs: tuple[TensorSpec, ...]) -> None:
        self._graph = graph
        self._dataset = dataset
        self._outputs = outputs

    def served(self, indices: Array) -> Answers:
        """Pad every batch to the longest in it."""
        return lambda positions: self._run(indices[positions], self._dataset.collate(indices[positions]))

    def equally_padded(self, indices: Array) -> Answers:
        """Pad every batch to the longest of all ``indices``."""
        feeds = self._dataset.collate(indices)
        return lambda positions: self._run(
            indices[positions], {name: np.ascontiguousarray(array[positions]) for name, array in feeds.items()}
        )

    def _run(self, indices: Array, feeds: Mapping[str, Array]) -> dict[str, list[Array]]:
        outputs = self._graph.run(feeds, outputs=[spec.name for spec in self._outputs])
        return {
            spec.name: own_answers(output, spec, dataset=self._dataset, indices=indices, feeds=feeds)
            for spec, output in zip(self._outputs, outputs, strict=True)
        }


def _distance(task: Task, alone: Sequence[Array]) -> Callable[[Array, Array], float]:
    """Return how two answers to one row are compared, given the answers to all rows of the block."""
    if task is Task.CLASSIFICATION:
        # All rows must be probabilities: a single row of logits may sum to 1 by chance.
        return partial(_probability_distance, softmax=not all(map(_is_distribution, alone)))
    if all(answer.size == 1 for answer in alone):
        return partial(_relative_distance, scale=max(abs(float(answer.ravel()[0])) for answer in alone))
    return _angular_distance


def _probability_distance(alone: Array, together: Array, *, softmax: bool) -> float:
    if not (is_finite(alone) and is_finite(together)):
        return 1.0
    first, second = (_softmax(answer) if softmax else answer for answer in (alone, together))
    return float(np.max(np.abs(first - second)))


def _relative_distance(alone: Array, together: Array, *, scale: float) -> float:
    first, second = float(alone.ravel()[0]), float(together.ravel()[0])
    if first == second:
        return 0.0
    ratio = abs(first - second) / scale if scale else math.inf
    return min(ratio, _OPPOSITE) if math.isfinite(ratio) else _OPPOSITE


def _angular_distance(alone: Array, together: Array) -> float:
    if not (is_finite(alone) and is_finite(together)):
        return _OPPOSITE
    return 1.0 - float(row_cosines(alone.reshape(1, -1), together.reshape(1, -1))[0])


def _is_distribution(scores: Array) -> bool:
    return bool(scores.min() >= 0 and abs(scores.sum() - 1) < _PROBABILITY_SUM_TOLERANCE)


def _softmax(scores: Array) -> Array:
    exponentials = np.exp(scores.astype(np.float64) - scores.max())
    probabilities: Array = exponentials / exponentials.sum()
    return probabilities
