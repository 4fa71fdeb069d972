"""Static int8 by NNCF: outliers of activations smoothed into the weights, biases corrected, scales calibrated."""

import importlib
import logging
import sys
import warnings
from collections.abc import Collection
from contextlib import redirect_stdout
from math import ceil
from typing import Any

import onnx

from serveprune.backends.openvino_package import silence_telemetry
from serveprune.errors import BuildFailed, InvalidArgument, MissingExtra
from serveprune.evaluation.dataset import Dataset
from serveprune.evaluation.rows_per_run import rows_per_run
from serveprune.graph.onnx_file import drop_annotations
from serveprune.graph.tensor_types import fed_inputs, tensor_spec

_CALIBRATION_BATCH_SIZE = 8


def quantize_with_nncf(
    model: onnx.ModelProto, *, calibration: Dataset | None, ignored: Collection[str], reduce_range: bool
) -> onnx.ModelProto:
    """Return an integer version of a prepared graph, whose quantized values are between QuantizeLinear nodes.

    NNCF computes the calibration batches with as many threads as there are cores.

    Args:
        model: What `prepare_for_quantization` returned.
        calibration: Samples that scales are taken from.
        ignored: Names of nodes that stay in float.
        reduce_range: Weights keep to 7 bits.

    Raises:
        MissingExtra: NNCF is not installed.
        InvalidArgument: There is no calibration set.
        BuildFailed: NNCF could not do it.
    """
    nncf = _package()
    if calibration is None:
        raise InvalidArgument(
            "quantize: scheme nncf takes the ranges of activations from calibration data, and this model has none; set "
            "models.<name>.calibration.file (or --calibration), or scheme: dynamic in the profile"
        )
    batch_size = rows_per_run([tensor_spec(value) for value in fed_inputs(model.graph)], wanted=_CALIBRATION_BATCH_SIZE)
    fix = nncf.OverflowFix.ENABLE if reduce_range else nncf.OverflowFix.DISABLE
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):  # where other libraries' progress goes
            warnings.simplefilter("ignore")
            quantized: onnx.ModelProto = nncf.quantize(
                model,
                nncf.Dataset([feeds for _, feeds in calibration.batches(batch_size)]),
                # Activations that have negative values get an offset, so that no level is wasted.
                preset=nncf.QuantizationPreset.MIXED,
                target_device=nncf.TargetDevice.CPU,
                subset_size=ceil(len(calibration) / batch_size),
                model_type=nncf.ModelType.TRANSFORMER if has_attention(model) else None,
                ignored_scope=nncf.IgnoredScope(names=sorted(ignored)) if ignored else None,
                advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=fix),
            )
    except Exception as error:  # NNCF, ONNX and ONNX Runtime raise dozens of unrelated types here
        first = next(iter(str(error).strip().splitlines()), "")
        raise BuildFailed(f"quantize: NNCF cannot quantize this graph: {type(error).__name__}: {first}") from error
    drop_annotations(quantized)
    return quantized


def has_attention(model: onnx.ModelProto) -> bool:
    """Tell whether a graph multiplies computed values with one another, as transformers do."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return any(
        node.op_type == "Attention" or (node.op_type == "MatMul" and weights.isdisjoint(node.input))
        for node in model.graph.node
    )


def _package() -> Any:
    silence_telemetry()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            package = importlib.import_module("nncf")
    except ImportError as error:
        raise MissingExtra(
            f'quantize: scheme nncf needs the package nncf ({error}): pip install "serveprune[nncf]", or choose '
            "another scheme"
        ) from error
    logging.getLogger("nncf").setLevel(logging.WARNING)
    return package
