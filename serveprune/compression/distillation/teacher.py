"""What the dense graph gives for each sample, computed once."""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.compression.distillation.held_samples import HeldSamples
from serveprune.compression.distillation.losses import are_probabilities
from serveprune.compression.distillation.watched_values import Meaning, WatchedValue
from serveprune.errors import InvalidArgument
from serveprune.evaluation.dataset import Dataset
from serveprune.evaluation.rows_per_run import rows_per_run
from serveprune.graph.onnx_file import MAX_EMBEDDED_BYTES
from serveprune.oip.tensor import Array

_BATCH_SIZE = 32
_LARGEST_HALF = float(np.finfo(np.float16).max)


class TeacherAnswers:
    """The watched values of the dense graph for the samples of one set.

    Intermediate values are kept in units of their root mean square, with which half precision is enough; they take most
    of the room.

    Attributes:
        watched: What is kept.
        scales: Root mean square of each.
        distributions: Names of the class scores that are probabilities already.
    """

    def __init__(
        self,
        graph: Path,
        watched: Sequence[WatchedValue],
        *,
        dataset: Dataset,
        workspace: Path,
        threads: int,
        progress: Callable[[float], None],
    ) -> None:
        """Run the dense graph over all samples.

        Args:
            graph: The dense graph.
            watched: What to keep, outputs and intermediate values.
            dataset: The samples.
            workspace: For the graph with more outputs, and for what does not fit in memory.
            threads: Compute threads.
            progress: Takes the fraction done.

        Raises:
            InvalidArgument: A value is not one of floats, or has not the student's shape.
        """
        self.watched = tuple(watched)
        self._dataset = dataset
        self._held = HeldSamples(workspace / f"teacher-{id(self)}.bin")
        names = [value.name for value in watched]
        path = workspace / "teacher.onnx"
        _write_with_outputs(graph, names, path)
        with closing(OnnxRuntimeBackend().load(path, threads=threads)) as session:
            batch_size = rows_per_run(session.inputs, wanted=_BATCH_SIZE)
            first = session.run(dataset.typical_batch(batch_size)[1], outputs=names)
            self.scales = {
                value.name: _root_mean_square(value, array) for value, array in zip(watched, first, strict=True)
            }
            self.distributions = frozenset(
                value.name
                for value, array in zip(watched, first, strict=True)
                if value.meaning is Meaning.CLASSES and are_probabilities(torch.from_numpy(array))
            )
            done = 0
            for indices, feeds in dataset.batches(batch_size):
                self._put(indices, session.run(feeds, outputs=names))
                done += len(indices)
                progress(done / len(dataset))

    def batch(self, indices: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the values of some samples, ``(n, ...)``, lengthened with zeros where samples differ in length."""
        rows = [self._held.get(int(index)) for index in indices]
        return {
            value.name: _stacked([row[place] for row in rows], by_token=value.by_token)
            for place, value in enumerate(self.watched)
        }

    def mask(self, indices: NDArray[np.int64]) -> Tensor | None:
        """Return which tokens are real, ``(n, length)`` bool; None where all samples of a batch have one length."""
        lengths = [self._dataset.length(int(index)) for index in indices]
        if None in lengths or len(set(lengths)) == 1:
            return None
        own = torch.tensor(lengths).unsqueeze(1)
        return torch.arange(int(own.max())).unsqueeze(0) < own

    def _put(self, indices: Array, arrays: Sequence[Array]) -> None:
        projected = [value.projected(array) for value, array in zip(self.watched, arrays, strict=True)]
        for place, index in enumerate(indices.tolist()):
            length = self._dataset.length(index)
            self._held.put(
                index,
                [
                    self._kept(value, array[place][:length] if value.by_token else array[place])
                    for value, array in zip(self.watched, projected, strict=True)
                ],
            )

    def _kept(self, value: WatchedValue, array: Array) -> Array:
        if value.meaning is not Meaning.INTERMEDIATE:
            return array.astype(np.float32)
        scaled: Array = array.astype(np.float32) / np.float32(self.scales[value.name])
        return scaled.clip(-_LARGEST_HALF, _LARGEST_HALF).astype(np.float16)


def _root_mean_square(value: WatchedValue, array: Array) -> float:
    if array.dtype.kind != "f":
        raise InvalidArgument(f"distill: {value.name!r}: expected a value of floats, got {array.dtype}")
    found = float(np.sqrt(np.mean(np.square(array.astype(np.float64)))))
    if not np.isfinite(found):
        raise InvalidArgument(f"distill: the dense graph itself gives NaN or infinity in {value.name!r}")
    return found or 1.0


def _stacked(rows: Sequence[Array], *, by_token: bool) -> Tensor:
    if not by_token:
        return torch.from_numpy(np.stack(rows)).float()
    length = max(len(row) for row in rows)
    stacked = np.zeros((len(rows), length, *rows[0].shape[1:]), rows[0].dtype)
    for target, row in zip(stacked, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(stacked).float()


def _write_with_outputs(graph: Path, names: Sequence[str], path: Path) -> None:
    """Write a graph that also gives the named values."""
    model = onnx.load(graph)
    present = {output.name for output in model.graph.output}
    # ONNX Runtime infers the types of outputs that do not say theirs.
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    large = model.ByteSize() > MAX_EMBEDDED_BYTES
    onnx.save(model, path, save_as_external_data=large, location=f"{path.name}.data")
