"""Operators that bring the numbers of a tensor into another shape or order."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from serveprune.errors import InvalidArgument
from serveprune.graph.executor.operator import Inputs, Kernel, Operator, Run, needed, numbers, optional
from serveprune.graph.node import attribute, integers, label


def _identity(node: ir.Node) -> Kernel:
    return lambda inputs, run: needed(inputs, 0)


def _reshape(node: ir.Node) -> Kernel:
    declared = integers(node, "shape")
    zero_is_zero = bool(attribute(node, "allowzero", 0))

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data, sizes = needed(inputs, 0), numbers(inputs, 1) or list(declared or ())
        if not zero_is_zero:
            sizes = [data.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
        return data.reshape(sizes)

    return kernel


def _flatten(node: ir.Node) -> Kernel:
    axis = int(attribute(node, "axis", 1))

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data = needed(inputs, 0)
        split = axis + data.ndim if axis < 0 else axis
        return data.reshape(data.shape[:split].numel(), data.shape[split:].numel())

    return kernel


def _transpose(node: ir.Node) -> Kernel:
    order = integers(node, "perm")

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data = needed(inputs, 0)
        return data.permute(order or tuple(reversed(range(data.ndim))))

    return kernel


def _squeeze(node: ir.Node) -> Kernel:
    declared = integers(node, "axes")

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        axes = numbers(inputs, 1) or declared
        return needed(inputs, 0).squeeze(tuple(axes)) if axes else needed(inputs, 0).squeeze()

    return kernel


def _unsqueeze(node: ir.Node) -> Kernel:
    declared = integers(node, "axes")

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data, axes = needed(inputs, 0), numbers(inputs, 1) or declared or ()
        rank = data.ndim + len(axes)
        for axis in sorted(axis % rank for axis in axes):
            data = data.unsqueeze(axis)
        return data

    return kernel


def _expand(node: ir.Node) -> Kernel:
    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data = needed(inputs, 0)
        sizes = numbers(inputs, 1) or []
        return data.expand(np.broadcast_shapes(data.shape, sizes))

    return kernel


def _concat(node: ir.Node) -> Kernel:
    # Opset 1 had a default.
    axis = int(attribute(node, "axis", 1))
    return lambda inputs, run: torch.cat([value for value in inputs if value is not None], dim=axis)


def _split(node: ir.Node) -> Kernel:
    axis = int(attribute(node, "axis", 0))
    # Before opset 13 the sizes were an attribute.
    declared, parts = integers(node, "split"), len(node.outputs)

    def kernel(inputs: Inputs, run: Run) -> tuple[Tensor, ...]:
        data, sizes = needed(inputs, 0), numbers(inputs, 1) or declared
        if not sizes:
            # Equal parts, of which the last one is smaller if it must be.
            whole, size = data.shape[axis], -(-data.shape[axis] // parts)
            sizes = [min(size, whole - index * size) for index in range(parts)]
        return torch.split(data, list(sizes), dim=axis)

    return kernel


def _tile(node: ir.Node) -> Kernel:
    return lambda inputs, run: needed(inputs, 0).repeat(numbers(inputs, 1) or ())


def _depth_to_space(node: ir.Node) -> Kernel:
    """``(N, C b b, H, W)`` to ``(N, C, H b, W b)``; the block's places come before the channels, or after them."""
    block, places_first = int(attribute(node, "blocksize", 1)), attribute(node, "mode", "DCR") == "DCR"

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data = needed(inputs, 0)
        if not places_first:
            return functional.pixel_shuffle(data, block)
        batch, channels, height, width = data.shape
        parts = data.reshape(batch, block, block, channels // block**2, height, width)
        return parts.permute(0, 3, 4, 1, 5, 2).reshape(batch, -1, height * block, width * block)

    return kernel


def _space_to_depth(node: ir.Node) -> Kernel:
    """``(N, C, H b, W b)`` to ``(N, b b C, H, W)``."""
    block = int(attribute(node, "blocksize", 1))

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data = needed(inputs, 0)
        batch, channels, height, width = data.shape
        parts = data.reshape(batch, channels, height // block, block, width // block, block)
        return parts.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // block, width // block)

    return kernel


_POSITIONS: Mapping[str, Callable[[Tensor, int], Tensor]] = MappingProxyType(
    {
        "edge": lambda positions, size: positions.clamp(0, size - 1),
        "wrap": lambda positions, size: positions % size,
        # 0 1 2 3 2 1 0 1 ..., and in both directions.
        "reflect": lambda positions, size: (size - 1) - ((positions % max(2 * size - 2, 1)) - (size - 1)).abs(),
    }
)
"""Which position of an axis a padded position shows."""


def _pad(node: ir.Node) -> Kernel:
    # Before opset 11 pads and value were attributes, the first of them named otherwise in opset 1.
    declared = integers(node, "pads") or integers(node, "paddings") or ()
    mode = str(attribute(node, "mode", "constant"))
    if mode != "constant" and mode not in _POSITIONS:
        raise InvalidArgument(f"expected a mode of {label(node)} out of constant, {', '.join(_POSITIONS)}; got {mode}")

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data, pads = needed(inputs, 0), numbers(inputs, 1) or declared
        axes = [axis % data.ndim for axis in numbers(inputs, 3) or range(data.ndim)]
        around = dict(zip(axes, zip(pads[: len(axes)], pads[len(axes) :], strict=True), strict=True))
        if mode != "constant":
            return _padded_with_itself(data, around, _POSITIONS[mode])
        value = optional(inputs, 2)
        flat = [size for axis in reversed(range(data.ndim)) for size in around.get(axis, (0, 0))]
        return functional.pad(data, flat, value=attribute(node, "value", 0.0) if value is None else value.item())

    return kernel


def _padded_with_itself(
    data: Tensor, around: Mapping[int, tuple[int, int]], shown: Callable[[Tensor, int], Tensor]
) -> Tensor:
    for axis, (before, after) in around.items():
        # What is cut off is not shown either.
        cut = [max(-before, 0), max(-after, 0)]
        data = data.narrow(axis, cut[0], data.shape[axis] - sum(cut))
        if before > 0 or after > 0:
            positions = torch.arange(-max(before, 0), data.shape[axis] + max(after, 0), device=data.device)
            data = data.index_select(axis, shown(positions, data.shape[axis]))
    return data


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "Identity": Operator(_identity),
        "Reshape": Operator(_reshape, settings=(1,)),
        "Flatten": Operator(_flatten),
        "Transpose": Operator(_transpose),
        "Squeeze": Operator(_squeeze, settings=(1,)),
        "Unsqueeze": Operator(_unsqueeze, settings=(1,)),
        "Expand": Operator(_expand, settings=(1,)),
        "Concat": Operator(_concat),
        "Split": Operator(_split, settings=(1,)),
        "Tile": Operator(_tile, settings=(1,)),
        "DepthToSpace": Operator(_depth_to_space),
        "SpaceToDepth": Operator(_space_to_depth),
        "Pad": Operator(_pad, settings=(1, 2, 3)),
    }
)
