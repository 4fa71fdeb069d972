"""The same few lines around ONNX Runtime for every peer; they run inside the peer's own environment."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

GRAPH_VARIABLE = "BENCHMARK_GRAPH"
THREADS_VARIABLE = "BENCHMARK_THREADS"

Array = NDArray[np.generic]

_TYPES = {"tensor(float)": np.dtype(np.float32), "tensor(int64)": np.dtype(np.int64)}


class OnnxGraph:
    """A session with a bounded number of threads."""

    def __init__(self, path: str, *, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.input_types = {each.name: _TYPES[each.type] for each in self._session.get_inputs()}
        self.output_names = [each.name for each in self._session.get_outputs()]
        # One row of each input, `-1` for the one axis that may be dynamic.
        self._row_shapes = {
            each.name: tuple(size if isinstance(size, int) else -1 for size in each.shape[1:])
            for each in self._session.get_inputs()
        }

    def row(self, name: str, values: "Sequence[float] | bytes | bytearray") -> Array:
        """Return an input of one row, ``(1, ...)``, from a flat list or from raw bytes."""
        datatype = self.input_types[name]
        raw = isinstance(values, bytes | bytearray)
        flat = np.frombuffer(values, datatype) if raw else np.asarray(values, datatype)
        return flat.reshape(1, *self._row_shapes[name])

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Compute all outputs."""
        results: list[Array] = self._session.run(self.output_names, dict(feeds))
        return results


def graph_of_environment() -> OnnxGraph:
    """Load the graph that the benchmark names in the environment."""
    return OnnxGraph(os.environ[GRAPH_VARIABLE], threads=int(os.environ[THREADS_VARIABLE]))
