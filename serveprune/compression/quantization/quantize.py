"""The `quantize` pass: float32 to int8, with ONNX Runtime's tools writing the graph."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from math import ceil
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import QDQQuantizer, QuantType, quantize_dynamic

from serveprune.compression.passes import PassContext, PassReport
from serveprune.compression.quantization.activation_ranges import ActivationRanges, bounded_ranges
from serveprune.compression.quantization.float_answers import keep_answers_in_float, last_products
from serveprune.compression.quantization.preparation import (
    data_file,
    prepare_for_quantization,
    save_graph,
)
from serveprune.compression.quantization.scheme import Scheme, multiplications
from serveprune.config.profile import QuantizeOptions
from serveprune.errors import BuildFailed, InvalidArgument
from serveprune.evaluation.rows_per_run import rows_per_run
from serveprune.graph.onnx_file import drop_annotations
from serveprune.graph.tensor_types import fed_inputs, tensor_spec

CALIBRATION_BATCH_SIZE = 8

# Gather is the lookup in an embedding table, often most of a text model's bytes. No Conv: ConvInteger is
# several times slower than float32.
_DYNAMIC_OPERATORS = ("Attention", "EmbedLayerNormalization", "Gather", "LSTM", "MatMul")

# Those with an int8 kernel on CPU. Anything else would gain nothing and lose digits between a
# DequantizeLinear and a QuantizeLinear; Softmax has a kernel, but eight bits of a probability are too few.
_STATIC_OPERATORS = (
    *("Add", "AveragePool", "Clip", "Concat", "Conv", "Flatten", "Gemm", "GlobalAveragePool", "LeakyRelu"),
    *("MatMul", "MaxPool", "Mul", "Pad", "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Split", "Squeeze"),
    *("Transpose", "Unsqueeze"),
)
_STATIC_WEIGHT_OPERATORS = frozenset({"Conv", "Gemm", "MatMul"})
_WEIGHT_OPERATORS = _STATIC_WEIGHT_OPERATORS | {"Attention", "ConvTranspose", "Gather", "GRU", "LSTM", "RNN"}
_INTEGER_OPERATORS = frozenset({"DynamicQuantizeLSTM", "DequantizeLinear", "MatMulInteger", "QAttention"})


class QuantizePass:
    """Integer weights and activations: dynamic for matrix products, static QDQ for convolutions."""

    def apply(self, graph: Path, *, output: Path, context: PassContext) -> PassReport:
        """See `Pass.apply`."""
        options = context.options
        assert isinstance(options, QuantizeOptions)
        prepared = context.workspace / "prepared.onnx"
        model = prepare_for_quantization(graph, output=prepared, threads=context.threads)
        context.progress(0.1)
        counted = multiplications(model)
        scheme: Scheme = counted.scheme if options.scheme == "auto" else options.scheme
        ignored = ignored_nodes(model, options.ignore)
        reduce_range = needs_reduced_range(context.cpu)
        findings: dict[str, Any] = {
            "scheme": scheme,
            "chosen_by": "profile" if options.scheme != "auto" else "graph",
            "multiplications": {
                "convolution": counted.convolution,
                "matrix": counted.matrix,
                "recurrent": counted.recurrent,
            },
            "reduce_range": reduce_range,
            "ignored": sorted(ignored),
        }
        if scheme == "dynamic":
            _write_dynamic(prepared, output=output, ignored=ignored, reduce_range=reduce_range)
        else:
            findings |= _write_static(
                prepared, model, output=output, ignored=ignored, reduce_range=reduce_range, context=context
            )
        written = onnx.load(output, load_external_data=False)
        drop_annotations(written)
        onnx.save(written, output)
        findings["integer_operators"] = _integer_operators(written, scheme)
        findings["left_in_float"] = sorted({*findings.get("left_in_float", ()), *_nodes_with_float_weights(written)})
        context.progress(1.0)
        return PassReport(findings)


def needs_reduced_range(cpu: str) -> bool:
    """Tell whether weights must keep to 7 bits on this CPU.

    With AVX2 or AVX512 but without VNNI (or AMX), ONNX Runtime multiplies unsigned by signed bytes with an
    instruction that saturates at 16 bits; full 8-bit weights would give wrong sums.
    """
    features = set(re.findall(r"[a-z0-9_]+", cpu.lower()))
    exact = any("vnni" in feature or feature == "amx_int8" for feature in features)
    return not exact and any(feature == "avx2" or feature.startswith("avx512") for feature in features)


def ignored_nodes(model: onnx.ModelProto, patterns: Sequence[str]) -> set[str]:
    """Return the names of the nodes that match any of the shell-style patterns.

    Raises:
        InvalidArgument: A pattern matches no node.
    """
    names = {node.name for node in model.graph.node}
    matched: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            some = ", ".join(node.name for node in model.graph.node if node.op_type in _STATIC_WEIGHT_OPERATORS)
            raise InvalidArgument(
                f"quantize: the ignore pattern {pattern!r} matches no node of the graph; "
                f"nodes with weights are: {some[:500]}"
            )
        matched |= found
    return matched


def _write_dynamic(prepared: Path, *, output: Path, ignored: Iterable[str], reduce_range: bool) -> None:
    quantize_dynamic(
        prepared,
        output,
        op_types_to_quantize=list(_DYNAMIC_OPERATORS),
        per_channel=True,
        reduce_range=reduce_range,
        weight_type=QuantType.QInt8,
        # The quantizer first splits each Gemm into a MatMul of this name and an Add.
        nodes_to_exclude=[name for node in ignored for name in (node, f"{node}_MatMul")],
        use_external_data_format=data_file(prepared).exists(),
    )


def _write_static(
    prepared: Path,
    model: onnx.ModelProto,
    *,
    output: Path,
    ignored: Iterable[str],
    reduce_range: bool,
    context: PassContext,
) -> dict[str, Any]:
    calibration = context.calibration
    if calibration is None:
        raise InvalidArgument(
            "quantize: scheme static takes the ranges of activations from calibration data, and this model has "
            "none; set models.<name>.calibration.file (or --calibration), or scheme: dynamic in the profile"
        )
    observer = ActivationRanges(
        prepared,
        operators=_STATIC_OPERATORS,
        augmented=context.workspace / "augmented.onnx",
        threads=context.threads,
    )
    inputs = [tensor_spec(value) for value in fed_inputs(model.graph)]
    batch_size = rows_per_run(inputs, wanted=CALIBRATION_BATCH_SIZE)
    batches, done = ceil(len(calibration) / batch_size), 0

    def advance() -> None:
        nonlocal done
        done += 1
        context.progress(0.1 + 0.7 * min(1.0, done / max(1, batches)))

    ranges = observer.observe((feeds for _, feeds in calibration.batches(batch_size)), on_batch=advance)
    ranges, boundless = bounded_ranges(ranges)
    left = {node.name for node in model.graph.node if boundless.intersection((*node.input, *node.output))}
    left |= _products_of_activations(model)
    last = last_products(model)
    # U8S8: with ONNX Runtime's default of signed activations, convolutions beside a residual stay in float.
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=reduce_range,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=[],
        nodes_to_exclude=sorted({*ignored, *left, *last.followers}),
        op_types_to_quantize=list(_STATIC_OPERATORS),
        extra_options={},
    )
    quantized = quantizer.quantize_model()
    keep_answers_in_float(quantized, last.products.difference(ignored, left))
    save_graph(quantized, output)
    return {"calibration_samples": len(calibration), "left_in_float": sorted(left)}


def _products_of_activations(model: onnx.ModelProto) -> set[str]:
    """MatMuls without a constant operand, as in attention: integer scales cost them most and gain least."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return {node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1] not in weights}


def _nodes_with_float_weights(written: onnx.ModelProto) -> set[str]:
    """Return the nodes that still take a matrix, a table or filters of floats."""
    weights = {
        tensor.name
        for tensor in written.graph.initializer
        if len(tensor.dims) > 1 and tensor.data_type == onnx.TensorProto.FLOAT
    }
    return {
        node.name
        for node in written.graph.node
        if node.op_type in _WEIGHT_OPERATORS and weights.intersection(node.input)
    }


def _integer_operators(written: onnx.ModelProto, scheme: Scheme) -> dict[str, int]:
    """Count the operators of the written graph that come from quantizing; refuse a graph without any."""
    counted = Counter(node.op_type for node in written.graph.node)
    found = {name: count for name, count in sorted(counted.items()) if name in _INTEGER_OPERATORS}
    if not found:
        kinds = _DYNAMIC_OPERATORS if scheme == "dynamic" else sorted(_STATIC_WEIGHT_OPERATORS)
        raise BuildFailed(
            f"quantize: the pass changed nothing: scheme {scheme} found no {', '.join(kinds)} with constant "
            "weights outside the ignore patterns; choose another scheme, or remove the pass from the profile"
        )
    return found
