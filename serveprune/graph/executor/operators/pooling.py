"""Pooling, in windows and over all of space."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from serveprune.graph.executor.operator import Inputs, Kernel, Operator, Run, needed
from serveprune.graph.executor.operators.window import Window, flat
from serveprune.graph.node import attribute, integers

_MAXIMA: Mapping[int, Callable[..., Tensor | tuple[Tensor, Tensor]]] = {
    1: functional.max_pool1d,
    2: functional.max_pool2d,
    3: functional.max_pool3d,
}
_AVERAGES: Mapping[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}
_CONVOLUTIONS: Mapping[int, Callable[..., Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}


def _window(node: ir.Node) -> Window:
    return Window.of(node, integers(node, "kernel_shape") or ())


def _maximum(node: ir.Node) -> Kernel:
    window, by_column = _window(node), bool(attribute(node, "storage_order", 0))
    positions = len(node.outputs) > 1 and bool(node.outputs[1].name)

    def kernel(inputs: Inputs, run: Run) -> Tensor | Sequence[Tensor]:
        data = needed(inputs, 0)
        floating = data if data.is_floating_point() else data.double()
        space = data.shape[2:]
        pads = window.pads(space)
        ends = [after + more for (_, after), more in zip(pads, window.overhang(space, pads), strict=True)]
        before = [first for first, _ in pads]
        native = before == ends and all(2 * pad <= size for pad, size in zip(before, window.kernel, strict=True))
        if not native:
            floating = functional.pad(floating, flat(list(zip(before, ends, strict=True))), value=-math.inf)
        made = _MAXIMA[len(space)](
            floating,
            window.kernel,
            window.strides,
            before if native else 0,
            window.dilations,
            return_indices=positions,
        )
        if isinstance(made, Tensor):
            return made.to(data.dtype)
        inner = made[1] if native else _unpadded(made[1], floating.shape[2:], before, space)
        return made[0].to(data.dtype), _whole(inner, space, by_column=by_column)

    return kernel


def _unpadded(positions: Tensor, padded: Sequence[int], before: Sequence[int], space: Sequence[int]) -> Tensor:
    """Turn positions in padded planes into positions in the planes themselves."""
    made = torch.zeros_like(positions)
    for found, first, size in zip(_coordinates(positions, padded), before, space, strict=True):
        made = made * size + (found - first)
    return made


def _whole(positions: Tensor, space: Sequence[int], *, by_column: bool) -> Tensor:
    """Turn positions in one plane, as torch counts, into positions in the whole tensor."""
    if by_column:
        made = torch.zeros_like(positions)
        found = _coordinates(positions, space)
        # The last two axes change places in the count; axes before them keep theirs.
        order = [*range(len(space) - 2), *range(len(space) - 1, max(len(space) - 3, -1), -1)]
        for axis in order:
            made = made * space[axis] + found[axis]
        positions = made
    batch, channels = positions.shape[:2]
    planes = torch.arange(batch * channels, device=positions.device).reshape(batch, channels, *(1,) * len(space))
    return positions + planes * math.prod(space)


def _coordinates(positions: Tensor, space: Sequence[int]) -> list[Tensor]:
    found: list[Tensor] = []
    for size in reversed(space):
        found.insert(0, positions % size)
        positions = positions // size
    return found


def _average(node: ir.Node) -> Kernel:
    window, counts_pads = _window(node), bool(attribute(node, "count_include_pad", 0))

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data = needed(inputs, 0)
        space = data.shape[2:]
        pads, overhang = window.pads(space), window.overhang(data.shape[2:], window.pads(data.shape[2:]))
        native = not any(overhang) and all(
            before == after and step == 1 and 2 * before <= size
            for (before, after), step, size in zip(pads, window.dilations, window.kernel, strict=True)
        )
        if native:
            return _AVERAGES[len(space)](
                data, window.kernel, window.strides, [before for before, _ in pads], count_include_pad=counts_pads
            )
        counted = torch.ones((1, 1, *space), dtype=data.dtype, device=data.device)
        if counts_pads:
            counted = functional.pad(counted, flat(pads), value=1.0)
            amounts = _window_sums(counted, window, [(0, more) for more in overhang])
        else:
            amounts = _window_sums(counted, window, _reaching(pads, overhang))
        return _window_sums(data, window, _reaching(pads, overhang)) / amounts

    return kernel


def _reaching(pads: Sequence[tuple[int, int]], overhang: Sequence[int]) -> list[tuple[int, int]]:
    return [(before, after + more) for (before, after), more in zip(pads, overhang, strict=True)]


def _window_sums(data: Tensor, window: Window, pads: Sequence[tuple[int, int]]) -> Tensor:
    """Sum every window of every channel, ``(N, C, *space)``, counting padding as zero."""
    batch, channels = data.shape[:2]
    planes = functional.pad(data.reshape(batch * channels, 1, *data.shape[2:]), flat(list(pads)))
    ones = torch.ones((1, 1, *window.kernel), dtype=data.dtype, device=data.device)
    made = _CONVOLUTIONS[len(window.kernel)](planes, ones, stride=window.strides, dilation=window.dilations)
    return made.reshape(batch, channels, *made.shape[2:])


def _norm(node: ir.Node) -> Kernel:
    window, order = _window(node), float(attribute(node, "p", 2))

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data = needed(inputs, 0)
        pads = window.pads(data.shape[2:])
        reaching = _reaching(pads, window.overhang(data.shape[2:], pads))
        sums = _window_sums(data.abs() ** order, window, reaching)
        # A window of zeros only has the norm 0, where the root has no gradient.
        empty = sums == 0
        return torch.where(empty, 0.0, torch.where(empty, 1.0, sums) ** (1 / order))

    return kernel


def _global(function: Callable[[Tensor, tuple[int, ...]], Tensor]) -> Operator:
    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data = needed(inputs, 0)
        return function(data, tuple(range(2, data.ndim)))

    return Operator(lambda node: kernel)


def _global_norm(node: ir.Node) -> Kernel:
    order = float(attribute(node, "p", 2))

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data = needed(inputs, 0)
        made: Tensor = torch.linalg.vector_norm(data, order, tuple(range(2, data.ndim)), keepdim=True)
        return made

    return kernel


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "MaxPool": Operator(_maximum),
        "AveragePool": Operator(_average),
        "LpPool": Operator(_norm),
        "GlobalMaxPool": _global(lambda data, space: torch.amax(data, space, keepdim=True)),
        "GlobalAveragePool": _global(lambda data, space: torch.mean(data, space, keepdim=True)),
        "GlobalLpPool": Operator(_global_norm),
    }
)
