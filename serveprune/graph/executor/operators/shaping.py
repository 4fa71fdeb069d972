"""Operators about shapes and dtypes, and those that make tensors of nothing."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import onnx_ir as ir
import torch
from onnx_ir import tensor_adapters
from torch import Tensor
from torch.nn import functional

from serveprune.errors import InvalidArgument
from serveprune.graph.executor.operator import Inputs, Kernel, Operator, Run, needed, numbers, optional
from serveprune.graph.node import attribute, label


def _shape(node: ir.Node) -> Kernel:
    start, end = int(attribute(node, "start", 0)), attribute(node, "end")
    return lambda inputs, run: torch.tensor(list(needed(inputs, 0).shape[start:end]), dtype=torch.int64)


def _size(inputs: Inputs, run: Run) -> Tensor:
    return torch.tensor(needed(inputs, 0).numel(), dtype=torch.int64)


def _range(inputs: Inputs, run: Run) -> Tensor:
    start, limit, step = (needed(inputs, slot).item() for slot in range(3))
    dtype = needed(inputs, 0).dtype
    return torch.arange(start, limit, step, dtype=dtype) if (limit - start) * step > 0 else torch.empty(0, dtype=dtype)


def _filled(node: ir.Node) -> Kernel:
    declared = attribute(node, "value")
    dtype = ir.DataType.FLOAT if declared is None else declared.dtype
    value = 0.0 if declared is None else declared.numpy().reshape(-1)[0].item()

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        # Integers are mostly shapes, which stay where they are read.
        device = run.device if dtype.is_floating_point() else None
        return torch.full(numbers(inputs, 0) or (), value, dtype=run.dtype(dtype), device=device)

    return kernel


def _diagonal(node: ir.Node) -> Kernel:
    offset, declared = int(attribute(node, "k", 0)), attribute(node, "dtype")

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        like = needed(inputs, 0)
        dtype = like.dtype if declared is None else run.dtype(ir.DataType(declared))
        made = torch.zeros(like.shape, dtype=dtype, device=like.device)
        made.diagonal(offset).fill_(1)
        return made

    return kernel


def _cast(node: ir.Node) -> Kernel:
    wanted = ir.DataType(attribute(node, "to"))
    try:
        tensor_adapters.to_torch_dtype(wanted)
    except TypeError as error:
        raise InvalidArgument(f"{label(node)} makes {wanted.name}, which torch has no dtype for") from error
    return lambda inputs, run: needed(inputs, 0).to(run.dtype(wanted))


def _cast_like(inputs: Inputs, run: Run) -> Tensor:
    return needed(inputs, 0).to(needed(inputs, 1).dtype)


def _dropout(node: ir.Node) -> Kernel:
    # Since opset 12 the ratio is an input; without one it is a half.
    declared = float(attribute(node, "ratio", 0.5))
    wants_mask = len(node.outputs) > 1 and bool(node.outputs[1].name)

    def kernel(inputs: Inputs, run: Run) -> Tensor | Sequence[Tensor]:
        data, given, forced = needed(inputs, 0), optional(inputs, 1), optional(inputs, 2)
        ratio = declared if given is None else float(given.item())
        training = run.training or (forced is not None and bool(forced.item()))
        if not wants_mask:
            return functional.dropout(data, ratio, training)
        kept = torch.rand_like(data) >= ratio if training else torch.ones_like(data, dtype=torch.bool)
        scale = 1 / (1 - ratio) if training and ratio < 1 else 1.0
        return data * kept * scale, kept

    return kernel


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "Shape": Operator(_shape),
        "Size": Operator(lambda node: _size),
        "Range": Operator(lambda node: _range, settings=(0, 1, 2)),
        "ConstantOfShape": Operator(_filled, settings=(0,)),
        "EyeLike": Operator(_diagonal),
        "Cast": Operator(_cast),
        "CastLike": Operator(lambda node: _cast_like),
        "Dropout": Operator(_dropout, settings=(1, 2)),
    }
)
