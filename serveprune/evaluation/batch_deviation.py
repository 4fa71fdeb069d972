import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from serveprune.evaluation.answers import is_finite, own_answers
from serveprune.evaluation.dataset import Dataset
from serveprune.evaluation.quality import row_cosines
from serveprune.evaluation.runnable_graph import RunnableGraph
from serveprune.evaluation.task import Task, scored_outputs
from serveprune.oip.tensor import Array, TensorSpec

SAMPLES = 64
"""So many samples, spread over the dataset, show the effect; each is computed three times."""

_ROUNDS = 2
_BATCHES_PER_BLOCK = 4
_PROBABILITY_SUM_TOLERANCE = 1e-3
_OPPOSITE = 2.0
"""1 - cosine of two vectors that point in opposite directions, the most there is."""


@dataclass(frozen=True, slots=True)
class BatchDeviation:
    """How far answers move when only the neighbours in the batch change, from 0 (not at all).

    Attributes:
        worst: Over all rows.
        mean: Over all rows.
        rows: Rows compared; 0 where no two samples can share a batch.
    """

    worst: float
    mean: float
    rows: int


def batch_deviation(
    graph: RunnableGraph,
    dataset: Dataset,
    *,
    task: Task,
    outputs: Sequence[TensorSpec],
    batch_size: int,
    seed: int = 0,
) -> BatchDeviation:
    """Measure how far a row's answer moves when its neighbours in the batch change.

    Up to `SAMPLES` samples are sorted into blocks of equal input shape; where sequences are padded, a block holds
    similar lengths and **all** its rows are padded to its longest. Each row is then computed alone (batch of 1)
    and twice among random others of its block (batches of ``batch_size`` to less than twice that, at least 2).
    The row itself, padding included, is the same each time, so padding is not what is measured.

    The deviation of a row is the largest, over both batches and all outputs that the task scores, of

    - classification: the largest absolute difference of a class probability (softmax of the output, unless its
      rows are probabilities already), 0 to 1;
    - embedding, generic: 1 - cosine(alone, in batch), 0 to 2. For an output of one number per row the cosine says
      nothing; there it is the absolute difference over the largest magnitude among all rows, at most 2.

    ``outputs`` are those of the dense graph: passes may lose what is known of the shapes.

    A float graph computes rows apart and gives about 1e-7. Answers with NaN or infinity give the upper end.
    """
    chosen = dataset.select(_spread(len(dataset)))
    probe = _Probe(graph, chosen, task=task, outputs=scored_outputs(task, outputs))
    randomness = np.random.default_rng(seed)
    neighbours = max(batch_size, 2)
    moved: list[float] = []
    for indices, feeds in chosen.batches(neighbours * _BATCHES_PER_BLOCK):
        if len(indices) > 1:
            moved += _block_deviations(probe, indices, feeds, neighbours=neighbours, randomness=randomness)
    if not moved:
        return BatchDeviation(0.0, 0.0, 0)
    return BatchDeviation(max(moved), float(np.mean(moved)), len(moved))


def _spread(count: int) -> list[int]:
    indices = np.linspace(0, count - 1, min(count, SAMPLES)).round()
    return [int(index) for index in indices]


def _block_deviations(
    probe: "_Probe",
    indices: Array,
    feeds: Mapping[str, Array],
    *,
    neighbours: int,
    randomness: np.random.Generator,
) -> list[float]:
    """Return one deviation per row of the block."""
    count = len(indices)
    singles = [probe.run(indices, feeds, [row]) for row in range(count)]
    alone = {name: [single[name][0] for single in singles] for name in singles[0]}
    distances = {name: _distance(probe.task, answers) for name, answers in alone.items()}
    worst = [0.0] * count
    for _ in range(_ROUNDS):
        for rows in np.array_split(randomness.permutation(count), max(count // neighbours, 1)):
            for name, together in probe.run(indices, feeds, rows).items():
                for row, answer in zip(rows.tolist(), together, strict=True):
                    worst[row] = max(worst[row], distances[name](alone[name][row], answer))
    return worst


class _Probe:
    """Runs chosen rows of a block."""

    def __init__(self, graph: RunnableGraph, dataset: Dataset, *, task: Task, outputs: tuple[TensorSpec, ...]) -> None:
        self._graph = graph
        self._dataset = dataset
        self.task = task
        self._outputs = outputs

    def run(self, indices: Array, feeds: Mapping[str, Array], rows: Sequence[int] | Array) -> dict[str, list[Array]]:
        """Return output name -> the answers to these rows of the block, without those to padding."""
        part = {name: np.ascontiguousarray(array[rows]) for name, array in feeds.items()}
        outputs = self._graph.run(part, outputs=[spec.name for spec in self._outputs])
        return {
            spec.name: own_answers(output, spec, dataset=self._dataset, indices=indices[rows], feeds=part)
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
