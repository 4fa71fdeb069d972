"""How far a changed graph's answers are from those of the graph it was made from."""

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.compression.pruning.sensitivity import energy
from serveprune.evaluation.dataset import Dataset
from serveprune.evaluation.rows_per_run import rows_per_run
from serveprune.oip.tensor import Array

_BATCH_SIZE = 16
_LEAST_ENERGY = 1e-9


class AnswerErrors:
    """The answers of a graph to a few samples, for comparison with those of others."""

    def __init__(self, graph: Path, *, samples: Dataset, threads: int) -> None:
        """Note the graph's answers; they are held in memory.

        Args:
            graph: An ONNX file.
            samples: Inputs; what is known about their answers is not looked at.
            threads: Compute threads.
        """
        self._threads = threads
        self._samples = replace(samples, padding={})
        self._reference = list(self._answers(graph))
        self._energy = sum(map(energy, zip(*self._reference, strict=True)))

    def of(self, graph: Path) -> float:
        """Return the share of the answers' energy (variance over the samples) that is lost with another graph."""
        lost = 0.0
        for reference, answers in zip(self._reference, self._answers(graph), strict=True):
            for wanted, got in zip(reference, answers, strict=True):
                lost += float(np.square(got - wanted, dtype=np.float64).sum())
        return lost / max(self._energy, _LEAST_ENERGY)

    def _answers(self, graph: Path) -> Iterable[Sequence[Array]]:
        with closing(OnnxRuntimeBackend().load(graph, threads=self._threads)) as session:
            batch_size = rows_per_run(session.inputs, wanted=_BATCH_SIZE)
            for _, feeds in self._samples.batches(batch_size):
                yield [array for array in session.run(feeds) if array.dtype.kind == "f"]
