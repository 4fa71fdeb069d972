"""The real quality of a changed graph, on a bounded number of held-out samples."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.evaluation.comparison import Comparison, compare
from serveprune.evaluation.dataset import Dataset
from serveprune.evaluation.rows_per_run import rows_per_run
from serveprune.evaluation.runnable_graph import RunnableGraph
from serveprune.evaluation.task import Task
from serveprune.oip.tensor import Array, TensorSpec

_BATCH_SIZE = 8
_WORK = 1e11
"""Multiplications that one look at all samples may take: some seconds of one core."""

_FEWEST_SAMPLES, _MOST_SAMPLES = 128, 2000


def default_samples(multiplications: int) -> int:
    """Return how many samples to look at for a model that does so many multiplications for one."""
    return int(np.clip(_WORK / max(multiplications, 1), _FEWEST_SAMPLES, _MOST_SAMPLES))


def spread(samples: Dataset, *, most: int, seed: int) -> Dataset:
    """Return at most so many samples, drawn at random: files are often sorted by class."""
    if len(samples) <= most:
        return samples
    chosen = np.random.default_rng(seed).permutation(len(samples))[:most]
    return samples.select(sorted(chosen.tolist()))


class QualityMeter:
    """Compares graphs with dense, whose answers are computed once and held in memory."""

    def __init__(self, dense: RunnableGraph, *, samples: Dataset, task: Task, task_is_told: bool, threads: int) -> None:
        """Remember what to compare.

        Args:
            dense: The loaded dense graph.
            samples: Held-out samples.
            task: Decides the metrics.
            task_is_told: Whether somebody said so, or it was inferred.
            threads: Compute threads.
        """
        self._dense = _Remembered(dense)
        self._samples = samples
        self._task = task
        self._task_is_told = task_is_told
        self._threads = threads

    def of(self, graph: Path) -> Comparison:
        """Return every metric of a graph; the headline comes first."""
        with closing(OnnxRuntimeBackend().load(graph, threads=self._threads)) as changed:
            return compare(
                self._dense,
                changed,
                self._samples,
                task=self._task,
                batch_size=rows_per_run(self._dense.inputs, wanted=_BATCH_SIZE),
                on_progress=lambda fraction: None,
                task_is_told=self._task_is_told,
            )


class _Remembered:
    """A graph that computes each batch once."""

    def __init__(self, graph: RunnableGraph) -> None:
        self._graph = graph
        self._known: dict[bytes, list[Array]] = {}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._graph.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._graph.outputs

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        digest = hashlib.sha256(repr(tuple(outputs)).encode())
        for name, array in sorted(feeds.items()):
            digest.update(f"{name} {array.dtype} {array.shape} ".encode())
            digest.update(np.ascontiguousarray(array).data)
        key = digest.digest()
        if key not in self._known:
            self._known[key] = self._graph.run(feeds, outputs=outputs)
        return self._known[key]
