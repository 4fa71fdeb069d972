"""What removing units of one group does to the model's answers: seen, not assumed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend, OnnxRuntimeSession
from serveprune.compression.pruning.dependency_graph import PruningGroup
from serveprune.compression.pruning.importance import DAMPING_RATIO, Consumer, RemovalOrder
from serveprune.compression.pruning.linear import Matrix
from serveprune.compression.pruning.statistics import Moments
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
    """A dense graph whose consumer weights can be replaced for one run.

    A unit whose rows of weights are zero is as good as removed, and the rows of the others can make up for it, so
    one loaded graph shows every group at every width.
    """

    def __init__(
        self, model: ir.Model, consumers: Sequence[Consumer], *, samples: Dataset, workspace: Path, threads: int
    ) -> None:
        """Load the graph and note its answers.

        Args:
            model: The dense graph; not changed.
            consumers: Of all groups that will be asked about.
            samples: A few unlabelled samples; their answers are held in memory.
            workspace: Where the graph is written.
            threads: Compute threads.
        """
        proto = ir.to_proto(model)
        given = {value.name for value in proto.graph.input}
        for name in dict.fromkeys(consumer.map.weight for consumer in consumers):
            tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
            if name not in given:
                # An initializer that is an input as well is a default that a run may replace.
                proto.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
        path = workspace / "sensitivity.onnx"
        onnx.save(proto, path)
        self._session = OnnxRuntimeBackend().load(path, threads=threads)
        self._batches = [feeds for _, feeds in replace(samples, padding={}).batches(_BATCH_SIZE)]
        self._reference = _answers(self._session, self._batches, {})

    def error(self, weights: Mapping[str, Array]) -> float:
        """Return the share of the answers' energy that is lost with these weights in place of the dense ones."""
        return self._lost(_answers(self._session, self._batches, weights))

    def error_of(self, graph: Path, *, threads: int) -> float:
        """Return the share of the answers' energy that is lost with this graph in place of the dense one."""
        session = OnnxRuntimeBackend().load(graph, threads=threads)
        try:
            return self._lost(_answers(session, self._batches, {}))
        finally:
            session.close()

    def sensitivity(
        self,
        group: PruningGroup,
        order: RemovalOrder,
        consumers: Sequence[Consumer],
        *,
        weights: Mapping[str, Array],
        moments: Mapping[str, Moments],
    ) -> Sensitivity:
        """Relate a group's reconstruction error to the error of the answers."""
        points = []
        for share in _REMOVED_SHARES:
            count = min(max(round(share * group.width), 1), group.width - 1)
            gone = order.units[:count]
            changed = {item.map.weight: _without(item, gone, weights, moments) for item in consumers}
            points.append((max(float(order.errors[count]), _LEAST_ERROR), max(self.error(changed), _LEAST_ERROR)))
        (first, low), (second, high) = points
        exponent = np.log(high / low) / np.log(second / first) if second > first * 1.01 else 1.0
        exponent = float(np.clip(exponent, *_EXPONENTS))
        scale = float(np.exp(np.mean([np.log(seen) - exponent * np.log(own) for own, seen in points])))
        return Sensitivity(scale, exponent)

    def close(self) -> None:
        """Free the graph."""
        self._session.close()

    def _lost(self, answers: Sequence[Sequence[Array]]) -> float:
        lost = energy = 0.0
        for reference, given in zip(self._reference, answers, strict=True):
            for wanted, got in zip(reference, given, strict=True):
                lost += float(np.square(got - wanted, dtype=np.float64).sum())
                energy += float(np.square(wanted - wanted.mean(axis=0), dtype=np.float64).sum())
        return lost / max(energy, _LEAST_ERROR)


def _answers(
    session: OnnxRuntimeSession, batches: Sequence[Mapping[str, Array]], weights: Mapping[str, Array]
) -> list[list[Array]]:
    return [[array for array in session.run({**feeds, **weights}) if array.dtype.kind == "f"] for feeds in batches]


def _without(
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
    second[np.diag_indices_from(second)] += DAMPING_RATIO * np.trace(second) / len(second) + 1e-12
    changed = np.zeros_like(matrix)
    changed[kept] = np.linalg.solve(second[np.ix_(kept, kept)], second[kept] @ matrix)
    return item.map.weight_like(changed, weight)
