"""The `quantize` pass: float32 to int8, with ONNX Runtime's tools writing the graph."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import onnx

from serveprune.compression.passes import PassContext, PassReport
from serveprune.compression.quantization.layer_errors import LayerErrors
from serveprune.compression.quantization.layers import Layer, quantizable_layers
from serveprune.compression.quantization.nncf_quantizer import quantize_with_nncf
from serveprune.compression.quantization.preparation import prepare_for_quantization, save_graph
from serveprune.compression.quantization.quantizer import DYNAMIC_OPERATORS, STATIC_WEIGHT_OPERATORS, Quantizer
from serveprune.compression.quantization.scheme import Scheme, multiplications
from serveprune.config.profile import QuantizeOptions
from serveprune.errors import BuildFailed, InvalidArgument

_WEIGHT_OPERATORS = STATIC_WEIGHT_OPERATORS | {"Attention", "ConvTranspose", "Gather", "GRU", "LSTM", "RNN"}
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
        ignored = ignored_nodes(model, options.ignore)
        if options.scheme == "nncf":
            return _by_nncf(model, output, ignored, context=context)
        counted = multiplications(model)
        scheme: Scheme = counted.scheme if options.scheme == "auto" else options.scheme
        reduce_range = needs_reduced_range(context.cpu)
        quantizer = Quantizer(
            prepared,
            model,
            scheme=scheme,
            reduce_range=reduce_range,
            calibration=context.calibration,
            workspace=context.workspace,
            threads=context.threads,
            progress=lambda done: context.progress(0.1 + 0.5 * done),
        )
        sensitive = _most_sensitive(quantizer, graph, prepared, ignored, context=context)
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
            "kept_float": [{"layer": layer.label, "node": layer.node, "error": error} for layer, error in sensitive],
        }
        kept = {name for layer, _ in sensitive for name in layer.quantized_nodes}
        quantizer.write(output, ignored={*ignored, *kept})
        if scheme == "static" and context.calibration is not None:
            findings |= {"calibration_samples": len(context.calibration)}
        written = onnx.load(output, load_external_data=False)
        findings["integer_operators"] = _integer_operators(written, scheme)
        findings["left_in_float"] = sorted(quantizer.left_in_float | _nodes_with_float_weights(written))
        context.progress(1.0)
        return PassReport(findings)


def _by_nncf(model: onnx.ModelProto, output: Path, ignored: set[str], *, context: PassContext) -> PassReport:
    reduce_range = needs_reduced_range(context.cpu)
    written = quantize_with_nncf(model, calibration=context.calibration, ignored=ignored, reduce_range=reduce_range)
    save_graph(written, output)
    context.progress(1.0)
    return PassReport(
        {
            "scheme": "nncf",
            "chosen_by": "profile",
            "reduce_range": reduce_range,
            "ignored": sorted(ignored),
            "calibration_samples": len(context.calibration or ()),
            "integer_operators": _integer_operators(written, "static"),
            "left_in_float": sorted(_nodes_with_float_weights(written)),
        }
    )


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
            some = ", ".join(node.name for node in model.graph.node if node.op_type in STATIC_WEIGHT_OPERATORS)
            raise InvalidArgument(
                f"quantize: the ignore pattern {pattern!r} matches no node of the graph; "
                f"nodes with weights are: {some[:500]}"
            )
        matched |= found
    return matched


def _most_sensitive(
    quantizer: Quantizer, graph: Path, prepared: Path, ignored: Collection[str], *, context: PassContext
) -> list[tuple[Layer, float]]:
    """Return the layers that cost the answers most in int8, as many as the options keep in float, with their errors."""
    options, calibration = context.options, context.calibration
    assert isinstance(options, QuantizeOptions)
    if options.keep_float is None:
        return []
    if calibration is None:
        raise InvalidArgument(
            "quantize: keep_float finds the most sensitive layers on calibration data, and this model has none; set "
            "models.<name>.calibration.file (or --calibration), or name layers in ignore"
        )
    layers = quantizable_layers(quantizer)
    kept_errors = LayerErrors(
        context.cache,
        graph=graph,
        scheme=quantizer.scheme,
        reduce_range=needs_reduced_range(context.cpu),
        calibration=calibration,
    )
    errors = kept_errors.obtain(
        quantizer,
        layers,
        prepared=prepared,
        samples=calibration,
        workspace=context.workspace,
        threads=context.threads,
        progress=lambda done: context.progress(0.6 + 0.3 * done),
    )
    ranked = sorted((layer for layer in layers if layer.node not in ignored), key=lambda layer: -errors[layer.node])
    if options.keep_float >= len(ranked):
        raise InvalidArgument(
            f"quantize: keep_float {options.keep_float} leaves nothing to quantize: {len(ranked)} layers could be; "
            "expected a smaller number"
        )
    return [(layer, errors[layer.node]) for layer in ranked[: options.keep_float]]


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
        kinds = DYNAMIC_OPERATORS if scheme == "dynamic" else sorted(STATIC_WEIGHT_OPERATORS)
        raise BuildFailed(
            f"quantize: the pass changed nothing: scheme {scheme} found no {', '.join(kinds)} with constant "
            "weights outside the ignore patterns; choose another scheme, or remove the pass from the profile"
        )
    return found
