"""Convolutions, pooling, and what else tells channels from space."""

import numpy as np
import onnx_ir as ir

from serveprune.compression.pruning.axes import Axes
from serveprune.compression.pruning.coupling.walk import Rule, Walk
from serveprune.compression.pruning.units import Ids
from serveprune.graph.node import attribute, given, label, required


def convolution(node: ir.Node, walk: Walk) -> list[Axes]:
    """``(N, C, *space)`` with ``(O, C / group, *kernel)`` gives ``(N, O, *space)``; depthwise passes channels on."""
    return _convolve(node, walk, made_axis=0, read_axis=1)


def transposed_convolution(node: ir.Node, walk: Walk) -> list[Axes]:
    """``(N, C, *space)`` with ``(C, O / group, *kernel)`` gives ``(N, O, *space)``."""
    return _convolve(node, walk, made_axis=1, read_axis=0)


def whole_groups(*, groups: int, made: int, read: int) -> bool:
    """Tell whether a grouped convolution loses whole groups, rather than the same channel of every group.

    Whichever gives the finer choice; a depthwise kernel always loses whole groups.

    Args:
        groups: How many there are.
        made: Output channels of one group.
        read: Input channels of one group.
    """
    return groups > 1 and (read == 1 or groups >= max(made, read))


def _convolve(node: ir.Node, walk: Walk, *, made_axis: int, read_axis: int) -> list[Axes]:
    weight = required(node, 1)
    data, reason = walk.of(node.inputs[0]), f"space of {label(node)}"
    outputs = walk.without_units(node.outputs[0])
    if weight.const_value is None:
        return walk.pinned(node, f"meets a computed kernel in {label(node)}")
    walk.keep((data[0], *data[2:]), reason)
    kernel = walk.of(weight)
    walk.kernels.add(weight.name or "")
    # Nobody chooses among the taps of a kernel: they are no axes to report on either.
    walk.axes[weight.name or ""] = (*kernel[:2], *walk.keep(kernel[2:], reason))
    made, read = kernel[made_axis], kernel[read_axis]
    if made is None or read is None:
        return walk.pinned(node, f"meets a fixed kernel in {label(node)}")
    groups = int(attribute(node, "group", 1))
    if groups == 1:
        reached = walk.couple(data[1], read, f"reaches a fixed channel axis in {label(node)}")
        walk.contract(node, slot=0, axis=1, ids=reached, weight=(weight, read_axis))
        channels: Ids | None = made
    else:
        channels = _grouped(node, data[1], made, read, groups, read_axis, walk)
    bias = given(node, 2)
    if bias is not None:
        channels = walk.couple(channels, walk.of(bias)[0], f"bias of {label(node)}")
    added = given(node, 3)  # FusedConv adds a value of the output's shape before its activation
    if added is not None:
        channels = walk.couple(channels, walk.of(added)[1], f"meets a fixed axis in {label(node)}")
    return [(None, channels, *outputs[2:])]


def _grouped(
    node: ir.Node, channels: Ids | None, made: Ids, read: Ids, groups: int, read_axis: int, walk: Walk
) -> Ids | None:
    """Couple input channels, kernel and output channels; returns the output's."""
    transposed = read_axis == 0
    made_per_group = len(made) if transposed else len(made) // groups
    read_per_group = len(read) // groups if transposed else len(read)
    if channels is not None and whole_groups(groups=groups, made=made_per_group, read=read_per_group):
        split, whole = (read, made) if transposed else (made, read)
        walk.pin(whole, f"stays whole within each group of {label(node)}")
        rows = np.concatenate([channels.reshape(groups, -1), split.reshape(groups, -1)], axis=1)
        walk.units.join_rows(rows)
        return np.repeat(rows[:, 0], made_per_group)
    # Every group loses the same channel, so that groups stay equal.
    split = read if transposed else made
    walk.units.join_rows(split.reshape(groups, -1).T)
    if channels is None:
        walk.pin(read, f"reaches a fixed channel axis in {label(node)}")
    else:
        per_group = read.reshape(groups, -1)[0] if transposed else read
        walk.units.join_rows(np.concatenate([channels.reshape(groups, -1).T, per_group[:, np.newaxis]], axis=1))
        walk.contract(node, slot=0, axis=1, ids=channels, weight=(required(node, 1), read_axis))
    return np.tile(made, groups) if transposed else made


def pooling(node: ir.Node, walk: Walk) -> list[Axes]:
    """Channels pass; space has no units."""
    axes = walk.of(node.inputs[0])
    walk.keep(axes[2:], f"space of {label(node)}")
    if len(node.outputs) > 1 and node.outputs[1].uses():
        return walk.pinned(node, f"positions are counted over all channels by {label(node)}")
    return [(*axes[:2], *walk.without_units(output)[2:]) for output in node.outputs]


def depth_to_space(node: ir.Node, walk: Walk) -> list[Axes]:
    """``(N, C b b, H, W)`` to ``(N, C, H b, W b)``: a channel that goes takes its ``b b`` sources along."""
    axes = walk.of(node.inputs[0])
    walk.keep(axes[2:], f"space of {label(node)}")
    block = int(attribute(node, "blocksize", 1)) ** 2
    ids = axes[1]
    if ids is None:
        return [(axes[0], None, None, None)]
    mode = attribute(node, "mode", "DCR")
    rows = ids.reshape(block, -1).T if mode == "DCR" else ids.reshape(-1, block)
    walk.units.join_rows(rows)
    return [(axes[0], rows[:, 0].copy(), None, None)]


def space_to_depth(node: ir.Node, walk: Walk) -> list[Axes]:
    """``(N, C, H b, W b)`` to ``(N, b b C, H, W)``: all channels once for each place of the block."""
    axes = walk.of(node.inputs[0])
    walk.keep(axes[2:], f"space of {label(node)}")
    ids = axes[1]
    block = int(attribute(node, "blocksize", 1)) ** 2
    return [(axes[0], None if ids is None else np.tile(ids, block), None, None)]


_POOLING = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "GlobalLpPool")
RULES: dict[str, Rule] = {
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "com.microsoft::FusedConv": convolution,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    **dict.fromkeys(_POOLING, pooling),
}
