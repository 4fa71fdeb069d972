"""The same few lines around ONNX Runtime for every peer; they run inside the peer's own environment."""

import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

GRAPH_VARIABLE = "BENCHMARK_GRAPH"
THREADS_VARIABLE = "BENCHMARK_THREADS"

Array = NDArray[np.generic]

_TYPES: Mapping[str, np.dtype[np.generic]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(int64)": np.dtype(np.int64),
}


class OnnxGraph:
    """A session with a bounded number of threads."""

    def __init__(self, path: str, *, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._made_with = (path, threads)
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.input_types = {each.name: _TYPES[each.type] for each in self._session.get_inputs()}
        self.output_names = [each.name for each in self._session.get_outputs()]
        # One row of each input, `-1` for the one axis that may be dynamic.
        self._row_shapes = {
            each.name: tuple(size if isinstance(size, int) else -1 for size in each.shape[1:])
            for each in self._session.get_inputs()
        }

    def __reduce__(self) -> tuple[Callable[..., "OnnxGraph"], tuple[str, int]]:
        # KServe sends models to its worker processes; a session cannot be sent, so it is loaded there again.
        return _loaded, self._made_with

    def row(self, name: str, values: Sequence[float] | bytes | bytearray) -> Array:
        """Return an input of one row, ``(1, ...)``, from a flat list or from raw bytes."""
        datatype = self.input_types[name]
        if isinstance(values, bytes | bytearray):
            flat: Array = np.frombuffer(values, datatype)
        else:
            flat = np.asarray(values, datatype)
        row: Array = flat.reshape(1, *self._row_shapes[name])
        return row

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Compute all outputs."""
        results: list[Array] = self._session.run(self.output_names, dict(feeds))
        return results


def _loaded(path: str, threads: int) -> OnnxGraph:
    return OnnxGraph(path, threads=threads)


def graph_of_environment() -> OnnxGraph:
    """Load the graph that the benchmark names in the environment."""
    return OnnxGraph(os.environ[GRAPH_VARIABLE], threads=int(os.environ[THREADS_VARIABLE]))
