"""What a pass made of zeros, for the manifest and for people."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from serveprune.compression.sparsity.prunable_weights import PrunableWeight
from serveprune.graph.node import constant

_CPU = (
    "ONNX Runtime on CPU multiplies by a zero as by any other number: zeros make the stored file smaller, "
    "not the answer faster"
)
_CUT = "{count} units that had become zero in whole were removed, which does make it faster"
_TWO_OF_FOUR = (
    "GPUs with sparse tensor cores compute 2:4 faster, with a runtime that uses them (TensorRT with sparsity "
    "enabled, say); ONNX Runtime on CPU does not"
)
_OTHER_PATTERN = "no kernel that this runtime has makes use of {pattern}; of the patterns, GPUs speed up 2:4 alone"


def runtime_remark(*, pattern: str | None, removed_units: int) -> str:
    """Say what the runtime makes of the zeros."""
    parts = [_CPU]
    if removed_units:
        parts.append(_CUT.format(count=removed_units))
    if pattern is not None:
        parts.append(_TWO_OF_FOUR if pattern == "2:4" else _OTHER_PATTERN.format(pattern=pattern))
    return "; ".join(parts)


def measured_sparsity(model: ir.Model, weights: Sequence[PrunableWeight]) -> dict[str, Any]:
    """Count zeros in a graph: of the weights that may have some, each and together, and of all floats."""
    layers = []
    eligible = eligible_zeros = elements = zeros = 0
    chosen = {weight.name: weight for weight in weights}
    for name, value in model.graph.initializers.items():
        array = constant(value)
        if array is None or array.dtype.kind != "f":
            continue
        none = int(array.size - np.count_nonzero(array))
        elements, zeros = elements + array.size, zeros + none
        if name in chosen:
            eligible, eligible_zeros = eligible + array.size, eligible_zeros + none
            layers.append(_layer(chosen[name], shape=array.shape, zeros=none, size=array.size))
    return {
        "sparsity": eligible_zeros / max(eligible, 1),
        "sparsity_of_all_weights": zeros / max(elements, 1),
        "layers": layers,
    }


def _layer(weight: PrunableWeight, *, shape: Sequence[int], zeros: int, size: int) -> Mapping[str, Any]:
    return {
        "weight": weight.name,
        "node": weight.node,
        "operator": weight.operator,
        "shape": list(shape),
        "sparsity": zeros / size,
    }
