"""Operators that pick numbers of a tensor, or put some of them elsewhere."""

from collections.abc import Mapping
from types import MappingProxyType

import onnx_ir as ir
import torch
from torch import Tensor

from serveprune.graph.executor.operator import Inputs, Kernel, Operator, Run, needed, numbers
from serveprune.graph.node import attribute, integers


def _gather(node: ir.Node) -> Kernel:
    declared = int(attribute(node, "axis", 0))

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data, indices = needed(inputs, 0), needed(inputs, 1)
        axis = declared % data.ndim
        flat = _counted_from_start(indices.reshape(-1), data.shape[axis])
        made = data.index_select(axis, flat)
        return made.reshape(data.shape[:axis] + indices.shape + data.shape[axis + 1 :])

    return kernel


def _gather_nd(node: ir.Node) -> Kernel:
    """``(*batch, *sizes)`` at ``(*batch, ..., k)``, whose last axis holds positions along ``k`` axes."""
    batch_axes = int(attribute(node, "batch_dims", 0))

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data, indices = needed(inputs, 0), needed(inputs, 1).long()
        along = [
            torch.arange(size, device=data.device).reshape(-1, *(1,) * (indices.ndim - 2 - axis))
            for axis, size in enumerate(data.shape[:batch_axes])
        ]
        return data[(*along, *indices.unbind(-1))]

    return kernel


def _gather_elements(node: ir.Node) -> Kernel:
    declared = int(attribute(node, "axis", 0))

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data = needed(inputs, 0)
        return data.gather(declared, _counted_from_start(needed(inputs, 1).long(), data.shape[declared]))

    return kernel


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scatter_elements(node: ir.Node) -> Kernel:
    axis, reduction = int(attribute(node, "axis", 0)), str(attribute(node, "reduction", "none"))

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data, updates = needed(inputs, 0), needed(inputs, 2)
        indices = _counted_from_start(needed(inputs, 1).long(), data.shape[axis])
        if reduction == "none":
            return data.scatter(axis, indices, updates)
        return data.scatter_reduce(axis, indices, updates, reduce=_REDUCTIONS[reduction])

    return kernel


def _scatter_nd(node: ir.Node) -> Kernel:
    """``(*sizes)`` with updates ``(..., *rest)`` at ``(..., k)``, whose last axis holds positions along ``k`` axes."""
    reduction = str(attribute(node, "reduction", "none"))

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data, indices, updates = needed(inputs, 0), needed(inputs, 1).long(), needed(inputs, 2)
        if reduction in ("none", "add"):
            return data.index_put(tuple(indices.unbind(-1)), updates, accumulate=reduction == "add")
        sizes = data.shape[: indices.shape[-1]]
        rows = torch.zeros_like(indices[..., 0])
        for size, along in zip(sizes, indices.unbind(-1), strict=True):
            rows = rows * size + _counted_from_start(along, size)
        flat, given = data.reshape(sizes.numel(), -1), updates.reshape(rows.numel(), -1)
        places = rows.reshape(-1, 1).expand_as(given)
        return flat.scatter_reduce(0, places, given, reduce=_REDUCTIONS[reduction]).reshape(data.shape)

    return kernel


def _slice(node: ir.Node) -> Kernel:
    # Before opset 10 these were attributes, without steps.
    declared = [integers(node, name) for name in ("starts", "ends", "axes")]

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data = needed(inputs, 0)
        starts, ends, chosen = (numbers(inputs, slot) or declared[slot - 1] for slot in (1, 2, 3))
        assert starts is not None
        assert ends is not None
        axes = chosen or range(len(starts))
        steps = numbers(inputs, 4) or [1] * len(starts)
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            data = _sliced(data, slice(start, end, step), axis % data.ndim)
        return data

    return kernel


def _sliced(data: Tensor, taken: slice, axis: int) -> Tensor:
    before = (slice(None),) * axis
    positions = range(*taken.indices(data.shape[axis]))
    if positions.step > 0:
        return data[(*before, slice(positions.start, positions.stop, positions.step))]
    if not positions:
        return data.narrow(axis, 0, 0)
    # Torch has no negative steps.
    return data[(*before, slice(positions[-1], positions[0] + 1, -positions.step))].flip(axis)


def _one_hot(node: ir.Node) -> Kernel:
    declared = int(attribute(node, "axis", -1))

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        depth = (numbers(inputs, 1) or [0])[0]
        indices, values = _counted_from_start(needed(inputs, 0).long(), depth), needed(inputs, 2)
        axis = declared % (indices.ndim + 1)
        classes = torch.arange(depth, device=indices.device).reshape(-1, *(1,) * (indices.ndim - axis))
        return torch.where(indices.unsqueeze(axis) == classes, values[1], values[0])

    return kernel


def _top_k(node: ir.Node) -> Kernel:
    axis, largest = int(attribute(node, "axis", -1)), bool(attribute(node, "largest", 1))

    def kernel(inputs: Inputs, run: Run) -> tuple[Tensor, Tensor]:
        # Before opset 10 the count was an attribute.
        count = (numbers(inputs, 1) or [int(attribute(node, "k", 1))])[0]
        # Of equal numbers the first come first, which torch.topk does not promise.
        values, places = needed(inputs, 0).sort(dim=axis, descending=largest, stable=True)
        return values.narrow(axis, 0, count), places.narrow(axis, 0, count)

    return kernel


def _non_zero(node: ir.Node) -> Kernel:
    return lambda inputs, run: needed(inputs, 0).nonzero().T


def _compress(node: ir.Node) -> Kernel:
    axis = attribute(node, "axis")

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        taken = needed(inputs, 1).nonzero().reshape(-1)
        data = needed(inputs, 0)
        return data.reshape(-1).index_select(0, taken) if axis is None else data.index_select(int(axis), taken)

    return kernel


def _triangle(node: ir.Node) -> Kernel:
    cut = torch.triu if attribute(node, "upper", 1) else torch.tril
    return lambda inputs, run: cut(needed(inputs, 0), diagonal=(numbers(inputs, 1) or [0])[0])


def _counted_from_start(indices: Tensor, size: int) -> Tensor:
    return torch.where(indices < 0, indices + size, indices)


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "Gather": Operator(_gather, weights=(0,)),
        "GatherND": Operator(_gather_nd),
        "GatherElements": Operator(_gather_elements),
        "ScatterElements": Operator(_scatter_elements),
        "Scatter": Operator(_scatter_elements),
        "ScatterND": Operator(_scatter_nd),
        "OneHot": Operator(_one_hot, settings=(1,)),
        "TopK": Operator(_top_k, settings=(1,)),
        "NonZero": Operator(_non_zero),
        "Compress": Operator(_compress),
        "Trilu": Operator(_triangle, settings=(1,)),
        "Slice": Operator(_slice, settings=(1, 2, 3, 4)),
    }
)
