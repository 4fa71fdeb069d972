"""The range of every activation over a calibration set, in bounded memory."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.quantization import MinMaxCalibrater, TensorsData

from serveprune.compression.quantization.preparation import data_file
from serveprune.errors import BuildFailed
from serveprune.oip.tensor import Array

_ERRORS_ONLY = 3


class ActivationRanges(MinMaxCalibrater):  # type: ignore[misc]  # ONNX Runtime has no annotations
    """Smallest and largest value of every activation over all batches seen.

    The reductions are part of the calibrated graph, so what comes out of a batch is two scalars a tensor,
    and each batch is merged into the ranges before the next is computed. Memory at any time: the weights,
    the activations of one batch, and four scalars a tensor, however many samples there are. (ONNX Runtime's
    own loop keeps the results of all batches; its option against that drops them unmerged.)
    """

    def __init__(self, graph: Path, *, operators: Sequence[str], augmented: Path, threads: int) -> None:
        """Add the reductions to ``graph``, writing the result to ``augmented``, and load it."""
        super().__init__(
            graph,
            list(operators),
            augmented_model_path=str(augmented),
            use_external_data_format=data_file(graph).exists(),
        )
        self._threads = threads
        self.augment_graph()
        self.create_inference_session()

    def create_inference_session(self) -> None:
        """Load the augmented graph with as many threads as the build may use."""
        options = ort.SessionOptions()
        # A fused or removed value could not be observed.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = self._threads
        options.log_severity_level = _ERRORS_ONLY
        # Each batch has a shape of its own; an arena would keep memory for all of them.
        options.enable_cpu_mem_arena = False
        self.infer_session = ort.InferenceSession(
            str(self.augmented_model_path), options, providers=["CPUExecutionProvider"]
        )

    def observe(self, batches: Iterable[Mapping[str, Array]], *, on_batch: Callable[[], None]) -> TensorsData:
        """Run the batches, one at a time, and return the ranges by tensor.

        Raises:
            BuildFailed: There was no batch, or the graph cannot compute one.
        """
        for batch in batches:
            try:
                self.collect_data(_OneBatch(batch))
            except Exception as error:  # ONNX Runtime raises a dozen unrelated types here
                fed = ", ".join(f"{name} {list(array.shape)}" for name, array in batch.items())
                raise BuildFailed(
                    f"quantize: the graph cannot compute a calibration batch of {fed}: {str(error).splitlines()[0]}"
                ) from error
            on_batch()
        if self.calibrate_tensors_range is None:
            raise BuildFailed("quantize: the calibration set is empty; scheme static needs at least one sample")
        return self.calibrate_tensors_range


class _OneBatch:
    """ONNX Runtime's reader protocol over a single batch."""

    def __init__(self, batch: Mapping[str, Array]) -> None:
        self._batch: dict[str, Array] | None = dict(batch)

    def get_next(self) -> dict[str, Array] | None:
        batch, self._batch = self._batch, None
        return batch


def bounded_ranges(ranges: TensorsData, *, limit: float = 1e30) -> tuple[TensorsData, set[str]]:
    """Split off the tensors that no integer scale can hold: infinite, or an attention mask's -3e38.

    Returns:
        The ranges without them, and their names.
    """

    def bounded(data: Any) -> bool:
        low, high = (float(bound.item()) for bound in data.range_value)
        return math.isfinite(low) and math.isfinite(high) and max(abs(low), abs(high)) < limit

    kept = {name: data for name, data in ranges.items() if bounded(data)}
    return TensorsData(ranges.calibration_method, kept), {name for name in ranges if name not in kept}
