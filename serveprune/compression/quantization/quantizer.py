"""Writes integer versions of one float graph, whichever of its layers stay in float."""

from collections.abc import Callable, Collection
from math import ceil
from pathlib import Path

import onnx
from onnxruntime.quantization import QDQQuantizer, QuantType, TensorsData, quantize_dynamic

from serveprune.compression.quantization.activation_ranges import ActivationRanges, bounded_ranges
from serveprune.compression.quantization.float_answers import LastProducts, keep_answers_in_float, last_products
from serveprune.compression.quantization.preparation import data_file, save_graph
from serveprune.compression.quantization.scheme import Scheme
from serveprune.errors import InvalidArgument
from serveprune.evaluation.dataset import Dataset
from serveprune.evaluation.rows_per_run import rows_per_run
from serveprune.graph.onnx_file import drop_annotations
from serveprune.graph.tensor_types import fed_inputs, tensor_spec

_CALIBRATION_BATCH_SIZE = 8

# Gather is the lookup in an embedding table, often most of a text model's bytes. No Conv: ConvInteger is
# several times slower than float32.
DYNAMIC_OPERATORS = ("Attention", "EmbedLayerNormalization", "Gather", "LSTM", "MatMul")

# Those with an int8 kernel on CPU. Anything else would gain nothing and lose digits between a
# DequantizeLinear and a QuantizeLinear; Softmax has a kernel, but eight bits of a probability are too few.
_STATIC_OPERATORS = (
    *("Add", "AveragePool", "Clip", "Concat", "Conv", "Flatten", "Gemm", "GlobalAveragePool", "LeakyRelu"),
    *("MatMul", "MaxPool", "Mul", "Pad", "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Split", "Squeeze"),
    *("Transpose", "Unsqueeze"),
)
STATIC_WEIGHT_OPERATORS = frozenset({"Conv", "Gemm", "MatMul"})


class Quantizer:
    """Writes integer versions of one prepared graph; with static scales, the calibration set is run only once.

    Attributes:
        model: The float graph, with the names that ``ignored`` speaks of; not to be changed.
        scheme: Where the scales of activations come from.
        left_in_float: Nodes that no integer scale can serve.
    """

    def __init__(
        self,
        prepared: Path,
        model: onnx.ModelProto,
        *,
        scheme: Scheme,
        reduce_range: bool,
        calibration: Dataset | None,
        workspace: Path,
        threads: int,
        progress: Callable[[float], None] = lambda fraction: None,
    ) -> None:
        """Take the ranges of activations, if the scheme needs them.

        Args:
            prepared: What `prepare_for_quantization` wrote.
            model: What it returned; a MatMul that answers come from may become a Gemm.
            scheme: ``dynamic`` or ``static``.
            reduce_range: Weights keep to 7 bits.
            calibration: Samples the ranges are taken from.
            workspace: For the graph that observes them.
            threads: Compute threads.
            progress: Takes the done fraction.

        Raises:
            InvalidArgument: The scheme is static and there is no calibration set.
        """
        self.model = model
        self.scheme = scheme
        self._prepared = prepared
        self._reduce_range = reduce_range
        self._ranges: TensorsData | None = None
        self._last = LastProducts(frozenset(), frozenset())
        self.left_in_float: frozenset[str] = frozenset()
        if scheme == "static":
            self._ranges, boundless = _ranges(
                prepared, model, calibration, workspace=workspace, threads=threads, progress=progress
            )
            left = {node.name for node in model.graph.node if boundless.intersection((*node.input, *node.output))}
            self.left_in_float = frozenset(left | _products_of_activations(model))
            self._last = last_products(model)

    def write(self, output: Path, *, ignored: Collection[str]) -> None:
        """Write the integer graph in which the nodes ``ignored`` stay in float."""
        if self.scheme == "dynamic":
            self._write_dynamic(self._prepared, output, ignored)
            written = onnx.load(output, load_external_data=False)
            drop_annotations(written)
            onnx.save(written, output)
        else:
            quantized = self._static(self.model, ignored)
            drop_annotations(quantized)
            save_graph(quantized, output)

    def piece(self, nodes: onnx.ModelProto, *, workspace: Path) -> onnx.ModelProto:
        """Return some of the graph's nodes as a model in integers; the values keep their names.

        Args:
            nodes: A model of a few nodes of ``model``; not changed.
            workspace: For files that lie between.
        """
        if self.scheme == "static":
            return self._static(nodes, ())
        given, output = workspace / "piece.onnx", workspace / "piece.int8.onnx"
        onnx.save(nodes, given)
        self._write_dynamic(given, output, ())
        return onnx.load(output)

    def _write_dynamic(self, graph: Path, output: Path, ignored: Collection[str]) -> None:
        quantize_dynamic(
            graph,
            output,
            op_types_to_quantize=list(DYNAMIC_OPERATORS),
            per_channel=True,
            reduce_range=self._reduce_range,
            weight_type=QuantType.QInt8,
            # The quantizer first splits each Gemm into a MatMul of this name and an Add.
            nodes_to_exclude=[name for node in ignored for name in (node, f"{node}_MatMul")],
            use_external_data_format=data_file(graph).exists(),
        )

    def _static(self, model: onnx.ModelProto, ignored: Collection[str]) -> onnx.ModelProto:
        # The quantizer changes the model it is given.
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        # U8S8: with ONNX Runtime's default of signed activations, convolutions beside a residual stay in float.
        quantizer = QDQQuantizer(
            copy,
            per_channel=True,
            reduce_range=self._reduce_range,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=self._ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=sorted({*ignored, *self.left_in_float, *self._last.followers}),
            op_types_to_quantize=list(_STATIC_OPERATORS),
            extra_options={},
        )
        quantized: onnx.ModelProto = quantizer.quantize_model()
        keep_answers_in_float(quantized, self._last.products.difference(ignored, self.left_in_float))
        return quantized


def _ranges(
    prepared: Path,
    model: onnx.ModelProto,
    calibration: Dataset | None,
    *,
    workspace: Path,
    threads: int,
    progress: Callable[[float], None],
) -> tuple[TensorsData, set[str]]:
    if calibration is None:
        raise InvalidArgument(
            "quantize: scheme static takes the ranges of activations from calibration data, and this model has "
            "none; set models.<name>.calibration.file (or --calibration), or scheme: dynamic in the profile"
        )
    observer = ActivationRanges(
        prepared, operators=_STATIC_OPERATORS, augmented=workspace / "augmented.onnx", threads=threads
    )
    inputs = [tensor_spec(value) for value in fed_inputs(model.graph)]
    batch_size = rows_per_run(inputs, wanted=_CALIBRATION_BATCH_SIZE)
    batches, done = ceil(len(calibration) / batch_size), 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress(min(1.0, done / max(1, batches)))

    ranges = observer.observe((feeds for _, feeds in calibration.batches(batch_size)), on_batch=advance)
    return bounded_ranges(ranges)


def _products_of_activations(model: onnx.ModelProto) -> set[str]:
    """MatMuls without a constant operand, as in attention: integer scales cost them most and gain least."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return {node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1] not in weights}
