"""What removing units of one group does to the model's answers: seen, not assumed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.compression.pruning.importance import Consumer, RemovalOrder, damping
from serveprune.compression.pruning.linear import Matrix
from serveprune.compression.pruning.statistics import Moments
from serveprune.compression.pruning.walk import Halt, Walk
from serveprune.evaluation.dataset import Dataset
from serveprune.oip.tensor import Array

_REMOVED_SHARES = (0.3, 0.65)
"""Shares of a group that are removed to see what that costs; between them a power law is drawn."""

_EXPONENTS = (0.5, 2.0)
_BATCH_SIZE = 16
_LEAST_ERROR = 1e-9


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Error of the model's answers as ``scale * error ** exponent`` of the group's own reconstruction error."""

    scale: float
    exponent: float

    def of(self, errors: Matrix) -> Matrix:
        """Return the errors of the answers for reconstruction errors."""
        return self.scale * np.power(np.maximum(errors, 0.0), self.exponent)


class SensitivityProbe:
    """The answers of a dense graph on a few samples, and what they become when groups lose units.

    A unit whose rows of consumer weights are zero is as good as removed, and the rows of the others can make up for it.
    The probe goes through the graph once, from consumer to consumer, and only what lies behind one is run anew.
    """

    def __init__(
        self,
        model: ir.Model,
        consumers: Sequence[Sequence[Consumer]],
        *,
        samples: Dataset,
        workspace: Path,
        threads: int,
    ) -> None:
        """Note the graph's answers.

        Args:
            model: The dense graph; not changed.
            consumers: Of each group that will be asked about.
            samples: A few unlabelled samples; their answers are held in memory.
            workspace: For pieces of the graph.
            threads: Compute threads.
        """
        place = {node.outputs[0].name or "": index for index, node in enumerate(model.graph)}
        self._consumers = consumers
        first = [min((item.map for item in found), key=lambda item: place[item.node]) for found in consumers]
        self._order = sorted(range(len(first)), key=lambda index: place[first[index].node])
        self._batches = [feeds for _, feeds in replace(samples, padding={}).batches(_BATCH_SIZE)]
        self._walk = Walk(
            model,
            [
                *(Halt((first[index].data,), before=first[index].node) for index in self._order),
                Halt(tuple(value.name or "" for value in model.graph.outputs)),
            ],
            batches=self._batches,
            workspace=workspace,
            threads=threads,
        )
        self._reference = list(map(_floats, self._walk.look_ahead({})))
        self._energy = sum(map(energy, zip(*self._reference, strict=True)))

    def error_of(self, graph: Path, *, threads: int) -> float:
        """Return the share of the answers' energy that is lost with this graph in place of the dense one."""
        session = OnnxRuntimeBackend().load(graph, threads=threads)
        try:
            names = [spec.name for spec in session.outputs]
            return self._lost(_floats(dict(zip(names, session.run(feeds), strict=True))) for feeds in self._batches)
        finally:
            session.close()

    def sensitivities(
        self, orders: Sequence[RemovalOrder], *, weights: Mapping[str, Array], moments: Mapping[str, Moments]
    ) -> list[Sensitivity]:
        """Relate the reconstruction error of each group to the error of the answers; can be asked once."""
        found: dict[int, Sensitivity] = {}
        for index in self._order:
            for _ in self._walk.advance():
                pass
            found[index] = self._sensitivity(orders[index], self._consumers[index], weights=weights, moments=moments)
        return [found[index] for index in range(len(orders))]

    def _sensitivity(
        self,
        order: RemovalOrder,
        consumers: Sequence[Consumer],
        *,
        weights: Mapping[str, Array],
        moments: Mapping[str, Moments],
    ) -> Sensitivity:
        points = []
        width = len(order.units)
        for share in _REMOVED_SHARES:
            count = min(max(round(share * width), 1), width - 1)
            gone = order.units[:count]
            changed = {item.map.weight: weights_without(item, gone, weights, moments) for item in consumers}
            error = self._lost(map(_floats, self._walk.look_ahead(changed)))
            points.append((max(float(order.errors[count]), _LEAST_ERROR), max(error, _LEAST_ERROR)))
        (first, low), (second, high) = points
        exponent = np.log(high / low) / np.log(second / first) if second > first * 1.01 else 1.0
        exponent = float(np.clip(exponent, *_EXPONENTS))
        scale = float(np.exp(np.mean([np.log(seen) - exponent * np.log(own) for own, seen in points])))
        return Sensitivity(scale, exponent)

    def _lost(self, answers: Iterable[Sequence[Array]]) -> float:
        lost = 0.0
        for reference, given in zip(self._reference, answers, strict=True):
            for wanted, got in zip(reference, given, strict=True):
                lost += float(np.square(got - wanted, dtype=np.float64).sum())
        return lost / max(self._energy, _LEAST_ERROR)


def energy(batches: Sequence[Array]) -> float:
    """Return the sum of squares of one answer about its mean over all samples, however few share a batch.

    Args:
        batches: ``(samples, ...)``; where samples differ in length, the mean is one over all their tokens.
    """
    rows = list(batches)
    if len({batch.shape[1:] for batch in rows}) > 1:
        widths = {batch.shape[-1] for batch in rows}
        rows = [batch.reshape(-1, batch.shape[-1] if len(widths) == 1 else 1) for batch in rows]
    mean = sum(batch.sum(axis=0, dtype=np.float64) for batch in rows) / sum(map(len, rows))
    return float(sum(np.square(batch - mean, dtype=np.float64).sum() for batch in rows))


def _floats(answers: Mapping[str, Array]) -> list[Array]:
    return [array for array in answers.values() if array.dtype.kind == "f"]


def weights_without(
    item: Consumer,
    gone: np.ndarray[tuple[int], np.dtype[np.int64]],
    weights: Mapping[str, Array],
    moments: Mapping[str, Moments],
) -> Array:
    """Return a consumer's weights with the rows of some units zero and the others making up for them."""
    weight = weights[item.map.weight]
    matrix = item.map.matrix(weight)
    rows = item.map.matrix_rows(item.channels[gone].ravel())
    kept = np.setdiff1d(np.arange(len(matrix)), rows)
    # Means are not taken out here: there is no bias to make up for them in this graph.
    second = moments[item.map.node].xx.copy()
    second[np.diag_indices_from(second)] += damping(second, rows=moments[item.map.node].count)
    changed = np.zeros_like(matrix)
    changed[kept] = np.linalg.solve(second[np.ix_(kept, kept)], second[kept] @ matrix)
    return item.map.weight_like(changed, weight)
