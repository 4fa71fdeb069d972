"""The rounding of the static quantization that follows, while the weights can still learn to live with it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.quant_utils import get_qmin_qmax_for_qType
from torch import Tensor

from serveprune.compression.kept_channels import METADATA_KEY
from serveprune.compression.quantization.preparation import prepare_for_quantization
from serveprune.compression.quantization.quantize import needs_reduced_range
from serveprune.compression.quantization.quantizer import Quantizer
from serveprune.evaluation.dataset import Dataset
from serveprune.graph.executor.operator import Rounding

_LEAST_SCALE = 1e-12
_LEVELS = 255
_QUANTIZED = "_quantized"


class StaticRounding:
    """What `quantize` with scheme static would round in a graph, as functions of its values.

    They are read off the graph that the pass itself writes (U8S8 QDQ): activations to unsigned bytes in the range of
    the samples, weights of each channel to signed bytes in the range that they have at the time. Biases become
    32-bit integers there, whose rounding is too small to learn from.

    Attributes:
        model: The graph in the form that is quantized: BatchNormalization is folded into the layer before it.
        functions: By name of a value or a weight. Gradients pass within the range, and are zero beyond it.
    """

    def __init__(
        self,
        graph: Path,
        *,
        samples: Dataset,
        cpu: str,
        workspace: Path,
        threads: int,
        progress: Callable[[float], None],
    ) -> None:
        """Quantize a copy.

        Args:
            graph: The float graph.
            samples: Inputs that the ranges of activations are taken from.
            cpu: Architecture and features of this machine, which decide how many bits weights have.
            workspace: For graphs that lie between.
            threads: Compute threads.
            progress: Takes the fraction done.

        Raises:
            InvalidArgument: The graph cannot be quantized.
        """
        reduced = needs_reduced_range(cpu)
        prepared, written = workspace / "to_quantize.onnx", workspace / "rounded.onnx"
        quantizer = Quantizer(
            prepared,
            prepare_for_quantization(graph, output=prepared, threads=threads),
            scheme="static",
            reduce_range=reduced,
            calibration=samples,
            workspace=workspace,
            threads=threads,
            progress=progress,
        )
        quantizer.write(written, ignored=())
        self.model = ir.load(prepared)
        kept = ir.load(graph).metadata_props.get(METADATA_KEY)
        if kept is not None:
            self.model.metadata_props[METADATA_KEY] = kept
        self.functions = _functions(onnx.load(written), self.model, reduced=reduced)


def _functions(quantized: onnx.ModelProto, model: ir.Model, *, reduced: bool) -> dict[str, Rounding]:
    arrays = {tensor.name: tensor for tensor in quantized.graph.initializer}
    lowest, highest = (int(bound) for bound in get_qmin_qmax_for_qType(QuantType.QInt8.tensor_type, reduced, True))
    found: dict[str, Rounding] = {}
    for node in quantized.graph.node:
        if node.op_type == "QuantizeLinear":
            scale, zero = (numpy_helper.to_array(arrays[name]) for name in node.input[1:3])
            found[node.input[0]] = _activation(float(scale), int(zero))
        elif node.op_type == "DequantizeLinear" and node.input[0] in arrays:
            weight = node.input[0].removesuffix(_QUANTIZED)
            kind = arrays[node.input[0]].data_type
            if weight not in model.graph.initializers:
                continue
            if kind == onnx.TensorProto.INT8:
                axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
                per_channel = np.ndim(numpy_helper.to_array(arrays[node.input[1]])) > 0
                found[weight] = _weight(axis if per_channel else None, lowest=lowest, highest=highest)
            elif kind == onnx.TensorProto.UINT8:
                found[weight] = _addend(highest=int(get_qmin_qmax_for_qType(kind, reduced)[1]))
    return found


def _activation(scale: float, zero: int) -> Rounding:
    return lambda value: torch.fake_quantize_per_tensor_affine(value, scale, zero, 0, _LEVELS)


def _addend(*, highest: int) -> Rounding:
    """Round a constant that is added or multiplied as an activation is, in the range it has."""

    def rounded(constant: Tensor) -> Tensor:
        low, high = (float(bound) for bound in constant.detach().aminmax())
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / highest, _LEAST_SCALE)
        return torch.fake_quantize_per_tensor_affine(constant, scale, round(-low / scale), 0, highest)

    return rounded


def _weight(axis: int | None, *, lowest: int, highest: int) -> Rounding:
    def rounded(weight: Tensor) -> Tensor:
        size = weight.detach().abs()
        if axis is None:
            scale = float((size.max() / highest).clamp_min(_LEAST_SCALE))
            return torch.fake_quantize_per_tensor_affine(weight, scale, 0, lowest, highest)
        others = [each for each in range(weight.dim()) if each != axis % weight.dim()]
        scales = (size.amax(others) / highest).clamp_min(_LEAST_SCALE)
        zeros = torch.zeros_like(scales, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scales, zeros, axis % weight.dim(), lowest, highest)

    return rounded
