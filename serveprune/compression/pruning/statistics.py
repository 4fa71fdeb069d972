"""Second moments of what linear maps read, gathered on ONNX Runtime from calibration samples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from serveprune.compression.pruning.linear import LinearMap, Matrix
from serveprune.compression.pruning.walk import Halt, Walk
from serveprune.evaluation.dataset import Dataset
from serveprune.oip.tensor import Array

_POSITIONS_PER_SAMPLE = 64
"""Output positions of a Conv that are looked at per sample; neighbours say nearly the same."""

_BATCH_SIZE = 16
_ROWS_AT_ONCE = 1024


@dataclass(slots=True)
class Moments:
    """Sums over rows ``x`` that a linear map reads, and over the outputs ``y`` it should give.

    Memory is ``8 * inputs * (inputs + outputs)`` bytes, however many rows are added.

    Attributes:
        count: Number of rows.
        x: ``(inputs,)`` sum of rows.
        xx: ``(inputs, inputs)`` sum of outer products.
        y: ``(outputs,)`` sum of outputs.
        xy: ``(inputs, outputs)`` sum of products.
        yy: ``(outputs,)`` sum of squares of the outputs.
    """

    count: int = 0
    x: Matrix = field(default_factory=lambda: np.zeros(0))
    xx: Matrix = field(default_factory=lambda: np.zeros((0, 0)))
    y: Matrix = field(default_factory=lambda: np.zeros(0))
    xy: Matrix = field(default_factory=lambda: np.zeros((0, 0)))
    yy: Matrix = field(default_factory=lambda: np.zeros(0))

    def add(self, rows: Array, outputs: Array) -> None:
        """Take in ``(rows, inputs)`` and ``(rows, outputs)`` float32; products in float32, sums in float64."""
        if not self.count:
            inputs, width = rows.shape[1], outputs.shape[1]
            self.x, self.xx = np.zeros(inputs), np.zeros((inputs, inputs))
            self.y, self.yy, self.xy = np.zeros(width), np.zeros(width), np.zeros((inputs, width))
        self.count += len(rows)
        self.x += rows.sum(axis=0, dtype=np.float64)
        self.xx += rows.T @ rows
        self.y += outputs.sum(axis=0, dtype=np.float64)
        self.xy += rows.T @ outputs
        self.yy += np.square(outputs, dtype=np.float64).sum(axis=0)

    def centred(self) -> tuple[Matrix, Matrix]:
        """Return the covariances ``(inputs, inputs)`` and ``(inputs, outputs)``, not divided by the count."""
        mean = self.x / self.count
        return self.xx - np.outer(mean, self.x), self.xy - np.outer(mean, self.y)

    def output_variance(self) -> Matrix:
        """Return the sum of squares of each output about its mean, ``(outputs,)``."""
        return np.maximum(self.yy - np.square(self.y) / self.count, 0.0)


class MomentSum:
    """Adds rows up to moments, many at a time: small products take several times as long."""

    def __init__(self) -> None:
        """Begin with none."""
        self._moments = Moments()
        self._rows: list[Array] = []
        self._outputs: list[Array] = []
        self._waiting = 0

    def add(self, rows: Array, outputs: Array) -> None:
        """Take in ``(rows, inputs)`` and ``(rows, outputs)`` float32."""
        self._rows.append(rows)
        self._outputs.append(outputs)
        self._waiting += len(rows)
        if self._waiting >= _ROWS_AT_ONCE:
            self._take()

    def moments(self) -> Moments:
        """Return the moments of all rows so far."""
        if self._waiting:
            self._take()
        return self._moments

    def _take(self) -> None:
        self._moments.add(np.concatenate(self._rows), np.concatenate(self._outputs))
        self._rows, self._outputs, self._waiting = [], [], 0


def collect_moments(
    maps: Sequence[LinearMap], *, model: ir.Model, samples: Dataset, workspace: Path, threads: int
) -> dict[str, Moments]:
    """Return the moments of what each map reads and gives, by its node, in one run over the samples."""
    place = {node.outputs[0].name or "": (index, node) for index, node in enumerate(model.graph)}
    ordered = sorted(maps, key=lambda item: place[item.node][0])
    # Halting at each map keeps what all of them read from being in memory at once.
    halts = [Halt((item.data, item.node)) for item in ordered]
    walk = Walk(model, halts, batches=unpadded_batches(samples), workspace=workspace, threads=threads)
    moments = {}
    for item in ordered:
        total = MomentSum()
        for index, seen in enumerate(walk.advance()):
            add_rows(total, item, place[item.node][1], data=seen[item.data], output=seen[item.node], seed=index)
        moments[item.node] = total.moments()
    return moments


def add_rows(total: MomentSum, item: LinearMap, node: ir.Node, *, data: Array, output: Array, seed: int) -> None:
    """Add what a map reads and should give for one batch; of large images only some positions, drawn by the seed."""
    positions = _positions(item, output, seed=seed)
    total.add(item.rows(data, node, positions=positions), item.outputs(output, positions=positions))


def unpadded_batches(samples: Dataset) -> Iterator[Mapping[str, Array]]:
    """Return batches of samples of equal shape: padding would be learned as if it were input."""
    for _, feeds in replace(samples, padding={}).batches(_BATCH_SIZE):
        yield feeds


def _positions(item: LinearMap, output: Array, *, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]] | None:
    if item.operator != "Conv":
        return None
    count = int(np.prod(output.shape[2:]))
    if count <= _POSITIONS_PER_SAMPLE:
        return None
    return np.sort(np.random.default_rng(seed).choice(count, _POSITIONS_PER_SAMPLE, replace=False))
